"""What the ``memory`` node answers about files: size, page cache, ``i_mmap``, what is on disk.

A file is a name.  It exists from its first use, as long as any mapping of it, until truncated.  Its
disk is read and written at once, as swap is; what was never written back is a hole of zeros.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from mmurace.protocol.lock import Lock
from mmurace.protocol.messages.base import Ack, Message, Request
from mmurace.protocol.messages.memory import Count, Flag, FrameNumber


class FileVma(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A part of a file's ``i_mmap``: [start, end) of ``mm`` maps the file from ``offset``."""

    mm: str
    start: int
    end: int
    offset: int
    shared: bool = False
    """``VM_SHARED``: what is stored through it is stored in the file."""


class FileVmas(Message, frozen=True):
    """VMAs that map a part of a file, oldest first (``vma_interval_tree_foreach``)."""

    vmas: tuple[FileVma, ...]


class PageCacheLoad(Request[FrameNumber], frozen=True):
    """``xas_load`` of ``i_pages``: the frame at a page of the file, or -1; takes no reference."""

    file: str
    index: int
    OBJECT: ClassVar[tuple[str, ...]] = ("i_pages", "file", "index")
    ACCESS: ClassVar[str] = "read"


class PageCacheAdd(Request[FrameNumber], frozen=True):
    """``filemap_add_folio``: the frame that is there then; another may have been faster.

    If it is this one, it is locked (``__folio_set_locked``) and on the LRU list from here on.
    """

    file: str
    index: int
    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("i_pages", "file", "index")


class PageCacheRemove(Request[FrameNumber], frozen=True):
    """``__filemap_remove_folio``: take the frame of a page out; it, or -1."""

    file: str
    index: int
    OBJECT: ClassVar[tuple[str, ...]] = ("i_pages", "file", "index")


class FolioMappingWord(Message, frozen=True):
    """``folio->mapping`` and ``folio->index``; no file: it is in no page cache (any more)."""

    file: str
    index: int


class FolioMapping(Request[FolioMappingWord], frozen=True):
    """``folio_mapping``; under the folio lock it stays what it is."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "frame")
    ACCESS: ClassVar[str] = "read"


class RemoveMapping(Request[Flag], frozen=True):
    """``__remove_mapping`` of a page of a file, under the folio lock: out of the page cache.

    Only if nobody but the cache and the caller has a reference, and then only if it is not dirty;
    the reference of the cache goes with it.
    """

    file: str
    index: int
    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("i_pages", "file", "index")


class ReadFolio(Request[Ack], frozen=True):
    """``->read_folio``: a page from the disk, under the folio lock; zeros beyond the end."""

    file: str
    index: int
    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("word", "frame")
    MAY_SLEEP: ClassVar[bool] = True


class WritePage(Request[Ack], frozen=True):
    """``->writepage``: a page to the disk, under the folio lock; nothing if beyond the end."""

    file: str
    index: int
    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("disk", "file", "index")
    MAY_SLEEP: ClassVar[bool] = True


class TruncateBlocks(Request[Ack], frozen=True):
    """The last step of a truncation: what the disk has from page ``index`` on is dropped."""

    file: str
    index: int
    OBJECT: ClassVar[tuple[str, ...]] = ("disk", "file")


class PageCacheNext(Request[Count], frozen=True):
    """``find_get_entries``: the first page from ``index`` on that the cache holds, or -1."""

    file: str
    index: int
    OBJECT: ClassVar[tuple[str, ...]] = ("i_pages", "file")
    ACCESS: ClassVar[str] = "read"


class FileSizeLoad(Request[Count], frozen=True):
    """``i_size_read``."""

    file: str
    OBJECT: ClassVar[tuple[str, ...]] = ("i_size", "file")
    ACCESS: ClassVar[str] = "read"


class FileSizeStore(Request[Ack], frozen=True):
    """``i_size_write``."""

    file: str
    size: int
    OBJECT: ClassVar[tuple[str, ...]] = ("i_size", "file")


_INODE = Lock("InodeLock", "inode lock of {file}")
_I_MMAP = Lock("ImmapLock", "i_mmap_rwsem of {file}")


class InodeLock(Request[Ack], frozen=True):
    """``inode_lock``: one truncation of a file at a time; sleeps."""

    file: str
    OBJECT: ClassVar[tuple[str, ...]] = ("i_rwsem", "file")
    TAKES: ClassVar[Lock | None] = _INODE


class InodeUnlock(Request[Ack], frozen=True):
    """``inode_unlock``."""

    file: str
    OBJECT: ClassVar[tuple[str, ...]] = ("i_rwsem", "file")
    GIVES_BACK: ClassVar[Lock | None] = _INODE


class ImmapLock(Request[Ack], frozen=True):
    """``i_mmap_lock_read`` or ``i_mmap_lock_write``, the rmap lock of a file; sleeps."""

    file: str
    write: bool
    OBJECT: ClassVar[tuple[str, ...]] = ("i_mmap_rwsem", "file")
    TAKES: ClassVar[Lock | None] = _I_MMAP


class ImmapUnlock(Request[Ack], frozen=True):
    """``i_mmap_unlock_read`` or ``i_mmap_unlock_write``."""

    file: str
    OBJECT: ClassVar[tuple[str, ...]] = ("i_mmap_rwsem", "file")
    GIVES_BACK: ClassVar[Lock | None] = _I_MMAP


class ImmapInsert(Request[Ack], frozen=True):
    """``vma_interval_tree_insert``, under ``i_mmap_lock_write``."""

    file: str
    vma: FileVma
    OBJECT: ClassVar[tuple[str, ...]] = ("i_mmap", "file")


class ImmapRemove(Request[Ack], frozen=True):
    """``vma_interval_tree_remove`` of [start, end) of an mm, under ``i_mmap_lock_write``."""

    file: str
    mm: str
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("i_mmap", "file")


class ImmapWalk(Request[FileVmas], frozen=True):
    """Who maps bytes [start, end) of the file, under ``i_mmap_lock_read``: the parts."""

    file: str
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("i_mmap", "file")
    ACCESS: ClassVar[str] = "read"
