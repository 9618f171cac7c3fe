"""What a violation is about: the translation, what lies behind it, and who has to do with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from explorer.case import Case
from explorer.lenient import Moment
from explorer.reduce import events_operations
from nodes.world import World
from oracle.violation import Violation
from protocol import records as r
from protocol.limits import PAGE_SHIFT


@dataclass(frozen=True, slots=True)
class Subject:
    """What a violation is about."""

    mm: str
    address: int
    frames: frozenset[int]
    tables: frozenset[int]
    """Leaf tables that the page's entry was in."""
    agent: str
    cache: str
    parties: frozenset[str]
    """The agent and what shares its part of the machine: its VM, or its IOMMU."""
    gfns: frozenset[int]
    operations: frozenset[str]

    def concerns(self, mm: str, start: int, end: int) -> bool:
        """Whether the page is in [start, end) of an mm."""
        return mm == self.mm and start <= self.address < end


def subject_of(case: Case, violation: Violation, moments: Sequence[Moment]) -> Subject:
    """The subject of a violation in a run."""
    world = case.spec.world
    return Subject(
        violation.mm, violation.address, frozenset({violation.frame} - {-1}),
        frozenset(_tables(violation, moments)), violation.agent, violation.cache,
        frozenset(_neighbours(violation.agent, world)), frozenset(_gfns(violation, world)),
        frozenset(events_operations(violation)),
    )  # fmt: skip


def _tables(violation: Violation, moments: Sequence[Moment]) -> set[int]:
    """The tables in which the page's entry changed."""
    page = (violation.mm, violation.address)
    return {
        record.table
        for moment in moments
        for record in moment.handled.records
        if isinstance(record, r.PteChange)
        and not record.level
        and (record.mm, record.address) == page
    }


def _neighbours(agent: str, world: World) -> set[str]:
    for vm in world.vms:
        if agent == vm.name or agent in vm.vcpus:
            return {agent, vm.name}
    for unit in world.units:
        if agent in unit.devices:
            return {agent, unit.name}
    return {agent}


def _gfns(violation: Violation, world: World) -> set[int]:
    page = violation.address >> PAGE_SHIFT
    return {
        slot.gfn + page - (slot.hva >> PAGE_SHIFT)
        for vm in world.vms
        if vm.mm == violation.mm
        for slot in vm.slots
        if 0 <= page - (slot.hva >> PAGE_SHIFT) < slot.pages
    }
