"""What a minimisation says: on the way, and at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmurace.explorer.shrink.minimize import Minimized, Size, Update
from mmurace.report import formats


def minimize_line(state: Mapping[str, Any]) -> str:
    """``12.3 s: operations: 9 operations, 210 deliveries (53 tries)``."""
    if "explaining" in state:
        return f"explaining: {state['explaining']}"
    seconds = formats.seconds(float(state.get("seconds", 0.0)))
    return (
        f"{seconds}: {state.get('phase', 'starting')}: {state.get('operations', 0):,} operations, "
        f"{state.get('deliveries', 0):,} deliveries ({state.get('tries', 0):,} tries)"
    )


def update_dict(update: Update) -> dict[str, Any]:
    """An update as a state for the progress line."""
    return {
        "seconds": update.seconds,
        "phase": update.phase,
        "tries": update.tries,
        "operations": update.size.operations,
        "deliveries": update.size.deliveries,
    }


def explaining_dict(phase: str) -> dict[str, Any]:
    """What an explanation is doing, as a state for the same line."""
    return {"explaining": phase}


def out_of_time(found: Minimized, seconds: float) -> bool:
    """Whether it ended because so many seconds were over, which is no interruption."""
    return found.interrupted and found.seconds >= seconds


def minimized_text(found: Minimized, file: str, seconds: float) -> str:
    """The result for people."""
    how = "interrupted; the best so far" if found.interrupted else found.proof.detail
    if out_of_time(found, seconds):
        how = f"the best after {formats.seconds(seconds)} (--seconds)"
    shortest = "shortest for these operations in this world" if found.proof.shortest else ""
    lines = [
        f"MINIMIZED: {found.target.text()}",
        f"  from       {size_text(found.before)}",
        f"  to         {size_text(found.after)}",
        f"  tries      {formats.number(found.tries)} in {formats.seconds(found.seconds)}",
        f"  shortest?  {shortest or 'not proved'}: {how}",
        f"  schedule   {file}",
        f"  explain    {formats.command('explain', file)}",
        f"  step       {formats.command('step', file)}",
    ]
    return "\n".join(lines)


def size_text(size: Size) -> str:
    """``4 operations, 4 nodes, 131 deliveries, 2 switches``."""
    faults = f", {formats.many(size.faults, 'fault')}" if size.faults else ""
    deaths = f", {formats.many(size.deaths, 'death')}" if size.deaths else ""
    return (
        f"{formats.many(size.operations, 'operation')}, {formats.many(size.nodes, 'node')}{faults}"
        f"{deaths}, {formats.many(size.deliveries, 'delivery', 'deliveries')}, "
        f"{formats.many(size.switches, 'switch', 'switches')}"
    )


def minimized_dict(found: Minimized, file: str, seconds: float) -> dict[str, Any]:
    """For JSON."""
    late = out_of_time(found, seconds)
    return {
        "target": found.target.text(),
        "before": _size_dict(found.before),
        "after": _size_dict(found.after),
        "tries": found.tries,
        "seconds": found.seconds,
        "interrupted": found.interrupted and not late,
        "out_of_time": late,
        "shortest": found.proof.shortest,
        "search": {"runs": found.proof.runs, "detail": found.proof.detail},
        "schedule": file,
    }


def _size_dict(size: Size) -> dict[str, int]:
    return {name: getattr(size, name) for name in size.__dataclass_fields__}
