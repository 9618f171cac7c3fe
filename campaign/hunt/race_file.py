"""A finding as a race's file (``scenarios/catalogue.py``): world, programs, kernel, what is broken.

The condition says that its window was entered: the operation of whoever holds the translation was
under way during the one that takes it away.  It is left out if it cannot be said, or is not met by
the very schedule that was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from mmurace.explorer.shrink.case import Case
from mmurace.explorer.shrink.play import How, Player
from mmurace.nodes.kernel.variant import Kernel, preset
from mmurace.nodes.plugins import loaded
from mmurace.oracle.rules.table import rule_of
from mmurace.oracle.sometimes import Between, Condition
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.envelope import operation_of
from mmurace.protocol.errors import UserError
from mmurace.scenarios.conditions import Possible
from mmurace.scenarios.operations import programs_to
from mmurace.scenarios.tables import Table, toml_string, toml_text
from mmurace.scenarios.worlds import world_to

HEAD = """\
# Found by: python launch.py hunt.  Beside it is the schedule that shows it, which replay, minimize
# and explain take in this file's place.
"""


def race_text(case: Case, violation: Violation, functions: Sequence[str]) -> str:
    """The file.  ``functions``: those that raced."""
    world, kernel = case.spec.world, case.spec.world.kernel
    rule = rule_of(violation.rule)
    raced = " / ".join(functions)
    told = rule.name if rule is not None else "broken-rule"
    table: Table = {
        "id": f"{violation.rule}-{kernel.release}-{kernel.machine}",
        "name": f"{told}-{'-'.join(functions)}".replace(" ", "-"),
        "title": f"{violation.rule} {told}" + (f" in {raced}" if raced else ""),
        "family": "hunt",
        "source": [f"hunt on {kernel.release} {kernel.machine}"],
        "story": _story(violation),
        "world": _without_nothing(world_to(world)),
        "program": programs_to(case.programs),
        "kernel": [kernel_table(kernel, violation)],
        "sometimes": [_plain(c) for c in window(case, violation)] or None,
    }
    return HEAD + _plugins() + toml_text({k: v for k, v in table.items() if v is not None})


def _plugins() -> str:
    names = " ".join(f"--plugin {plugin.name}.py" for plugin in loaded())
    return f"# It needs {names}\n" if names else ""


def _story(violation: Violation) -> str:
    """What is known of it; the interleaving is what ``explain`` shows."""
    lines = [f"{violation.text()}."]
    if violation.filled is not None:
        lines.append(f"Filled by {operation_of(violation.filled.id)}, at {violation.filled.node}.")
    if violation.changed is not None:
        change = f" ({violation.change})" if violation.change else ""
        lines.append(f"Taken away by {operation_of(violation.changed.id)}{change}.")
    if violation.deadline is not None:
        due = violation.deadline
        lines.append(f"Due before: {due.what} of {operation_of(due.id)} at {due.node}.")
    return "\n".join(lines)


def _without_nothing(table: Table) -> Table:
    return {key: value for key, value in table.items() if value != []}


def kernel_table(kernel: Kernel, violation: Violation) -> Table:
    """``[[kernel]]``: the release, what differs from it, and what happens there."""
    expect = {
        "verdict": "violated", "rule": violation.rule, "agent": violation.agent,
        "cache": violation.cache, "mm": violation.mm, "address": violation.address,
        "description": violation.detail,
    }  # fmt: skip
    table: Table = {"name": kernel.release, "release": kernel.release, "arch": kernel.machine}
    usual = preset(kernel.release, kernel.machine).profiles
    optional: Table = {
        "set": differences(kernel),
        "drivers": [profile for profile in kernel.profiles if profile not in usual],
        "patches": list(kernel.patches),
    }
    table |= {key: value for key, value in optional.items() if value}
    return table | {"expect": {k: v for k, v in expect.items() if v not in ("", -1)}}


def differences(kernel: Kernel) -> dict[str, Any]:
    """Switches that are not as its release has them."""
    stock = preset(kernel.release, kernel.machine, profiles=kernel.profiles).switches()
    return {name: value for name, value in kernel.switches().items() if value != stock[name]}


# ---- the window ----------------------------------------------------------------------------------


def window(case: Case, violation: Violation) -> tuple[Condition, ...]:
    """What shows that the window was entered; empty if that cannot be said."""
    first = violation.changed or next(iter(violation.racing), None)
    used = next(iter(_others(violation, first)), None)
    if first is None or used is None:
        return ()
    kinds = case.kinds()
    nodes = {f"{p.name}/{at}": p.node for p in case.programs for at, _ in enumerate(p.steps)}
    ours, theirs = operation_of(first.id), operation_of(used.id)
    if ours not in kinds or theirs not in kinds or theirs not in nodes:
        return ()
    condition = Between(nodes[theirs], kinds[theirs], kinds[ours], "op_begin", "op_end")
    return (condition,) if _is_met(case, condition) else ()


def _others(violation: Violation, first: Event | None) -> list[Event]:
    mine = operation_of(first.id) if first is not None else ""
    named = (*reversed(violation.racing), violation.filled, violation.read, violation.deadline)
    return [e for e in named if e is not None and operation_of(e.id) != mine]


def _is_met(case: Case, condition: Condition) -> bool:
    """Whether it is possible on every kernel, and the case meets it."""
    world = case.spec.world
    possible = Possible(world, case.programs, [(world.kernel.release, world.kernel)])
    try:
        possible.check((condition,), "sometimes")
    except UserError:
        return False
    spec = replace(case.spec, sometimes=(condition,))
    player = Player(replace(case, spec=spec), How(stop=False))
    player.run()
    return not player.oracle.sometimes.open


def _plain(condition: Condition) -> Table:
    usual = {f.encode_name: f.default for f in msgspec.structs.fields(condition)}
    built: Table = msgspec.to_builtins(condition)
    return {k: v for k, v in built.items() if k not in usual or v != usual[k]}


__all__ = ["differences", "kernel_table", "race_text", "toml_string", "window"]
