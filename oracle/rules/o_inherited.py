"""Rule O for what others took away: an operation that finds entries cleared already.

A zap promises that nothing reaches its range through an older copy when it returns, whoever
cleared the entries.  One that finds them cleared but not flushed inherits the obligation, with a
deadline of its own (catalogue 5.3): that is what a count of gathers in flight is for.

    cpu0 (zap)              any agent               cpu1 (zap of the same page)
                            holds a copy
    clear the entry (e)
                                                    takes the PTL: the entry is none
                            copy closed (c)
                                                    returns (d)   [Required: c happens before d]
    flush; free; return
"""

from __future__ import annotations

from collections.abc import Iterable

from mmurace.oracle.rules.o_s4_deadlines import Obligations
from mmurace.oracle.state.live import Change, Deadline, Op, Page, State
from mmurace.oracle.state.order import Row
from mmurace.oracle.violation import Event
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.ranges import covers, page_align, page_of
from mmurace.protocol.records import FlushDeferred

PTL_LOCK = "PtlLock~"

ZAPS = frozenset({"Munmap", "MadviseDontneed", "MadviseFree", "Brk"})
"""Operations that inherit, and from each other: they flush whatever is left to flush."""

LOOK = ZAPS | {"Mprotect", "Mremap"}
"""Operations that inherit from reclaim: they decide by what they find in entries."""

LEAVE = ZAPS | {"Truncate", "Mmap"}
"""Operations that leave entries cleared and not flushed for a while."""


class Inherited:
    """What an operation found cleared, and by when copies of it must be gone."""

    def __init__(self, state: State, obligations: Obligations) -> None:
        self.state, self.obligations = state, obligations
        self.first: dict[str, int] = {}
        """Operation -> memory's delivery that granted its first page-table lock."""

    def locked(self, op: Op, n: int) -> None:
        """The operation got a page-table lock: what was cleared up to ``n``, it will see."""
        if op.kind in LOOK:
            self.first.setdefault(op.id, n)

    def deferred(self, record: FlushDeferred) -> None:
        """Reclaim left an entry that it has cleared for others to see, and flushes later."""
        page = self.state.pages.get((record.mm, record.address))
        for change in page.changes if page is not None else ():
            change.deferred |= change.op.id == record.op

    def ended(self, op: Op, event: Event, row: Row) -> None:
        """The operation returned."""
        first = self.first.pop(op.id, None)
        if first is None:
            return
        for page in self._pages(op):
            for change in page.changes:
                if change.n <= first and _left_by_another(change, op):
                    self.obligations.due(change, Deadline("O", event, row, change.new), row)

    def _pages(self, op: Op) -> Iterable[Page]:
        start, end = page_of(op.start), op.start + page_align(op.end - op.start)
        if (end - start) // PAGE_SIZE > len(self.state.pages):
            return [
                page
                for (mm, address), page in self.state.pages.items()
                if mm == op.tag and covers(start, end, address)
            ]
        known = (self.state.pages.get((op.tag, at)) for at in range(start, end, PAGE_SIZE))
        return [page for page in known if page is not None]


def _left_by_another(change: Change, op: Op) -> bool:
    if change.op is op or change.op.ended:
        return False
    return change.deferred or (op.kind in ZAPS and change.op.kind in LEAVE)
