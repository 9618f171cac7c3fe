"""Locks that ``memory`` has, and those who wait for them."""

from __future__ import annotations

from typing import ClassVar

from mmurace.protocol.lock import Lock
from mmurace.protocol.messages.base import Ack, Message, Request

_PTL = Lock("PtlLock", "PTL", spins=True)
_MMAP_LOCK = Lock("MmapLock", "mmap_lock of {mm}")
_FOLIO_LOCK = Lock("FolioLock", "folio lock of frame {frame:#x}")
_ANON_VMA = Lock("AnonVmaLock", "anon_vma lock of {mm}")


class PtlLock(Request[Ack], frozen=True):
    """``pte_offset_map_lock``: the spinlock of one page-table page; granted in order."""

    table: int
    OBJECT: ClassVar[tuple[str, ...]] = ("ptl", "table")
    TAKES: ClassVar[Lock | None] = _PTL


class PtlUnlock(Request[Ack], frozen=True):
    """``pte_unmap_unlock``."""

    table: int
    OBJECT: ClassVar[tuple[str, ...]] = ("ptl", "table")
    GIVES_BACK: ClassVar[Lock | None] = _PTL


class MmapLock(Request[Ack], frozen=True):
    """``mmap_read_lock`` or ``mmap_write_lock``; sleeps."""

    mm: str
    write: bool
    OBJECT: ClassVar[tuple[str, ...]] = ("mmap_lock", "mm")
    ACCESS: ClassVar[str] = "add"
    TAKES: ClassVar[Lock | None] = _MMAP_LOCK


class MmapUnlock(Request[Ack], frozen=True):
    """``mmap_read_unlock`` or ``mmap_write_unlock``."""

    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("mmap_lock", "mm")
    ACCESS: ClassVar[str] = "add"
    GIVES_BACK: ClassVar[Lock | None] = _MMAP_LOCK


class MmapDowngrade(Request[Ack], frozen=True):
    """``mmap_write_downgrade``: the writer becomes a reader without letting go."""

    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("mmap_lock", "mm")


class FolioLock(Request[Ack], frozen=True):
    """``folio_lock``; sleeps."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("folio_lock", "frame")
    TAKES: ClassVar[Lock | None] = _FOLIO_LOCK


class FolioUnlock(Request[Ack], frozen=True):
    """``folio_unlock``; wakes those who wait for it."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("folio_lock", "frame")
    GIVES_BACK: ClassVar[Lock | None] = _FOLIO_LOCK


class Waiter(Message, frozen=True):
    """An entry of a wait queue, by the request that put it there; empty: nothing to wait for."""

    waiter: str


class FolioAddWaiter(Request[Waiter], frozen=True):
    """``folio_wait_table`` gets a waiter for the lock, if it is taken; sleeps not yet."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("folio_lock", "frame")


class FolioWait(Request[Ack], frozen=True):
    """``io_schedule``: answered once the waiter was woken by an unlock; sleeps, takes nothing."""

    frame: int
    waiter: str
    OBJECT: ClassVar[tuple[str, ...]] = ("folio_lock", "frame")
    MAY_SLEEP: ClassVar[bool] = True
    MAY_COME_LATER: ClassVar[bool] = True


class AnonVmaLock(Request[Ack], frozen=True):
    """The rmap lock (``anon_vma`` rwsem) of an mm's anonymous memory; sleeps."""

    mm: str
    write: bool
    OBJECT: ClassVar[tuple[str, ...]] = ("anon_vma", "mm")
    ACCESS: ClassVar[str] = "add"
    TAKES: ClassVar[Lock | None] = _ANON_VMA


class AnonVmaUnlock(Request[Ack], frozen=True):
    """Release the rmap lock."""

    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("anon_vma", "mm")
    ACCESS: ClassVar[str] = "add"
    GIVES_BACK: ClassVar[Lock | None] = _ANON_VMA
