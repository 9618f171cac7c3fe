"""What a violation is about: the translation, what lies behind it, and who has to do with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmurace.explorer.shrink.case import Case
from mmurace.explorer.shrink.play import Moment
from mmurace.explorer.shrink.smaller import events_operations
from mmurace.nodes.world import World
from mmurace.oracle.violation import Violation
from mmurace.protocol import records as r
from mmurace.protocol.limits import PAGE_SHIFT


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
    """The agent, and the part of the machine that it belongs to."""
    own_pages: frozenset[int]
    """What the agent calls the page, if it has names of its own for pages."""
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
        frozenset(_neighbours(violation.agent, world)), frozenset(_own_pages(violation, world)),
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
    part = world.part_of(agent)
    return {agent, part.name} if part is not None else {agent}


def _own_pages(violation: Violation, world: World) -> set[int]:
    """Own page numbers of secondaries for the page in question."""
    return {
        (own + violation.address - host) >> PAGE_SHIFT
        for part in world.parts
        for mm, own, host, size in part.ranges()
        if mm == violation.mm and host <= violation.address < host + size
    }
