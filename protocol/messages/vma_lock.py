"""Locks of VMAs (include/linux/mmap_lock.h, v6.4), which ``memory`` has with the VMAs."""

from __future__ import annotations

from typing import ClassVar

from mmurace.protocol.lock import Lock
from mmurace.protocol.messages.base import Ack, Request
from mmurace.protocol.messages.memory import Flag, VmaRange

_VMA_LOCK = Lock("VmaStartRead", "the lock of a VMA of {mm}")
"""No message ``TAKES`` it: whoever asks for it never waits, and may be refused."""


class VmaStartRead(Request[VmaRange], frozen=True):
    """``lock_vma_under_rcu``: the VMA of an address, held for read; none if it is being changed."""

    mm: str
    address: int
    anon_vma: bool = False
    """Only a VMA of anonymous memory that has an ``anon_vma`` (to v6.9)."""
    anonymous: bool = False
    """Only a VMA of anonymous memory (to v6.5)."""
    OBJECT: ClassVar[tuple[str, ...]] = ("vma_lock", "mm")
    ACCESS: ClassVar[str] = "add"


class VmaEndRead(Request[Ack], frozen=True):
    """``vma_end_read`` of the VMA [start, end)."""

    mm: str
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("vma_lock", "mm")
    ACCESS: ClassVar[str] = "add"
    GIVES_BACK: ClassVar[Lock | None] = _VMA_LOCK


class VmaStartWrite(Request[Ack], frozen=True):
    """``vma_start_write`` of every VMA in [start, end), mmap_lock held for write.

    Sleeps until nobody reads them; nobody can begin to before mmap_lock is given back.
    """

    mm: str
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("vma_lock", "mm")
    MAY_SLEEP: ClassVar[bool] = True


class MmapReadTrylock(Request[Flag], frozen=True):
    """``mmap_read_trylock``: mmap_lock for read, unless one would have to wait for it."""

    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("mmap_lock", "mm")
