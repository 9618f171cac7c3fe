"""Rule Q3: what is in memory is what was stored, nothing else.

A sequential replay of the stores in the order in which memory took them, through allocation
(zeroed), copies, swap out and swap in, and files that are written back and read again.  A word that
is read must be the one that the replay has.  What the replay cannot know (page tables, frames that
were there before the run) is not judged.
"""

from __future__ import annotations

from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.limits import ORACLE_SLOTS_KEPT, PAGE_SHIFT
from mmurace.protocol.records import (
    Access,
    FilePageRead,
    FilePageWritten,
    FileSized,
    FrameAllocated,
    FrameCopied,
    PageRead,
    PageWritten,
)

Words = dict[int, int]


class Content:
    """The model memory."""

    def __init__(self, found: list[Violation]) -> None:
        self.found = found
        self.frames: dict[int, Words] = {}
        """Frame -> its words that are not zero; frames of unknown content are not here."""
        self._slots: dict[int, Words] = {}
        self._disk: dict[tuple[str, int], Words | None] = {}
        """(file, index) -> what was last written back; None: nobody knows."""
        self._forgot = False
        """Something was taken out of ``_disk`` to bound it: what is not there may be no hole."""

    def allocated(self, record: FrameAllocated) -> None:
        """A frame leaves the pool, zeroed."""
        if record.use == "table":
            self.frames.pop(record.frame, None)
        else:
            self.frames[record.frame] = {}

    def freed(self, frame: int) -> None:
        """Whatever is in it now means nothing."""
        self.frames.pop(frame, None)

    def copied(self, record: FrameCopied) -> None:
        """One frame into another."""
        self._set(record.target, self.frames.get(record.source))

    def written(self, record: PageWritten) -> None:
        """A frame into a swap slot."""
        words = self.frames.get(record.frame)
        self._slots.pop(record.slot, None)
        if words is not None:
            self._slots[record.slot] = dict(words)
        if len(self._slots) > ORACLE_SLOTS_KEPT:
            del self._slots[next(iter(self._slots))]

    def read_in(self, record: PageRead) -> None:
        """A swap slot into a frame."""
        self._set(record.frame, self._slots.get(record.slot))

    def file_written(self, record: FilePageWritten) -> None:
        """A frame to the disk."""
        words = self.frames.get(record.frame)
        self._disk.pop((record.file, record.index), None)
        self._disk[record.file, record.index] = None if words is None else dict(words)
        if len(self._disk) > ORACLE_SLOTS_KEPT:
            del self._disk[next(iter(self._disk))]
            self._forgot = True

    def file_read(self, record: FilePageRead) -> None:
        """From the disk into a frame; a hole is zeros."""
        hole: Words | None = None if self._forgot else {}
        self._set(record.frame, self._disk.get((record.file, record.index), hole))

    def sized(self, record: FileSized) -> None:
        """A file ends: nothing beyond is ever read again."""
        for file, index in list(self._disk):
            if file == record.file and index << PAGE_SHIFT >= record.size:
                del self._disk[file, index]

    def _set(self, frame: int, words: Words | None) -> None:
        if words is None:
            self.frames.pop(frame, None)
        else:
            self.frames[frame] = dict(words)

    def accessed(self, record: Access, event: Event) -> None:
        """A word is stored, or compared with what was stored."""
        words = self.frames.get(record.frame)
        if words is None:
            return
        if record.write:
            words[record.word] = record.value
        elif words.get(record.word, 0) != record.value:
            self.found.append(_report(record, words.get(record.word, 0), event))
            del self.frames[record.frame]


def _report(record: Access, expected: int, event: Event) -> Violation:
    return Violation(
        rule="Q3", agent=event.node, frame=record.frame, racing=(event,),
        detail=f"word {record.word} of frame {record.frame:#x} was read as {record.value}; "
        f"the stores make it {expected}",
    )  # fmt: skip
