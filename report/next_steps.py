"""What to do about a violation: the commands that go on from it, ready to be pasted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mmurace.explorer.run.outcome import Outcome
from mmurace.oracle.violation import Violation
from mmurace.report import formats
from mmurace.report.arguments import known_commands
from mmurace.scenarios.catalogue import id_in_run_name

WHAT: Final = {
    "minimize": "the shortest schedule that fails",
    "explain": "why it fails",
    "report": "a page to look at",
    "step": "delivery by delivery, forwards and back",
}
"""What is done with a run, in the order in which people want it."""


def next_steps(violation: Violation, name: str, source: Path | None) -> Iterator[str]:
    """Commands with what they show: of the rule, of the race, of what was recorded.

    ``name`` is that of the run, ``source`` its directory or a schedule file.
    """
    shown = [violation.rule, id_in_run_name(name)]
    commands = [("show", one, what) for one, what in zip(shown, _SHOWN, strict=True) if one]
    if source is not None:
        there = known_commands()
        commands += [(word, str(source), what) for word, what in WHAT.items() if word in there]
    return (f"{formats.command(word, about)}  # {what}" for word, about, what in commands)


_SHOWN: Final = ("the rule that was broken", "the race, with its kernels and sources")


def steps_after(outcome: Outcome, chosen: Violation | None) -> Iterator[str]:
    """Those after a run; none if nothing was broken."""
    if chosen is None:
        return iter(())
    recorded = outcome.run_dir if outcome.ending.deliveries else None
    return next_steps(chosen, outcome.spec.name, recorded)
