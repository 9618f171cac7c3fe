"""include/linux/spinlock.h, include/linux/mmap_lock.h, include/linux/rmap.h, include/linux/fs.h
and include/linux/pagemap.h: the locks of mm, by the names that the kernel has for them.

A spinlock keeps the processor while it is waited for; the others sleep.  Each is one word in
memory, granted in the order of the requests, so the reply to a lock stands for the acquire barrier
of the kernel's, and the message of an unlock for its release barrier: what was stored before an
unlock is seen after the next lock.

Lock order (mm/rmap.c, all releases): inode, mmap_lock, folio, i_mmap_rwsem, anon_vma, PTL.
"""

from __future__ import annotations

from collections.abc import Awaitable

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.world import MEMORY
from mmurace.protocol.messages.base import Ack
from mmurace.protocol.messages.filemap import ImmapLock, ImmapUnlock, InodeLock, InodeUnlock
from mmurace.protocol.messages.memory import (
    AnonVmaLock,
    AnonVmaUnlock,
    FolioAddWaiter,
    FolioLock,
    FolioUnlock,
    FolioWait,
    MmapDowngrade,
    MmapLock,
    MmapUnlock,
    PtlLock,
    PtlUnlock,
)
from mmurace.protocol.messages.swap import FolioTrylock

# ---- of a page table ---------------------------------------------------------------------------


def spin_lock(cpu: Processor, ptl: int) -> Awaitable[Ack]:
    """``spin_lock(ptl)``: the lock of the page-table page ``ptl`` (``pte_lockptr``); spins."""
    return cpu.mem(PtlLock(ptl))


def spin_unlock(cpu: Processor, ptl: int) -> Awaitable[Ack]:
    """``spin_unlock(ptl)``."""
    return cpu.mem(PtlUnlock(ptl))


# ---- of an mm ----------------------------------------------------------------------------------


def mmap_read_lock(cpu: Processor, mm: str) -> Awaitable[Ack]:
    """``mmap_read_lock`` (``down_read(&mm->mmap_sem)`` to v5.7): no VMA changes."""
    return cpu.sleep(MEMORY, MmapLock(mm, False))


def mmap_read_unlock(cpu: Processor, mm: str) -> Awaitable[Ack]:
    """``mmap_read_unlock``."""
    return cpu.mem(MmapUnlock(mm))


def mmap_write_lock(cpu: Processor, mm: str) -> Awaitable[Ack]:
    """``mmap_write_lock``: VMAs may be changed; no page fault is on its way."""
    return cpu.sleep(MEMORY, MmapLock(mm, True))


def mmap_write_unlock(cpu: Processor, mm: str) -> Awaitable[Ack]:
    """``mmap_write_unlock``."""
    return cpu.mem(MmapUnlock(mm))


def mmap_write_downgrade(cpu: Processor, mm: str) -> Awaitable[Ack]:
    """``mmap_write_downgrade``: held for read from here on, without being let go."""
    return cpu.mem(MmapDowngrade(mm))


# ---- of the rmap -------------------------------------------------------------------------------


def anon_vma_lock_read(cpu: Processor, mm: str) -> Awaitable[Ack]:
    """``anon_vma_lock_read``: one lock for all anonymous memory of an mm."""
    return cpu.sleep(MEMORY, AnonVmaLock(mm, False))


def anon_vma_unlock_read(cpu: Processor, mm: str) -> Awaitable[Ack]:
    """``anon_vma_unlock_read``."""
    return cpu.mem(AnonVmaUnlock(mm))


def anon_vma_lock_write(cpu: Processor, mm: str) -> Awaitable[Ack]:
    """``anon_vma_lock_write``."""
    return cpu.sleep(MEMORY, AnonVmaLock(mm, True))


def anon_vma_unlock_write(cpu: Processor, mm: str) -> Awaitable[Ack]:
    """``anon_vma_unlock_write``."""
    return cpu.mem(AnonVmaUnlock(mm))


def i_mmap_lock_read(cpu: Processor, file: str) -> Awaitable[Ack]:
    """``i_mmap_lock_read``: no VMA of the file comes or goes."""
    return cpu.sleep(MEMORY, ImmapLock(file, False))


def i_mmap_unlock_read(cpu: Processor, file: str) -> Awaitable[Ack]:
    """``i_mmap_unlock_read``."""
    return cpu.mem(ImmapUnlock(file))


def i_mmap_lock_write(cpu: Processor, file: str) -> Awaitable[Ack]:
    """``i_mmap_lock_write``."""
    return cpu.sleep(MEMORY, ImmapLock(file, True))


def i_mmap_unlock_write(cpu: Processor, file: str) -> Awaitable[Ack]:
    """``i_mmap_unlock_write``."""
    return cpu.mem(ImmapUnlock(file))


# ---- of a file and its pages -------------------------------------------------------------------


def inode_lock(cpu: Processor, file: str) -> Awaitable[Ack]:
    """``inode_lock``: one truncation of a file at a time."""
    return cpu.sleep(MEMORY, InodeLock(file))


def inode_unlock(cpu: Processor, file: str) -> Awaitable[Ack]:
    """``inode_unlock``."""
    return cpu.mem(InodeUnlock(file))


def folio_lock(cpu: Processor, folio: int) -> Awaitable[Ack]:
    """``folio_lock`` (``lock_page`` to v5.15)."""
    return cpu.sleep(MEMORY, FolioLock(folio))


async def folio_trylock(cpu: Processor, folio: int) -> bool:
    """``folio_trylock`` (``trylock_page``): False if somebody has it."""
    return (await cpu.mem(FolioTrylock(folio))).value


def folio_unlock(cpu: Processor, folio: int) -> Awaitable[Ack]:
    """``folio_unlock`` (``unlock_page``); wakes those who wait for it."""
    return cpu.mem(FolioUnlock(folio))


async def folio_wait_locked(cpu: Processor, folio: int) -> None:
    """``folio_wait_locked``: sleeps until whoever has it locked lets it go, if anybody has."""
    waiter = (await cpu.mem(FolioAddWaiter(folio))).waiter
    if waiter:
        await cpu.sleep(MEMORY, FolioWait(folio, waiter))
