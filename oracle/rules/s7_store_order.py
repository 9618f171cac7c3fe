"""Rule S7: nobody sees a later store and then misses an earlier one.

The frames of two pages A and B are replaced (COW), and old translations of them linger:

    cpu2                cpu3                device
    stores to new A
                        stores to new B     [after it has heard of the store to A]
                                            reads B through the new frame: the store is there
                                            reads A [Required: not through the old frame]
"""

from __future__ import annotations

from mmurace.oracle.state.live import Cached, Change, Op, Page
from mmurace.oracle.state.order import Row
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.limits import ORACLE_REPLACED_KEPT
from mmurace.protocol.pte import describe, frame_of
from mmurace.protocol.records import Access


class Replaced:
    """A page whose frame was replaced, and the first store to the new one."""

    __slots__ = ("before", "change", "ended", "index", "new", "op_id", "serial", "stored", "word")

    def __init__(self, change: Change, new: int, serial: int) -> None:
        self.change, self.new, self.serial = change, frame_of(new), serial
        self.stored: Event | None = None
        self.op_id, self.word = "", -1
        """The operation of the first store, and its word."""
        self.index = self.ended = 0
        """Where and when that operation ended; 0: it has not."""
        self.before: frozenset[int] = frozenset()
        """Serials of those whose first store happens before this page's.

        Numbers, because each of them has such a set of its own, back to the first of the run."""

    def known_in(self, row: Row) -> bool:
        """Whether the end of the first store's operation happens before the delivery of row."""
        return 0 < self.ended <= row[self.index]


class Coherence:
    """Follows the pages replaced last."""

    def __init__(self, found: list[Violation]) -> None:
        self.found = found
        self.pages: dict[Page, Replaced] = {}
        """Those followed; nothing is to be told to this rule before there is one."""
        self.stores: dict[str, list[Replaced]] = {}
        """Operation in flight -> pages to which it was the first to store."""
        self._issued: dict[str, frozenset[int]] = {}
        """Access in flight to a page replaced -> the stores that happen before its issue."""
        self._serial = 0
        self._seen: dict[str, list[Replaced]] = {}
        """Program -> pages of which it has read the new content."""

    def replaced(self, change: Change, new: int) -> None:
        """An operation maps another frame where it took one away."""
        self.pages.pop(change.page, None)
        self._serial += 1
        self.pages[change.page] = Replaced(change, new, self._serial)
        if len(self.pages) > ORACLE_REPLACED_KEPT:
            del self.pages[next(iter(self.pages))]

    def issued(self, fill: Cached, access: str, row: Row) -> None:
        """An access goes out through a translation."""
        page = self.pages.get(fill.read.page)
        if page is not None and page.stored is None:
            followed = self.pages.values()
            self._issued[access] = frozenset(p.serial for p in followed if p.known_in(row))

    def accessed(self, fill: Cached, record: Access, op_id: str, event: Event) -> None:
        """It reached memory."""
        before = self._issued.pop(event.id, frozenset())
        page = self.pages.get(fill.read.page)
        if page is None:
            return
        program = op_id.rpartition("/")[0]
        if record.frame != page.new:
            if not record.write and fill.read.n < page.change.n:
                self._read_old(fill, page, program, event)
        elif page.stored is None:
            if record.write:
                page.stored, page.op_id, page.word, page.before = event, op_id, record.word, before
                self.stores.setdefault(op_id, []).append(page)
        elif not record.write and record.word == page.word:
            self._read_new(page, program)

    def _read_new(self, page: Replaced, program: str) -> None:
        kept = [p for p in self._seen.get(program, ()) if self.pages.get(p.change.page) is p]
        self._seen[program] = kept if page in kept else [*kept, page]

    def _read_old(self, fill: Cached, page: Replaced, program: str, event: Event) -> None:
        later = next((b for b in self._seen.get(program, ()) if page.serial in b.before), None)
        if later is not None and "S7" not in fill.reported:
            fill.reported.add("S7")
            self.found.append(_report(fill, page, later, event))

    def ended(self, op: Op, n: int) -> None:
        """The operation is over: whoever hears of that has heard of its stores."""
        for page in self.stores.pop(op.id):
            page.index, page.ended = op.index, n


def _report(fill: Cached, page: Replaced, later: Replaced, event: Event) -> Violation:
    change, other = page.change, later.change.page
    return Violation(
        rule="S7", agent=fill.agent, cache=fill.cache, mm=fill.read.page.mm,
        address=fill.read.page.address, frame=fill.frame, filled=fill.event(),
        read=fill.read.event(), pte=describe(fill.read.pte), changed=change.event(),
        change=f"frame {frame_of(change.old):#x} -> frame {page.new:#x}", owed=change.op.text(),
        racing=(page.stored or event, event),
        detail=f"read through the old frame after a later store to {other.mm}:{other.address:#x} "
        f"was seen; {change.op.text()} owed its invalidation",
    )  # fmt: skip
