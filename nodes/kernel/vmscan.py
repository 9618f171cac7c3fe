"""mm/vmscan.c with the reclaim half of mm/rmap.c: anonymous pages go to swap.

Swap is unlimited and synchronous.  Pages of files stay: they are never written back here.
"""

from __future__ import annotations

from nodes.kernel import gup, mmu_notifier, pgtable, tlbbatch
from nodes.kernel.context import Processor
from nodes.kernel.mmu_notifier import MmuNotifierRange
from nodes.kernel.tlbbatch import TlbUbc
from nodes.world import MEMORY
from protocol import pte as ptes
from protocol.events import MmuNotifierEvent
from protocol.limits import PAGE_SIZE
from protocol.messages.memory import (
    AnonVmaLock,
    AnonVmaUnlock,
    FolioUnlock,
    PteGetAndClear,
    PteLoad,
    PteSet,
    PtlLock,
    PtlUnlock,
    RmapRemove,
    RmapWalk,
)
from protocol.messages.swap import (
    AddToSwap,
    FolioTrylock,
    FreePages,
    FreeUnrefPage,
    IsolateLru,
    PutbackLru,
    SwapCacheDelete,
    SwapCacheFreeze,
    SwapCount,
    SwapDuplicate,
    SwapWrite,
)


async def balance_pgdat(cpu: Processor, pages: int) -> int:
    """kswapd: one round of ``balance_pgdat`` over ``pages`` pages; how many it freed.

    It ends with ``pgdat_balanced``; whoever wakes it again decides whether that was enough.
    """
    freed = await shrink_inactive_list(cpu, pages, "")
    await cpu.mem(FreePages())
    return freed


async def shrink_inactive_list(cpu: Processor, pages: int, current: str) -> int:
    """``shrink_inactive_list``: isolate, shrink, put back; how many pages were freed."""
    folios = (await cpu.mem(IsolateLru(pages))).frames
    ubc = TlbUbc(current)
    free: list[int] = []
    for folio in folios:
        if await _shrink_folio(cpu, ubc, folio):
            free.append(folio)
        else:
            await cpu.mem(PutbackLru(folio))
            await gup.put_page(cpu, folio)
    await _free_folios(cpu, ubc, free)
    return len(free)


async def _free_folios(cpu: Processor, ubc: TlbUbc, free: list[int]) -> None:
    """The end of ``shrink_folio_list``: flush, then free.

    cpu0 (reclaim)                      any agent
    entries cleared, flush deferred     (holds a copy)
    flush                               [Required: the copy is gone before ...]
    free the frames                     ... a frame has another owner
    """
    await tlbbatch.try_to_unmap_flush(cpu, ubc)
    for folio in free:
        await cpu.mem(FreeUnrefPage(folio))


async def _shrink_folio(cpu: Processor, ubc: TlbUbc, folio: int) -> bool:
    """One page of ``shrink_folio_list``: whether the caller's is the last reference."""
    if not (await cpu.mem(FolioTrylock(folio))).value:
        return False
    slot = (await cpu.mem(AddToSwap(folio))).value
    await try_to_unmap(cpu, ubc, folio, slot)
    freed = not (await cpu.mem(RmapWalk(folio))).places
    if freed:
        await tlbbatch.try_to_unmap_flush_dirty(cpu, ubc)
        await cpu.mem(SwapWrite(slot, folio))
        freed = (await cpu.mem(SwapCacheFreeze(slot, folio))).value
    if not freed and not (await cpu.mem(SwapCount(slot))).value:
        await cpu.mem(SwapCacheDelete(slot))
    await cpu.mem(FolioUnlock(folio))
    return freed


async def try_to_unmap(cpu: Processor, ubc: TlbUbc, folio: int, slot: int) -> None:
    """``try_to_unmap``: a swap entry in place of every mapping, under the rmap lock."""
    for mm, address in (await cpu.mem(RmapWalk(folio))).places:
        await cpu.sleep(MEMORY, AnonVmaLock(mm, False))
        await try_to_unmap_one(cpu, ubc, (mm, address), folio, slot)
        await cpu.mem(AnonVmaUnlock(mm))


async def try_to_unmap_one(
    cpu: Processor, ubc: TlbUbc, place: tuple[str, int], folio: int, slot: int
) -> None:
    """``try_to_unmap_one``; up to v6.5 ``invalidate_range`` under the PTL, and at the end."""
    mm, address = place
    range_ = MmuNotifierRange(mm, address, address + PAGE_SIZE, MmuNotifierEvent.CLEAR)
    await mmu_notifier.invalidate_range_start(cpu, range_)
    table = await pgtable.find_leaf_table(cpu, mm, address)
    if table >= 0:
        await cpu.mem(PtlLock(table))
        index = pgtable.pte_index(cpu, address)
        pte = (await cpu.mem(PteLoad(table, index))).pte
        if ptes.pte_present(pte) and ptes.frame_of(pte) == folio:
            await _clear(cpu, ubc, mm, address, table)
            await cpu.mem(SwapDuplicate(slot))
            await cpu.mem(PteSet(table, index, ptes.make(slot, ptes.SWAP)))
            await cpu.mem(RmapRemove(folio, mm, address))
            if cpu.world.kernel.clear_flush_calls_ir:
                await mmu_notifier.invalidate_range(cpu, mm, address, address + PAGE_SIZE)
            await gup.put_page(cpu, folio)
        await cpu.mem(PtlUnlock(table))
    await mmu_notifier.invalidate_range_end(cpu, range_)


async def _clear(cpu: Processor, ubc: TlbUbc, mm: str, address: int, table: int) -> None:
    """The entry out: flushed at once, or noted for a flush of many."""
    if not await tlbbatch.should_defer_flush(cpu, mm):
        await pgtable.ptep_clear_flush(cpu, mm, address, table)
        return
    index = pgtable.pte_index(cpu, address)
    old = (await cpu.mem(PteGetAndClear(table, index))).pte
    await tlbbatch.set_tlb_ubc_flush_pending(cpu, ubc, mm, address, old)
