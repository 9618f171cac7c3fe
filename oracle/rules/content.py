"""What becomes of content: the rules of stores, copies and dirty bits (S6, S9, S16, Q3).

One party's worth of records, those of memory, handed on to the rules that need them.
"""

from __future__ import annotations

from mmurace.oracle.rules.q3_content import Content
from mmurace.oracle.rules.s6_private_pages import PrivatePages
from mmurace.oracle.rules.s9_discards import Discards
from mmurace.oracle.rules.s9_s16_files import FilePages
from mmurace.oracle.rules.s9_stores import LostStores
from mmurace.oracle.rules.s9_successors import Successors
from mmurace.oracle.rules.s16_dirty import DirtyBits
from mmurace.oracle.state.live import Cached, Op, Page, State
from mmurace.oracle.state.order import Row
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol import records as r


class MemoryRules:
    """Hands memory's records on."""

    def __init__(self, state: State, found: list[Violation]) -> None:
        self.stores = LostStores(found)
        self.discards = Discards(state, found)
        self.content = Content(found)
        self.dirty = DirtyBits(found)
        self.successors = Successors(found)
        self.files = FilePages(found)
        self.private = PrivatePages(found)

    def changed(self, op: Op, page: Page, old: int, new: int, event: Event) -> None:
        """A leaf entry changed."""
        self.dirty.changed(op, page, old, new, event)
        self.files.changed(op, page, old, new, event)
        self.successors.changed(op, page, old, new, event)
        self.discards.changed(op, page, old, new)
        self.private.changed(op, page, old, new, event)
        if not old:
            self.discards.published(page)

    def published(self, op: Op, page: Page, new: int) -> None:
        """The entry changed, and what that took out is among the page's changes."""
        self.stores.published(op, page, new)

    def allocated(self, record: r.FrameAllocated) -> None:
        """A frame left the pool."""
        self.content.allocated(record)
        self.successors.allocated(record)
        self.private.allocated(record)

    def freed(self, frame: int, event: Event) -> None:
        """A frame went back to the pool."""
        self.content.freed(frame)
        self.successors.filled(frame)
        self.stores.freed(frame)
        self.dirty.freed(frame, event)
        self.files.freed(frame)
        self.private.freed(frame)

    def copied(self, record: r.FrameCopied, op: Op, event: Event) -> None:
        """A frame was copied."""
        self.content.copied(record)
        self.successors.filled(record.target)
        self.stores.copied(op, record.source, record.target, event)
        self.dirty.copied(op, record.source, record.target)

    def given_up(self, record: r.PageLazyfree) -> None:
        """``MADV_FREE`` came to a page."""
        page = self.discards.state.pages.get((record.mm, record.address))
        if page is not None:
            self.discards.given_up(page)

    def discarded(self, record: r.PageDiscarded, event: Event) -> None:
        """Reclaim dropped a page unwritten."""
        self.discards.discarded(record, event)
        self.successors.discarded(record)
        page = self.discards.state.pages.get((record.mm, record.address))
        self.dirty.discarded(record.frame, page)

    def written(self, record: r.PageWritten, op: Op, event: Event) -> None:
        """A frame was written to swap."""
        self.content.written(record)
        self.stores.written(op, record.frame, record.slot, event)
        self.dirty.written(record.frame)

    def read_in(self, record: r.PageRead) -> None:
        """A swap slot was read into a frame."""
        self.content.read_in(record)
        self.successors.filled(record.frame)

    def file_read(self, record: r.FilePageRead) -> None:
        """A page of a file was read into a frame."""
        self.content.file_read(record)
        self.successors.filled(record.frame)
        self.files.read_in(record)

    def file_migrated(self, record: r.FilePageMigrated) -> None:
        """A page of a file has another frame."""
        self.files.migrated(record)
        self.private.of_file(record.new)

    def file_written(self, record: r.FilePageWritten) -> None:
        """A frame was written to the disk."""
        self.content.file_written(record)
        self.dirty.written(record.frame)
        self.files.written(record.frame)

    def file_sized(self, record: r.FileSized) -> None:
        """A file became longer or shorter."""
        self.content.sized(record)
        self.files.sized(record)

    def accessed(self, fill: Cached | None, record: r.Access, event: Event, row: Row) -> None:
        """A word was read or written, through a translation unless it was the kernel itself."""
        self.content.accessed(record, event)
        if fill is not None and record.write:
            self.stores.stored(fill, record.frame, event)
            self.files.stored(fill, record.frame, event)
            self.discards.stored(fill, event, row)

    def ended(self, op: Op, n: int) -> None:
        """An operation returned."""
        self.dirty.ended(op)
        self.discards.ended(op, n)
