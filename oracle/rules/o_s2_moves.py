"""Rules O and S2 for entries that move (mremap): the lock is the deadline.

A moved page is not freed by whoever moves it, so no free list holds its frame back: whoever next
takes the lock of the old or of the new entry may free it.  Older copies must be gone when the
first of the two locks is released (catalogue 5.3).

    cpu0 (move A to B)                  any agent                cpu1
    take the frame out at A                                      (waits for a lock)
    put the same frame in at B
                                        copy of A closed (c)
    release a lock (d)                  [Required: c happens before d]
"""

from __future__ import annotations

from typing import Final

from mmurace.nodes.secondary import secondaries
from mmurace.nodes.world import MEMORY, World
from mmurace.oracle.rules.o_s4_deadlines import Obligations
from mmurace.oracle.state.live import Cached, Change, Deadline, Op
from mmurace.oracle.state.order import Row
from mmurace.oracle.violation import Event
from mmurace.protocol.pte import frame_of

PTL_RELEASED = "the page-table lock was released"
PTL_UNLOCK = "PtlUnlock"


class Moves:
    """Finds moves in the changes, and gives them their deadline."""

    def __init__(self, world: World, obligations: Obligations) -> None:
        self.obligations = obligations
        self.shared = frozenset(
            part.name
            for one in secondaries()
            if any(cache.table == "shared" for cache in one.caches)
            for part in one.parts(world)
        )
        """Agents that walk the table that the CPUs walk."""
        self.taken: Final[dict[str, list[Change]]] = {}
        """Operation -> what it took out under a lock that it still holds."""
        self.moved: Final[dict[str, list[Change]]] = {}
        """Operation -> the same, once put in elsewhere."""
        self.seen: Final[dict[str, dict[str, int]]] = {}
        """Operation -> coroutine -> its last release of a page-table lock."""

    def took(self, change: Change) -> None:
        """An entry was taken away."""
        self.taken.setdefault(change.op.id, []).append(change)

    def put(self, op: Op, mm: str, address: int, new: int) -> None:
        """An entry was set where there was none."""
        for change in self.taken.get(op.id, ()):
            page = change.page
            if page.mm == mm and page.address != address and frame_of(change.old) == frame_of(new):
                self.moved.setdefault(op.id, []).append(change)

    def unlocked(self, op_id: str, n: int, message: str, row: Row) -> None:
        """The operation released a page-table lock: ``message``, in memory's delivery ``n``."""
        coroutine, _, index = message.rpartition(".")
        seen = self.seen.setdefault(op_id, {})
        if int(index) <= seen.get(coroutine, -1):
            return  # a repetition
        seen[coroutine] = int(index)
        self.taken.pop(op_id, None)
        if op_id in self.moved:
            self._due(self.moved.pop(op_id), Event(PTL_RELEASED, n, MEMORY, message), row)

    def _due(self, moved: list[Change], event: Event, row: Row) -> None:
        for change in moved:
            if not any(_older(fill, change, row, "tlb") for fill in change.page.fills):
                alone = Deadline("S2", event, row, change.new, self.shared)
                self.obligations.due(change, alone, row)
            self.obligations.due(change, Deadline("O", event, row, change.new), row)


def _older(fill: Cached, change: Change, row: Row, cache: str) -> bool:
    """A translation of that cache, older than the change and not known to be gone."""
    return fill.cache == cache and fill.read.n < change.n and not fill.closed_before(row)
