"""An exhaustive search as people and programs read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from mmurace.explorer.exhaustive.search import Exhaustion
from mmurace.explorer.run.outcome import HELD, INCONCLUSIVE, INTERRUPTED, VIOLATED, Outcome
from mmurace.report import formats
from mmurace.report.machine import outcome_dict
from mmurace.report.screen import put
from mmurace.report.terminal import STYLES, WORDS, chosen_violation, repeat_command
from mmurace.report.trail import trail_of
from mmurace.report.violation import violation_report
from mmurace.scenarios.spec import RunSpec


def exit_code(found: Exhaustion) -> int:
    """The exit status of the command that searched."""
    if found.violation is not None:
        return VIOLATED
    if found.interrupted:
        return INTERRUPTED
    return HELD if found.verdict.outcome == "held" else INCONCLUSIVE


def headline(spec: RunSpec, found: Exhaustion) -> str:
    """The verdict and how it was reached, on one line."""
    word = WORDS.get(exit_code(found), "ENDED")
    if found.violation is None:
        word += ", exhaustive" if found.exhaustive else ", not exhaustive"
    reasons = found.verdict.reasons
    why = f"{', '.join(reasons)}; " if reasons else ""
    return formats.plain(f"{word}: {why}{spec.name}, {_how(found)}")


def _how(found: Exhaustion) -> str:
    if found.engine == "stateful":
        return (
            f"{formats.many(found.states, 'state')} (stateful), "
            f"{formats.many(found.deliveries, 'delivery', 'deliveries')}"
        )
    return (
        f"{formats.many(found.executions, 'execution')} (dpor), "
        f"{found.blocked:,} cut off as repetitions, "
        f"{formats.many(found.deliveries, 'delivery', 'deliveries')}"
    )


def search_line(state: Mapping[str, Any]) -> str:
    """``3.1 s: 2,410 states, 56,010 deliveries``."""
    noun = "states" if state["engine"] == "stateful" else "executions"
    return (
        f"{formats.seconds(float(state['seconds']))}: {state['done']:,} {noun}, "
        f"{state['deliveries']:,} deliveries"
    )


def scope_text(spec: RunSpec, found: Exhaustion) -> str:
    """What was searched, and by which rules it was judged."""
    programs = ", ".join(
        f"{program.name} {formats.many(len(tuple(program.steps)), 'operation')}"
        for program in spec.programs()
    )
    lines = [f"scope: {programs}; {len(spec.world.nodes())} nodes; no chaos"]
    if found.rules and found.violation is None:
        lines.append(
            f"judged in every state: {', '.join(found.rules)}; "
            f"all other rules in {formats.many(found.judged, 'execution')}"
        )
    if found.symmetric:
        alike = "; ".join(" and ".join(nodes) for nodes in found.symmetric)
        lines.append(
            f"interchangeable: {alike}; the {formats.many(found.states, 'state')} stand for "
            f"{found.stands_for:,}"
        )
    if found.estimate is not None:
        what = "states" if found.engine == "stateful" else "executions"
        lines.append(f"estimate: some {found.estimate:.0e} {what} in all, within an order or so")
    return "\n".join(map(formats.plain, lines))


def print_exhaustion(
    console: Console, spec: RunSpec, found: Exhaustion, outcome: Outcome | None
) -> None:
    """The headline, and the report of the counterexample if there is one."""
    word = WORDS.get(exit_code(found), "ENDED")
    put(console, headline(spec, found), STYLES.get(word, "bold red"))
    put(console, scope_text(spec, found))
    violation = chosen_violation(outcome) if outcome is not None else None
    if outcome is not None and violation is not None:
        trail = trail_of(violation, outcome.run_dir)
        put(console, "\n" + violation_report(violation, trail, repeat_command(outcome)))


def exhaustion_dict(spec: RunSpec, found: Exhaustion, outcome: Outcome | None) -> dict[str, Any]:
    """Builtins for JSON."""
    return {
        "exit_code": exit_code(found),
        "name": spec.name,
        "engine": found.engine,
        "exhaustive": found.exhaustive,
        "interrupted": found.interrupted,
        "verdict": found.verdict.outcome,
        "executions": found.executions,
        "blocked": found.blocked,
        "states": found.states,
        "deliveries": found.deliveries,
        "symmetric": list(found.symmetric),
        "stands_for": found.stands_for,
        "judged": found.judged,
        "estimate": found.estimate,
        "rules": list(found.rules),
        "run": None if outcome is None else outcome_dict(outcome),
    }
