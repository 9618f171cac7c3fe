"""What the ``memory`` node answers about files: their size, page cache and ``i_mmap``.

A file is a name.  It exists from its first use, as long as any mapping of it, until truncated.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from protocol.messages.base import Ack, Message, Request
from protocol.messages.memory import Count, FrameNumber


class FileVma(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A part of a file's ``i_mmap``: [start, end) of ``mm`` maps the file from ``offset``."""

    mm: str
    start: int
    end: int
    offset: int


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
    """``filemap_add_folio``: the frame that is there then; another may have been faster."""

    file: str
    index: int
    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("i_pages", "file", "index")


class PageCacheRemove(Request[FrameNumber], frozen=True):
    """``__filemap_remove_folio``: take the frame of a page out; it, or -1."""

    file: str
    index: int
    OBJECT: ClassVar[tuple[str, ...]] = ("i_pages", "file", "index")


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


class ImmapLock(Request[Ack], frozen=True):
    """``i_mmap_lock_read`` or ``i_mmap_lock_write``, the rmap lock of a file; sleeps."""

    file: str
    write: bool
    OBJECT: ClassVar[tuple[str, ...]] = ("i_mmap_rwsem", "file")


class ImmapUnlock(Request[Ack], frozen=True):
    """``i_mmap_unlock_read`` or ``i_mmap_unlock_write``."""

    file: str
    OBJECT: ClassVar[tuple[str, ...]] = ("i_mmap_rwsem", "file")


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
