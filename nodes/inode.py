"""What memory keeps of files: ``struct address_space`` with page cache and ``i_mmap``; the disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from mmurace.nodes.driver import Handler, Port
from mmurace.nodes.locks import LockWord
from mmurace.nodes.node import Node
from mmurace.nodes.world import World
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.limits import PAGE_SHIFT, ULONG_MAX
from mmurace.protocol.messages import filemap as fm
from mmurace.protocol.messages import memory as m
from mmurace.protocol.messages.base import Ack, Message
from mmurace.protocol.messages.filemap import FileVma
from mmurace.protocol.ranges import overlaps
from mmurace.protocol.records import (
    FilePageDropped,
    FilePageMigrated,
    FilePageRead,
    FilePageWritten,
    FileSized,
)


class Inode(msgspec.Struct):
    """A file.  It is as long as any mapping of it until somebody truncates it."""

    size: int = ULONG_MAX
    pages: dict[int, int] = {}
    """Index of a page -> its frame (``i_pages``)."""
    i_mmap: list[FileVma] = []
    """VMAs that map it, oldest first."""
    disk: dict[int, dict[int, int]] = {}
    """Index of a page -> its words as last written back; a page that is not here is a hole."""

    def holds(self, index: int) -> bool:
        """Whether the page is before the end of the file."""
        return index << PAGE_SHIFT < self.size


def parts_of(vmas: list[FileVma], start: int, end: int) -> tuple[FileVma, ...]:
    """The parts that map bytes [start, end) of the file."""
    found = []
    for vma in vmas:
        last = vma.offset + vma.end - vma.start
        if overlaps(vma.offset, last, start, end):
            low, high = max(start, vma.offset), min(end, last)
            found.append(_part(vma, vma.start + low - vma.offset, vma.start + high - vma.offset))
    return tuple(found)


def without(vmas: list[FileVma], mm: str, start: int, end: int) -> list[FileVma]:
    """What is left of the list when [start, end) of ``mm`` is no part of it any more."""
    kept = []
    for vma in vmas:
        if vma.mm != mm or not overlaps(vma.start, vma.end, start, end):
            kept.append(vma)
            continue
        if vma.start < start:
            kept.append(_part(vma, vma.start, start))
        if end < vma.end:
            kept.append(_part(vma, end, vma.end))
    return kept


def _part(vma: FileVma, start: int, end: int) -> FileVma:
    return msgspec.structs.replace(
        vma, start=start, end=end, offset=vma.offset + start - vma.start
    )  # fmt: skip


class Files(Node):
    """The part of the ``memory`` node that answers about files; the locks are with the others."""

    frames: list[Any]
    locks: dict[tuple[str, str | int], Any]

    def __init__(self, name: str, world: World, port: Port) -> None:
        super().__init__(name, world, port)
        self.inodes: dict[str, Inode] = {}

    def file_handlers(self) -> Mapping[type[Message], Handler]:
        """One function for each message of ``protocol.messages.filemap`` but the locks."""
        return {
            fm.PageCacheLoad: self.page_cache_load, fm.PageCacheAdd: self.page_cache_add,
            fm.PageCacheRemove: self.page_cache_remove, fm.PageCacheNext: self.page_cache_next,
            fm.FileSizeLoad: self.file_size_load, fm.FileSizeStore: self.file_size_store,
            fm.ImmapInsert: self.i_mmap_insert, fm.ImmapRemove: self.i_mmap_remove,
            fm.ImmapWalk: self.i_mmap_walk,
            fm.FolioMapping: self.folio_mapping, fm.RemoveMapping: self.remove_mapping,
            fm.ReadFolio: self.read_folio, fm.WritePage: self.writepage,
            fm.TruncateBlocks: self.truncate_blocks,
        }  # fmt: skip

    def frame(self, number: int) -> Any:
        """The frame of that number."""
        raise NotImplementedError

    def put(self, number: int) -> None:
        """Drop a reference to a frame; free it with the last one."""
        raise NotImplementedError

    def allocated(self, frame: int) -> None:
        """The youngest page of the LRU list."""
        raise NotImplementedError

    def _inode(self, file: str) -> Inode:
        return self.inodes.setdefault(file, Inode())

    def page_cache_load(self, message: fm.PageCacheLoad, _: Envelope) -> m.FrameNumber:
        """The frame at a page of a file."""
        return m.FrameNumber(self._inode(message.file).pages.get(message.index, -1))

    def page_cache_add(self, message: fm.PageCacheAdd, envelope: Envelope) -> m.FrameNumber:
        """Put a frame into the page cache, locked, unless there is one."""
        found = self._inode(message.file).pages.setdefault(message.index, message.frame)
        if found == message.frame:
            folio = self.frames[found]
            folio.mapping, folio.index = message.file, message.index
            word = self.locks.setdefault(("folio_lock", found), LockWord())
            if not word.held:  # of a new page it never is, unless memory is corrupt
                word.acquire(envelope.id)
            self.port.touch(("page", found))
            self.port.touch(("folio_lock", found))
            self.allocated(found)
        return m.FrameNumber(found)

    def page_cache_remove(self, message: fm.PageCacheRemove, _: Envelope) -> m.FrameNumber:
        """Take a frame out of the page cache."""
        frame = self._inode(message.file).pages.pop(message.index, -1)
        if frame >= 0:
            self._unmapped(frame)
            self.port.touch(("lru",))  # reclaim passes over it from here on
        return m.FrameNumber(frame)

    def page_cache_replace(self, old: int, new: int) -> None:
        """The page cache has another frame where it had this one; that is no anonymous page."""
        was, now = self.frames[old], self.frames[new]
        self._inode(was.mapping).pages[was.index] = new
        now.anon, now.mapping, now.index = False, was.mapping, was.index
        self.port.touch(("i_pages", was.mapping, was.index))
        self.port.touch(("page", new))
        self.port.touch(("lru",))
        self._unmapped(old)
        self.port.emit(FilePageMigrated(old, new))

    def _unmapped(self, frame: int) -> None:
        """``folio->mapping = NULL``."""
        self.frames[frame].mapping = ""
        self.port.touch(("page", frame))

    def folio_mapping(self, message: fm.FolioMapping, _: Envelope) -> fm.FolioMappingWord:
        """Which page of which file it is."""
        folio = self.frames[message.frame]
        return fm.FolioMappingWord(folio.mapping, folio.index)

    def remove_mapping(self, message: fm.RemoveMapping, _: Envelope) -> m.Flag:
        """Out of the page cache, if the other reference is the caller's and it is clean."""
        folio = self.frames[message.frame]
        self.port.touch(("page", message.frame))
        if folio.refs != 2 or folio.dirty:
            return m.Flag(False)
        self._inode(message.file).pages.pop(message.index, None)
        self._unmapped(message.frame)
        self.port.emit(FilePageDropped(message.frame, message.file, message.index))
        self.put(message.frame)
        return m.Flag(True)

    # -- the disk --------------------------------------------------------------------------

    def read_folio(self, message: fm.ReadFolio, _: Envelope) -> Ack:
        """From the disk; beyond the end of the file there is nothing."""
        inode = self._inode(message.file)
        self.port.touch(("disk", message.file, message.index), "read")
        self.port.touch(("i_size", message.file), "read")
        words = inode.disk.get(message.index, {}) if inode.holds(message.index) else {}
        self.frames[message.frame].words = dict(words)
        self.port.emit(FilePageRead(message.frame, message.file, message.index))
        return Ack()

    def writepage(self, message: fm.WritePage, _: Envelope) -> Ack:
        """To the disk, unless the file ends before it."""
        inode = self._inode(message.file)
        self.port.touch(("word", message.frame), "read")
        self.port.touch(("i_size", message.file), "read")
        if inode.holds(message.index):
            inode.disk[message.index] = dict(self.frames[message.frame].words)
            self.port.emit(FilePageWritten(message.frame, message.file, message.index))
        return Ack()

    def truncate_blocks(self, message: fm.TruncateBlocks, _: Envelope) -> Ack:
        """Drop the end of a file."""
        inode = self._inode(message.file)
        inode.disk = {index: w for index, w in inode.disk.items() if index < message.index}
        return Ack()

    # -- size and mappings -----------------------------------------------------------------

    def page_cache_next(self, message: fm.PageCacheNext, _: Envelope) -> m.Count:
        """The next page of a file that is in the cache."""
        pages = self._inode(message.file).pages
        return m.Count(min((i for i in pages if i >= message.index), default=-1))

    def file_size_load(self, message: fm.FileSizeLoad, _: Envelope) -> m.Count:
        """The size of a file."""
        return m.Count(self._inode(message.file).size)

    def file_size_store(self, message: fm.FileSizeStore, _: Envelope) -> Ack:
        """Set the size of a file."""
        self._inode(message.file).size = message.size
        self.port.emit(FileSized(message.file, message.size))
        return Ack()

    def i_mmap_insert(self, message: fm.ImmapInsert, _: Envelope) -> Ack:
        """Note a VMA of a file."""
        self._inode(message.file).i_mmap.append(message.vma)
        return Ack()

    def i_mmap_remove(self, message: fm.ImmapRemove, _: Envelope) -> Ack:
        """Forget a part of the VMAs of a file."""
        inode = self._inode(message.file)
        inode.i_mmap = without(inode.i_mmap, message.mm, message.start, message.end)
        return Ack()

    def i_mmap_walk(self, message: fm.ImmapWalk, _: Envelope) -> fm.FileVmas:
        """Who maps a part of a file."""
        return fm.FileVmas(parts_of(self._inode(message.file).i_mmap, message.start, message.end))
