"""mm/gup.c: from a host virtual address to a referenced page."""

from __future__ import annotations

from dataclasses import dataclass

from mmurace.nodes.kernel import memory
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EAGAIN, EFAULT, EINTR
from mmurace.nodes.kernel.locking import mmap_read_lock, mmap_read_unlock
from mmurace.nodes.kernel.page_ref import put_page as put_page  # for drivers, too
from mmurace.nodes.kernel.page_ref import try_grab_page, unpin_user_page
from mmurace.nodes.kernel.pgtable import (
    pmd_offset,
    pmdp_get,
    pte_offset_map_lock,
    pte_unmap_unlock,
    ptep_get,
)
from mmurace.protocol import pte as ptes
from mmurace.protocol.limits import FAULT_ATTEMPTS_MAX, PAGE_SIZE
from mmurace.protocol.messages.memory import Vma, VmaFind
from mmurace.protocol.ranges import page_of
from mmurace.protocol.records import FaultRetry


@dataclass(frozen=True, slots=True)
class Gup:
    """A page with a reference: its entry, and the name of the load that found it."""

    pte: int
    walk: str

    @property
    def frame(self) -> int:
        """The frame number."""
        return ptes.frame_of(self.pte)


async def get_user_pages_fast(
    cpu: Processor, mm: str, address: int, write: bool, pin: bool = False
) -> Gup | int:
    """``get_user_pages_fast`` for one page: without a lock, else under mmap_lock; or -errno.

    ``pin``: ``FOLL_PIN`` in the place of ``FOLL_GET``; only for writing, for who reads would first
    have to see to it that an anonymous page is his alone (``gup_must_unshare``, v5.19).
    """
    got = await get_user_page_fast_only(cpu, mm, page_of(address), write, pin)
    return got if got else await get_user_pages_unlocked(cpu, mm, address, write, pin)


async def get_user_pages_unlocked(
    cpu: Processor, mm: str, address: int, write: bool, pin: bool = False
) -> Gup | int:
    """``get_user_pages_unlocked`` of a page: takes mmap_lock for read; a reference, or -errno."""
    await mmap_read_lock(cpu, mm)
    got = await get_user_pages(cpu, mm, page_of(address), write, pin)
    await mmap_read_unlock(cpu, mm)
    return got


async def get_user_pages(
    cpu: Processor, mm: str, address: int, write: bool, pin: bool = False
) -> Gup | int:
    """``__get_user_pages`` of a page, mmap_lock held: a reference, or -errno.

    A look at the entry, and a fault after each that is in vain.  -EINTR if the thread is to die,
    which is asked before each look.
    """
    vma = await vma_lookup(cpu, mm, address)
    if vma is None or not (vma.write if write else vma.read):
        return -EFAULT
    for _ in range(FAULT_ATTEMPTS_MAX):
        if cpu.fatal_signal_pending:
            return -EINTR
        got = await follow_page_pte(cpu, mm, address, write, pin)
        if got is not None:
            return got
        result = await memory.fault_in_vma(cpu, mm, address, write, vma)
        if result:
            return result
        cpu.port.emit(FaultRetry(mm, address, write, "gup", cpu.port.operation))
    return -EAGAIN


async def vma_lookup(cpu: Processor, mm: str, address: int) -> Vma | None:
    """``vma_lookup``, mmap_lock held."""
    found = (await cpu.mem(VmaFind(mm, address, address + PAGE_SIZE))).vmas
    return found[0] if found else None


async def follow_page_pte(
    cpu: Processor, mm: str, address: int, write: bool, pin: bool
) -> Gup | None:
    """``follow_page_pte`` for an access: the page with a reference, under the PTL; None: a fault.

    Unlike the lockless walk it takes the zero page, too.
    """
    table = await pte_offset_map_lock(cpu, mm, address)
    if table < 0:
        return None
    walk = cpu.port.upcoming
    pte = await ptep_get(cpu, table, address)
    got = ptes.permits(pte, write) and await _try_grab(cpu, pte, pin)
    await pte_unmap_unlock(cpu, table)
    return Gup(pte, walk) if got else None


async def get_user_page_fast_only(
    cpu: Processor, mm: str, address: int, write: bool, pin: bool = False
) -> Gup | None:
    """``get_user_page_fast_only``, ``gup_fast`` (v6.10), interrupts off; None: use the slow way.

    ``local_irq_save`` pairs with ``tlb_remove_table_sync_one`` (or the IPIs of the flush): tables
    that the walk has found stay tables.  ``try_get_page`` and the second load of the entry pair
    with the clearing of the entry and the ``put_page`` behind it, and, for an anonymous page that
    shall be nobody's alone, with the look at the count in ``page_try_share_anon_rmap`` (v5.19).

    vcpu0 (fast GUP)                    cpu0 (zap)
    load pte: frame f
                                        clear pte; flush; free f
    try_get_page(f)
    load pte again                      [Required: it is the same, to the bit, or put and give up]

    From v6.1 (70cbc3cc78a9) the upper entry must be the same, too: whoever takes a table away does
    not change what is in it.  The zero page (``pte_special``) is left to the slow way.
    """
    cpu.irq_disable()
    got = await gup_fast_pte_range(cpu, mm, address, write, pin)
    cpu.irq_enable()
    return got


async def gup_fast_pte_range(
    cpu: Processor, mm: str, address: int, write: bool, pin: bool
) -> Gup | None:
    """``gup_pmd_range`` and ``gup_pte_range`` (``gup_fast_pte_range``, v6.10), interrupts off."""
    pmds = await pmd_offset(cpu, mm, address)
    if pmds < 0:
        return None
    pmd = await pmdp_get(cpu, pmds, address)
    if not ptes.hw_present(pmd):
        return None
    table = ptes.frame_of(pmd)
    pte = await ptep_get(cpu, table, address)
    if not ptes.permits(pte, write) or pte & ptes.SPECIAL or not await _try_grab(cpu, pte, pin):
        return None
    rechecks = cpu.world.kernel.mm.gup_fast_rechecks_pmd
    same = not rechecks or await pmdp_get(cpu, pmds, address) == pmd
    walk = cpu.port.upcoming
    if same and await ptep_get(cpu, table, address) == pte:
        return Gup(pte, walk)
    await (unpin_user_page if pin else put_page)(cpu, ptes.frame_of(pte))
    return None


async def _try_grab(cpu: Processor, pte: int, pin: bool) -> bool:
    """``try_grab_page``; the zero page is not counted."""
    if pte & ptes.SPECIAL:
        return True
    return await try_grab_page(cpu, ptes.frame_of(pte), pin)


async def get_user_page_remote(cpu: Processor, mm: str, address: int) -> int:
    """``get_user_pages_remote`` (``FOLL_WRITE``), mmap_lock held: the frame, or -errno."""
    got = await get_user_pages(cpu, mm, address, True)
    return got if isinstance(got, int) else got.frame
