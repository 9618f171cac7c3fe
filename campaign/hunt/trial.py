"""One program, tried: its schedules, what they went through, what they broke.

A trial is determined by its task; it knows nothing of other trials but what the task says, so that
it can run in any process.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from mmurace.broker.schedules import Schedule
from mmurace.campaign.hunt.draft import Draft
from mmurace.campaign.hunt.finding import Finding, cut_down
from mmurace.explorer.run.schedule_file import case_from
from mmurace.explorer.sample.coverage import points_of
from mmurace.explorer.sample.explore import COLLECT_EVERY, run_schedule
from mmurace.explorer.sample.policies import Policies
from mmurace.explorer.shrink.case import Target, target_of
from mmurace.explorer.shrink.play import How, attempt
from mmurace.nodes import plugins
from mmurace.nodes.driver import draw
from mmurace.nodes.kernel.variant import Kernel
from mmurace.oracle.oracle import Oracle
from mmurace.oracle.sometimes import window_conditions
from mmurace.protocol.errors import PluginError
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.tables import parse_toml
from mmurace.scenarios.workloads import Script

DELIVERIES_MAX: Final = 20_000
"""A schedule is cut off there: small programs need some hundreds."""
PROBES: Final = 24
"""Schedules after which a program is given up if nobody was inside a window, and nothing broke."""
INSIDE: Final = "inside "
"""What a point begins with that says in whose window somebody was."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a trial needs; plain values, for another process."""

    index: int
    seed: int
    """Of the hunt."""
    draft: Draft
    schedules: int
    known: frozenset[Target]
    """Bugs that are found already, or are no news."""
    against: Kernel | None = None
    """What this one shows too is no news."""


@dataclass(frozen=True, slots=True)
class Shown:
    """The first schedule that showed a bug, not begun yet."""

    spec: RunSpec
    schedule: Schedule


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of it."""

    index: int
    schedules: int
    deliveries: int
    points: tuple[str, ...]
    """What its runs went through, in words."""
    windows: int
    """Schedules with somebody inside a window."""
    bugs: tuple[Target, ...]
    """What was broken."""
    both: tuple[Target, ...]
    """Of that, what the other kernel breaks too."""
    shown: tuple[tuple[Target, Shown], ...]
    """What is to be cut down, if it is still news."""
    broke: str = ""
    """What went wrong in the emulator itself: nothing is known of the program then."""


@dataclass(slots=True)
class _Seen:
    """What the schedules of one program on one kernel showed."""

    schedules: int = 0
    deliveries: int = 0
    windows: int = 0
    points: frozenset[str] = frozenset()
    bugs: dict[Target, Shown] = field(default_factory=dict)


def spec_of(index: int, seed: int, draft: Draft) -> RunSpec:
    """The run of a program, with windows counted."""
    kinds = {type(operation).__name__ for operation in draft.operations()}
    counted = window_conditions(kinds, draft.world, frozenset())
    seeded = draw(seed, f"hunt/program/{index}") >> 1
    script = Script(draft.programs())
    return RunSpec(f"hunt-{index}", draft.world, seeded, script, sometimes=counted)


def tried(task: Task) -> Tried:
    """Run a task.  Raises ``KeyboardInterrupt``, and ``PluginError`` if a plug-in is wrong."""
    try:
        with plugins.at_fault():
            return _tried(task)
    except PluginError:
        raise
    except Exception as error:
        broke = f"{type(error).__name__}: {error}"
        return Tried(task.index, 0, 0, (), 0, (), (), (), broke)


def _tried(task: Task) -> Tried:
    spec = spec_of(task.index, task.seed, task.draft)
    seen = _run(spec, task.schedules, probing=True)
    fresh = [bug for bug in seen.bugs if bug not in task.known]
    both: list[Target] = []
    if fresh and task.against is not None:
        other = _run(_on(spec, task.against), task.schedules)
        both = [bug for bug in fresh if bug in other.bugs]
        fresh = [bug for bug in fresh if bug not in other.bugs]
    return Tried(
        task.index, seen.schedules, seen.deliveries, tuple(sorted(seen.points)), seen.windows,
        tuple(seen.bugs), tuple(both), tuple((bug, seen.bugs[bug]) for bug in fresh),
    )  # fmt: skip


def _run(spec: RunSpec, schedules: int, probing: bool = False) -> _Seen:
    """The schedules of one program on one kernel.

    ``probing``: only a few, if nobody gets into a window by then and nothing breaks.
    """
    policies, seen, kinds = Policies("portfolio", spec.seed), _Seen(), _kinds(spec)
    for index in range(schedules):
        if probing and index == PROBES and not seen.windows and not seen.bugs:
            break
        schedule = policies.schedule(index)
        seeded = spec.with_seed(policies.node_seed(index))
        trial = run_schedule(seeded, schedule, DELIVERIES_MAX, signed=False)
        points = frozenset(_points(trial.oracle))
        seen.schedules += 1
        seen.deliveries += trial.deliveries
        seen.points |= points
        seen.windows += any(point.startswith(INSIDE) for point in points)
        for violation in trial.oracle.violations:
            bug = target_of(violation, spec.world, kinds)
            if bug not in seen.bugs:
                seen.bugs[bug] = Shown(seeded, policies.schedule(index))
        policies.finished(schedule)
        if index % COLLECT_EVERY == 0:
            gc.collect()
    return seen


def _kinds(spec: RunSpec) -> dict[str, str]:
    return {
        f"{program.name}/{at}": type(step.operation).__name__
        for program in spec.programs()
        for at, step in enumerate(program.steps)
    }


def _points(oracle: Oracle) -> list[str]:
    """What a run went through, in words."""
    found = list(points_of(oracle.statistics))
    if oracle.windows is not None:
        entered = oracle.windows.entered.items()
        found += [f"{INSIDE}{kind}: {cache}" for (kind, cache), count in entered if count]
    return found


def _on(spec: RunSpec, kernel: Kernel) -> RunSpec:
    """The same run on another kernel."""
    return replace(spec, world=msgspec.structs.replace(spec.world, kernel=kernel))


def finding_in(shown: Shown, bug: Target, program: int) -> Finding | None:
    """A bug, cut down; None if it does not show again.  Raises ``KeyboardInterrupt``."""
    return cut_down(shown.spec, shown.schedule, bug, program, DELIVERIES_MAX)


def shows(kernel: Kernel, finding: Finding, schedules: int) -> bool:
    """Whether what is left of a finding breaks the same on another kernel."""
    case, bug = case_from(parse_toml(finding.schedule, "finding"), "finding", Path())
    other = replace(case, spec=_on(case.spec, kernel))
    again = (attempt(other, How(bug, eager=eager)) for eager in (False, True))
    return any(again) or bug in _run(other.spec, schedules).bugs
