"""What memory keeps of files: ``struct address_space`` with its page cache and ``i_mmap``."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from nodes.driver import Handler, Port
from nodes.node import Node
from nodes.world import World
from protocol.envelope import Envelope
from protocol.limits import ULONG_MAX
from protocol.messages import filemap as fm
from protocol.messages import memory as m
from protocol.messages.base import Ack, Message
from protocol.messages.filemap import FileVma
from protocol.ranges import overlaps


class Inode(msgspec.Struct):
    """A file.  It is as long as any mapping of it until somebody truncates it."""

    size: int = ULONG_MAX
    pages: dict[int, int] = {}
    """Index of a page -> its frame (``i_pages``)."""
    i_mmap: list[FileVma] = []
    """VMAs that map it, oldest first."""


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
    return FileVma(vma.mm, start, end, vma.offset + start - vma.start)


class Files(Node):
    """The part of the ``memory`` node that answers about files; the locks are with the others."""

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
        }  # fmt: skip

    def _inode(self, file: str) -> Inode:
        return self.inodes.setdefault(file, Inode())

    def page_cache_load(self, message: fm.PageCacheLoad, _: Envelope) -> m.FrameNumber:
        """The frame at a page of a file."""
        return m.FrameNumber(self._inode(message.file).pages.get(message.index, -1))

    def page_cache_add(self, message: fm.PageCacheAdd, _: Envelope) -> m.FrameNumber:
        """Put a frame into the page cache unless there is one."""
        pages = self._inode(message.file).pages
        return m.FrameNumber(pages.setdefault(message.index, message.frame))

    def page_cache_remove(self, message: fm.PageCacheRemove, _: Envelope) -> m.FrameNumber:
        """Take a frame out of the page cache."""
        return m.FrameNumber(self._inode(message.file).pages.pop(message.index, -1))

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
