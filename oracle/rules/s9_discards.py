"""Rule S9 for pages that reclaim throws away: ``MADV_FREE`` gives up what is there, not what comes.

    cpu0                                any agent               cpu1 (reclaim)
    MADV_FREE: entry clean
    returns
                                        stores (s)
                                                                decides to discard (d)
                                        [Required: s is seen to have made it dirty, so no d]

A store that the return does not happen before may be given up with the rest.  What was given up is
a page and not its address: it goes along when it is moved, and is no more once it was unmapped.
"""

from __future__ import annotations

from mmurace.oracle.state.live import Cached, Op, Page, State
from mmurace.oracle.state.order import Row
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.limits import ORACLE_LAZYFREE_KEPT
from mmurace.protocol.pte import describe, frame_of, names_page
from mmurace.protocol.ranges import covers, page_align, page_of
from mmurace.protocol.records import PageDiscarded

MADVISE_FREE = "MadviseFree"
MOVING = frozenset({
    "Munmap", "Mremap", "MadviseDontneed", "Mmap", "Brk", "Exit", "Execve", "Truncate",
})  # fmt: skip
"""Operations after which another page may be mapped where the one was that was given up."""


class _Given:
    """A page that was given up."""

    __slots__ = ("index", "n", "stored")

    def __init__(self, index: int, n: int) -> None:
        self.index, self.n = index, n
        """Where and when the operation returned."""
        self.stored: tuple[Cached, Event] | None = None


class Discards:
    """Pages given up, and the first store to each since."""

    def __init__(self, state: State, found: list[Violation]) -> None:
        self.state, self.found = state, found
        self._given: dict[Page, _Given] = {}
        self._discarded: dict[Page, Event] = {}
        """Pages that reclaim took, until something else is mapped there."""
        self._moving: dict[tuple[Op, int], _Given] = {}
        """Frame that an operation has taken out of its entry, and may put in elsewhere."""

    def ended(self, op: Op, n: int) -> None:
        """An operation returned."""
        if self._moving:
            self._moving = {at: given for at, given in self._moving.items() if at[0] is not op}
        if op.kind != MADVISE_FREE:
            return
        for page in self.state.pages.values():
            if _is_in(op, page):
                self._given.pop(page, None)
                self._given[page] = _Given(op.index, n)
        for kept in (self._given, self._discarded):
            while len(kept) > ORACLE_LAZYFREE_KEPT:
                del kept[next(iter(kept))]

    def given_up(self, page: Page) -> None:
        """Whatever is stored there until this one, too, has returned, somebody gives up.

        No entry need change for that: one is clean already while the page is dirty, if a device
        that mirrors it has marked it.
        """
        self._given.pop(page, None)

    def changed(self, op: Op, page: Page, old: int, new: int) -> None:
        """A page is moved."""
        if op.kind in MOVING and (self._given or self._moving):
            self._moved(op, page, old, new)

    def _moved(self, op: Op, page: Page, old: int, new: int) -> None:
        given = self._given.pop(page, None)
        if given is not None and names_page(old) and not new:
            self._moving[op, frame_of(old)] = given
        given = self._moving.pop((op, frame_of(new)), None) if names_page(new) else None
        if given is not None:
            self._given[page] = given

    def stored(self, fill: Cached, event: Event, row: Row) -> None:
        """A store reached memory through a translation."""
        given = self._given.get(fill.read.page) if self._given else None
        if given is not None and given.stored is None and row[given.index] >= given.n:
            given.stored = fill, event
            self._judge(fill.read.page, given)

    def discarded(self, record: PageDiscarded, event: Event) -> None:
        """Reclaim threw a page away."""
        page = self.state.pages.get((record.mm, record.address))
        if page is not None:
            self._discarded[page] = event
            given = self._given.get(page)
            if given is not None:
                self._judge(page, given)

    def published(self, page: Page) -> None:
        """Something is mapped there: after a discard, another page."""
        if self._discarded and self._discarded.pop(page, None) is not None:
            self._given.pop(page, None)

    def _judge(self, page: Page, given: _Given) -> None:
        discarded = self._discarded.get(page)
        if given.stored is None or discarded is None:
            return
        fill, event = given.stored
        del self._given[page]
        self.found.append(
            Violation(
                rule="S9", agent=fill.agent, cache=fill.cache, mm=page.mm, address=page.address,
                frame=fill.frame, filled=fill.event(), read=fill.read.event(),
                pte=describe(fill.read.pte), deadline=discarded, racing=(event, discarded),
                detail=f"stored into frame {fill.frame:#x} after MADV_FREE had returned, and the "
                "page was discarded: the store is lost",
            )
        )  # fmt: skip


def _is_in(op: Op, page: Page) -> bool:
    start, end = page_of(op.start), op.start + page_align(op.end - op.start)
    return page.mm == op.tag and covers(start, end, page.address)
