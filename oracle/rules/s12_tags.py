"""Rule S12, and rule O for tags: a translation is used only for the mm that it was made for.

A tag (a PID) tells the translations of one address space from those of another, and numbers are
few: they are given out again at once.  Two things must hold, and the first is owed for the second.

    link                                memory                      whoever takes the tag back
    filled under the tag, for mm0
    (x)
    x closed (c)
                                        the tag is free (d)         [Required: c happens before d]
                                        the tag is mm1's
    access for mm1 under the tag        [Required: not through x]

The access is judged by the operation that makes it: it is for one mm, and what it reaches memory
through was filled from the page table of one mm.  So a context that still leads to another
process's tag is found as well.
"""

from __future__ import annotations

from mmurace.nodes.secondary import secondaries
from mmurace.nodes.world import World
from mmurace.oracle.state.live import Cached, Op, State
from mmurace.oracle.state.order import Row
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol import pte as ptes
from mmurace.protocol.records import TagAlloc, TagFree


class Identity:
    """Who owns and owned the tags."""

    def __init__(self, world: World, state: State, found: list[Violation]) -> None:
        self.state, self.found = state, found
        self._owner = {
            tag: mm
            for one in secondaries()
            if any(cache.tags_reused for cache in one.caches)
            for tag, mm in one.tags(world).items()
        }
        self.tags = set(self._owner.items())
        """Every (tag, mm) of which the tag is or was that mm's."""
        self._freed: dict[str, Event] = {}
        """mm -> when its last tag was taken back."""

    def mm_of(self, tag: str) -> str:
        """Whose translations a tag marks: its owner's, or the mm of that name."""
        return self._owner.get(tag, tag)

    def owned(self, tag: str, mm: str) -> bool:
        """Whether the tag is or was that mm's."""
        return (tag, mm) in self.tags

    def allocated(self, record: TagAlloc) -> None:
        """A tag has an owner."""
        self._owner[record.tag] = record.mm
        self.tags.add((record.tag, record.mm))

    def freed(self, record: TagFree, op: Op, event: Event, row: Row) -> None:
        """A tag has none any more: nothing may be left under it."""
        self._freed[record.mm] = event
        for fill in self.state.fills.values():
            left = fill.cache in self.state.kinds.tags_reused and fill.read.page.mm == record.mm
            if left and not fill.closed_before(row):
                self.found.append(_left_behind(fill, record.tag, op, event))

    def accessed(self, fill: Cached, op: Op, event: Event) -> None:
        """An access of an operation reached memory through ``fill``."""
        mm = fill.read.page.mm
        if (
            not op.tag
            or op.tag == mm
            or fill.cache in self.state.kinds.shadow
            or "S12" in fill.reported
        ):
            return
        fill.reported.add("S12")
        self.found.append(_for_another(fill, op, self._freed.get(mm), event))


def _left_behind(fill: Cached, tag: str, op: Op, event: Event) -> Violation:
    page = fill.read.page
    return Violation(
        rule="O", agent=fill.agent, cache=fill.cache, mm=page.mm, address=page.address,
        frame=fill.frame, filled=fill.event(), read=fill.read.event(),
        pte=ptes.describe(fill.read.pte), owed=op.text(), deadline=event,
        racing=(fill.event(), event),
        detail=f"still held when {tag} was taken back from {page.mm}; {op.text()} owed its "
        "invalidation",
    )  # fmt: skip


def _for_another(fill: Cached, op: Op, freed: Event | None, event: Event) -> Violation:
    page = fill.read.page
    return Violation(
        rule="S12", agent=fill.agent, cache=fill.cache, mm=page.mm, address=page.address,
        frame=fill.frame, filled=fill.event(), read=fill.read.event(),
        pte=ptes.describe(fill.read.pte), deadline=freed,
        racing=(freed or fill.event(), event),
        detail=f"{op.text()}, which is for {op.tag}, went through a translation of {page.mm}",
    )  # fmt: skip
