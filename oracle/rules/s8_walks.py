"""Rule S8 at each fill: what a walk finds is the entry of that page, in a table still its own.

The fill names the load that it goes back to.  If memory knew another page there, or none, the walk
went through a table that had been moved or freed.  Loads through a kept upper entry are judged in
``o_s8_page_tables``.
"""

from __future__ import annotations

from mmurace.nodes.secondary import secondaries
from mmurace.nodes.world import World
from mmurace.oracle.rules.s12_tags import Identity
from mmurace.oracle.state.kinds import kinds
from mmurace.oracle.state.live import Read, State
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol import pte as ptes
from mmurace.protocol.records import Fill


class Walks:
    """The loads that fills go back to."""

    def __init__(
        self, world: World, state: State, identity: Identity, found: list[Violation]
    ) -> None:
        self.state, self.identity, self.found = state, identity, found
        self._kinds = kinds()
        self._mm_of = {tag: mm for one in secondaries() for tag, mm in one.tags(world).items()}

    def source(self, record: Fill, node: str, n: int, message: str) -> Read | None:
        """The load that a fill in that delivery goes back to; None (and S8): it was of no entry
        of that page."""
        if record.cache in self._kinds.derived:
            parent = self.state.fills.get(record.source)
            if parent is not None:
                return parent.read
        read = self.state.reads.get(record.source)
        page = read.page if read is not None else None
        if page is not None and self._same_page(record, page.mm, page.address):
            return read
        before = self._before(record, read) if read is not None else None
        if before is None:
            why = "no entry was there" if page is None else f"it mapped {page.mm}:{page.address:#x}"
            self._foreign(record, Event(f"{record.cache} filled", n, node, message), why)
        return before

    def _same_page(self, record: Fill, mm: str, address: int) -> bool:
        if record.cache in self._kinds.by_guest_address:
            return True
        if record.cache in self._kinds.tags_reused:
            return self.identity.owned(record.tag, mm) and record.address == address
        return self._mm_of.get(record.tag, record.tag) == mm and record.address == address

    def _before(self, record: Fill, read: Read) -> Read | None:
        """What the walk has found, if its table was moved under it before its last load.

        The load then counts as one of the entry as it was before the move, so whoever moves the
        table owes the invalidation of what is made of it.  None: no such move is known.
        """
        mm = self._mm_of.get(record.tag, record.tag)
        page = self.state.pages.get((mm, record.address))
        frame = ptes.frame_of(read.pte)
        for change in reversed(page.changes if page is not None else ()):
            if ptes.hw_present(change.old) and ptes.frame_of(change.old) == frame:
                return Read(change.n - 1, read.id, change.page, change.old, read.generation)
        return None

    def _foreign(self, record: Fill, event: Event, why: str) -> None:
        mm = self._mm_of.get(record.tag, record.tag)
        self.found.append(
            Violation(
                rule="S8", agent=event.node, cache=record.cache, mm=mm, address=record.address,
                frame=ptes.frame_of(record.pte), filled=event, pte=ptes.describe(record.pte),
                racing=(event,), detail=f"the walk went through a page-table page that was not "
                f"(any more) its own: {why}",
            )
        )  # fmt: skip
