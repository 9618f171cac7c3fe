"""Rules S9 and S16 for pages of files: what reclaim drops is on the disk.

    any agent                           cpu0 (reclaim)
    store (s), heard of or not
                                        write the page (w)
                                        out of the page cache (d)
                                        [Required: no s between w and d, nor after d; and if an
                                        entry that was taken out before d was dirty, w comes after]

Whoever asks for the page after d gets what was written.  What is beyond the end of the file when it
is dropped, nobody asks for.  All this happens at one memory, so its numbers decide.
"""

from __future__ import annotations

from mmurace.oracle.state.live import Cached, Op, Page
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.limits import PAGE_SHIFT, ULONG_MAX
from mmurace.protocol.pte import DIRTY, describe, frame_of, pte_present
from mmurace.protocol.records import FilePageDropped, FilePageMigrated, FilePageRead, FileSized

Stored = tuple[Cached, Event]
"""A store: through which translation, and when."""
Taken = tuple[Op, Page, int, Event]
"""A dirty entry that is no more: who changed it, where, what it was, and when."""


class _Kept:
    """A page of a file in memory, and what the disk does not have of it."""

    __slots__ = ("dropped", "file", "index", "stored", "taken")

    def __init__(self, file: str, index: int) -> None:
        self.file, self.index = file, index
        self.stored: Stored | None = None
        """The first store since it was written or read."""
        self.taken: Taken | None = None
        """The first dirty entry since."""
        self.dropped: Event | None = None


class FilePages:
    """Follows the frames of page caches until they are free."""

    def __init__(self, found: list[Violation]) -> None:
        self.found = found
        self._kept: dict[int, _Kept] = {}
        self._sizes: dict[str, int] = {}

    def sized(self, record: FileSized) -> None:
        """A file became longer or shorter."""
        self._sizes[record.file] = record.size

    def read_in(self, record: FilePageRead) -> None:
        """The frame is what the disk has."""
        self._kept[record.frame] = _Kept(record.file, record.index)

    def migrated(self, record: FilePageMigrated) -> None:
        """What the disk does not have of it goes along; a store that does not is lost by S9."""
        kept = self._kept.pop(record.old, None)
        if kept is not None:
            self._kept[record.new] = kept

    def changed(self, op: Op, page: Page, old: int, new: int, event: Event) -> None:
        """A leaf entry changed: was it dirty, and is not any more?"""
        kept = self._kept.get(frame_of(old)) if self._kept else None
        if kept is None or kept.taken is not None or not (pte_present(old) and old & DIRTY):
            return
        if not (pte_present(new) and new & DIRTY and frame_of(new) == frame_of(old)):
            kept.taken = op, page, old, event

    def stored(self, fill: Cached, frame: int, event: Event) -> None:
        """A store reached memory through a translation."""
        kept = self._kept.get(frame) if self._kept else None
        if kept is None:
            return
        if kept.dropped is not None:
            self._lost(kept, (fill, event), kept.dropped)
        elif kept.stored is None:
            kept.stored = fill, event

    def written(self, frame: int) -> None:
        """The disk has it."""
        kept = self._kept.get(frame)
        if kept is not None:
            kept.stored = kept.taken = None

    def dropped(self, record: FilePageDropped, event: Event) -> None:
        """Reclaim took the page out of the page cache."""
        kept = self._kept.get(record.frame)
        if kept is None:
            return
        kept.dropped = event
        if kept.stored is not None:
            self._lost(kept, kept.stored, event)
        if kept.taken is not None and self._asked_for(kept):
            self._forgotten(kept.taken, event)

    def freed(self, frame: int) -> None:
        """It is no page of a file any more."""
        self._kept.pop(frame, None)

    def _asked_for(self, kept: _Kept) -> bool:
        return kept.index << PAGE_SHIFT < self._sizes.get(kept.file, ULONG_MAX)

    def _lost(self, kept: _Kept, stored: Stored, dropped: Event) -> None:
        fill, event = stored
        if "S9" in fill.reported or not self._asked_for(kept):
            return
        fill.reported.add("S9")
        page = fill.read.page
        after = "after" if dropped.n < event.n else "and was not written before"
        self.found.append(
            Violation(
                rule="S9", agent=fill.agent, cache=fill.cache, mm=page.mm, address=page.address,
                frame=fill.frame, filled=fill.event(), read=fill.read.event(),
                pte=describe(fill.read.pte), deadline=dropped, racing=(event, dropped),
                detail=f"stored into frame {fill.frame:#x}, page {kept.index} of file {kept.file}, "
                f"{after} reclaim took it out of the page cache: the store is lost",
            )
        )  # fmt: skip

    def _forgotten(self, taken: Taken, dropped: Event) -> None:
        op, page, old, event = taken
        self.found.append(
            Violation(
                rule="S16", agent=op.node or event.node, mm=page.mm, address=page.address,
                frame=frame_of(old), changed=event, owed=op.text(), deadline=dropped,
                change=f"{describe(old)} -> none", racing=(event, dropped),
                detail=f"it was dropped from the page cache without being written: {describe(old)}",
            )
        )  # fmt: skip
