"""What a hunt finds: a violation, cut down in program and schedule, and what it is called.

Two findings are the same if the rule is and the functions that raced.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from mmurace.broker.schedules import Schedule
from mmurace.campaign.hunt.draft import in_order
from mmurace.campaign.hunt.race_file import race_text
from mmurace.explorer.run.schedule_file import Loaded, case_of_run, schedule_text
from mmurace.explorer.run.session import simulate
from mmurace.explorer.shrink.case import Case, Target
from mmurace.explorer.shrink.minimize import Minimized, minimize_quickly
from mmurace.explorer.shrink.play import How, play
from mmurace.nodes.secondary import caches
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.envelope import operation_of
from mmurace.protocol.errors import EmulatorError
from mmurace.protocol.messages.program import Operation
from mmurace.scenarios.operations import op_name, operations
from mmurace.scenarios.spec import RunSpec

TRIES: Final = 250
"""Tries of cutting one down: a second or two."""


class Finding(msgspec.Struct, frozen=True):
    """One, as it is kept."""

    rule: str
    agent: str
    cache: str
    functions: tuple[str, ...]
    """Who took the translation away, or did the first of two things, and who raced with it."""
    operation: str
    """The kind of operation that took it away."""
    text: str
    """The violation in one line."""
    program: int
    """The index of the program that showed it."""
    operations: int
    deliveries: int
    switches: int
    race: str
    """The text of its race's file."""
    schedule: str
    """The text of its schedule's file."""

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from others."""
        return (self.rule, *self.functions)

    @property
    def name(self) -> str:
        """What its files are called, without an ending."""
        return re.sub(r"[^A-Za-z0-9_]+", "-", "-".join(self.key)).strip("-").lower()


def cut_down(
    spec: RunSpec, schedule: Schedule, target: Target, program: int, deliveries_max: int
) -> Finding | None:
    """The violation of ``target`` that ``schedule`` shows, as short as few tries make it.

    None if it does not show it again.  Raises ``KeyboardInterrupt``.
    """
    case = _recorded(spec, schedule, deliveries_max)
    played = play(case, How(target))
    if played.found is None:
        return None
    case = replace(case, order=played.order)
    found = minimize_quickly(Loaded(case, target, played), TRIES, _is_legal)
    return finding_of(found, program)


def _is_legal(case: Case) -> bool:
    """Nobody loses what it needs because the operations between were cut out."""
    return in_order(case.programs, case.spec.world)


def _recorded(spec: RunSpec, schedule: Schedule, deliveries_max: int) -> Case:
    with tempfile.TemporaryDirectory(prefix="hunt-") as directory:
        run = Path(directory)
        spec = replace(spec, sometimes=()).save(run)
        outcome = simulate(spec, run, schedule, deliveries_max)
        if outcome.status == "broken":
            raise EmulatorError(f"what was found cannot be recorded: {outcome.detail}")
        case, _ = case_of_run(run)
    return case


def finding_of(found: Minimized, program: int) -> Finding:
    """What is kept of it."""
    case, violation = found.case, found.played.found
    assert violation is not None
    functions = functions_of(violation, case.kinds())
    return Finding(
        violation.rule, violation.agent, violation.cache, functions, found.target.operation,
        violation.text(), program, found.after.operations, found.after.deliveries,
        found.after.switches, race_text(case, violation, functions),
        schedule_text(case, found.target),
    )  # fmt: skip


def functions_of(violation: Violation, kinds: Mapping[str, str]) -> tuple[str, ...]:
    """The kernel functions that raced; ``kinds``: operation -> the class name of its message."""
    first = violation.changed or next(iter(violation.racing), None)
    names = [_changes(first, kinds)] if first is not None else []
    known = caches().get(violation.cache)
    if known is not None and known.filled_by:
        names.append(known.filled_by)
    else:
        names += [_function(event, kinds) for event in _others(violation, first)][-1:]
    return tuple(dict.fromkeys(filter(None, names)))


def _others(violation: Violation, first: Event | None) -> Iterable[Event]:
    """The other side of the race."""
    mine = operation_of(first.id) if first is not None else ""
    named = (*violation.racing, violation.filled, violation.deadline)
    return [e for e in named if e is not None and operation_of(e.id) != mine]


def _kind(event: Event, kinds: Mapping[str, str]) -> type[Operation] | None:
    name = kinds.get(operation_of(event.id), "")
    return next((kind for kind in operations().values() if kind.__name__ == name), None)


def _changes(event: Event, kinds: Mapping[str, str]) -> str:
    kind = _kind(event, kinds)
    return "" if kind is None else kind.CHANGES or kind.FUNCTION or op_name(kind)


def _function(event: Event, kinds: Mapping[str, str]) -> str:
    kind = _kind(event, kinds)
    return "" if kind is None else kind.FUNCTION or op_name(kind)
