"""What cures a schedule: every switch of the kernel at every other value.

A switch that only adds or leaves out a delivery moves the schedule to where it fails no more, and
cures nothing.  So what is safe under the very schedule is asked again under others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from mmurace.explorer.sample.explore import Options, explore
from mmurace.explorer.shrink.case import Case, Target
from mmurace.explorer.shrink.play import How, play
from mmurace.explorer.shrink.smaller import with_world
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.kernel.variant.switch import Value, fields
from mmurace.protocol.errors import UserError

SCHEDULES: Final = 200
"""Other schedules of the same programs under which a cure must hold."""
LONGER: Final = 20
"""Such a schedule is cut off at so many times the deliveries of the one that fails."""


@dataclass(frozen=True, slots=True)
class Cure:
    """A kernel switch at another value."""

    switch: str
    value: Any
    usual: Any
    safe: bool
    """The very schedule violates nothing."""
    detail: str
    held: int = 0
    """So many other schedules were run and violated nothing; 0: none was, or one did."""
    breaks: str = ""
    """The rule that another schedule breaks."""


def cures_of(case: Case, target: Target) -> tuple[list[Cure], int]:
    """Every switch at every other value, what holds first; and how many contradict the kernel."""
    cures, contradictory = [], 0
    for switch, value in other_values(case.spec.world.kernel):
        kernel = case.spec.world.kernel.replace(**{switch: value})
        try:
            kernel.validate(switch)
        except UserError:
            contradictory += 1
            continue
        cures.append(_cure(case, target, kernel, switch))
    return sorted(cures, key=lambda cure: bool(cure.breaks)), contradictory


def other_values(kernel: Kernel) -> Iterator[tuple[str, Value]]:
    """(switch, value) for every value that a switch does not have now."""
    usual = kernel.switches()
    for field in fields():
        for value in field.values:
            if value != usual[field.name]:
                yield field.name, value


def _cure(case: Case, target: Target, kernel: Kernel, switch: str) -> Cure:
    """The same schedule on another kernel: as it was, and with what is new in its turn."""
    usual = case.spec.world.kernel.switches()[switch]
    changed = with_world(case, msgspec.structs.replace(case.spec.world, kernel=kernel))
    broken: list[str] = []
    followed = len(case.order)
    for eager in (False, True):
        played = play(changed, How(target, stop=False, eager=eager))
        broken += [v.rule for v in played.violations]
        followed = min(followed, len(set(case.order) & set(played.order)))
    rules = ", ".join(dict.fromkeys(broken))
    detail = f"breaks {rules}" if broken else f"{followed} of {len(case.order)} deliveries kept"
    cure = Cure(switch, kernel.switches()[switch], usual, not broken, detail)
    return cure if broken else _under_others(cure, changed)


def _under_others(cure: Cure, case: Case) -> Cure:
    """Asked again under other schedules; deaths and faults are in none, so they tell nothing."""
    if case.deaths or case.faults:
        return cure
    found = explore(case.spec, Options(
        schedules=SCHEDULES, deliveries_max=LONGER * max(1, len(case.order)),
    ))  # fmt: skip
    if found.finding is None:
        return replace(cure, held=found.schedules)
    return replace(cure, breaks=found.finding.violations[0].rule)
