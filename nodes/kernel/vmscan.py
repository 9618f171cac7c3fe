"""mm/vmscan.c with the reclaim half of mm/rmap.c: anonymous pages go to swap.

Swap is unlimited and synchronous.  Pages of files stay: a file has no store behind its page cache
here, so a page that leaves it could not be read again.
"""

from __future__ import annotations

from typing import Final

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
    PageFreeze,
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
    FolioFlags,
    FolioMarkDirty,
    FolioRefCount,
    FolioSetSwapbacked,
    FolioTrylock,
    FreePages,
    FreeUnrefPage,
    IsolateLru,
    PutbackLru,
    ReclaimThrottle,
    SwapCacheDelete,
    SwapCacheFreeze,
    SwapCount,
    SwapDuplicate,
    SwapWrite,
)
from protocol.records import Coverage, PageDiscarded

SWAP_CLUSTER_MAX: Final = 4
"""Pages of one round of direct reclaim; 32 in the kernel, whose memory is larger."""
DEF_PRIORITY: Final = 12
"""Rounds that may find nothing to free."""


async def balance_pgdat(cpu: Processor, pages: int) -> int:
    """kswapd: one round of ``balance_pgdat`` over ``pages`` pages; how many it freed.

    It ends with ``pgdat_balanced``; whoever wakes it again decides whether that was enough.
    """
    _, freed = await shrink_inactive_list(cpu, pages, "")
    await cpu.mem(FreePages())
    return freed


async def try_to_free_pages(cpu: Processor, current: str) -> bool:
    """``try_to_free_pages``: direct reclaim; whether it is worth while to ask for a page again.

    If others have isolated all there is, it waits for the first that they free or put back
    (``reclaim_throttle``); it holds none itself, so somebody goes on.
    """
    for _ in range(DEF_PRIORITY):
        isolated, freed = await shrink_inactive_list(cpu, SWAP_CLUSTER_MAX, current)
        if freed:
            cpu.port.emit(Coverage("direct_reclaim"))
            return True
        if not isolated:
            return (await cpu.sleep(MEMORY, ReclaimThrottle())).value
    return False


async def shrink_inactive_list(cpu: Processor, pages: int, current: str) -> tuple[int, int]:
    """``shrink_inactive_list``: isolate, shrink, put back; pages isolated, and pages freed.

    ``current`` is the mm of the thread, empty for kswapd.
    """
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
    return len(folios), len(free)


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
    if slot < 0:
        freed = freed and (await cpu.mem(PageFreeze(folio, 1))).value
    else:
        freed = await _pageout(cpu, ubc, folio, slot, freed)
    await cpu.mem(FolioUnlock(folio))
    return freed


async def _pageout(cpu: Processor, ubc: TlbUbc, folio: int, slot: int, unmapped: bool) -> bool:
    """``pageout`` and ``__remove_mapping`` of a page with a slot: whether it can be freed."""
    freed = unmapped
    if unmapped:
        await tlbbatch.try_to_unmap_flush_dirty(cpu, ubc)
        await cpu.mem(SwapWrite(slot, folio))
        freed = (await cpu.mem(SwapCacheFreeze(slot, folio))).value
    if not freed and not (await cpu.mem(SwapCount(slot))).value:
        await cpu.mem(SwapCacheDelete(slot))
    return freed


async def try_to_unmap(cpu: Processor, ubc: TlbUbc, folio: int, slot: int) -> None:
    """``try_to_unmap``: a swap entry in place of every mapping, under the rmap lock.

    It stops at a mapping that must stay.
    """
    for mm, address in (await cpu.mem(RmapWalk(folio))).places:
        await cpu.sleep(MEMORY, AnonVmaLock(mm, False))
        on = await try_to_unmap_one(cpu, ubc, (mm, address), folio, slot)
        await cpu.mem(AnonVmaUnlock(mm))
        if not on:
            return


async def try_to_unmap_one(
    cpu: Processor, ubc: TlbUbc, place: tuple[str, int], folio: int, slot: int
) -> bool:
    """``try_to_unmap_one``; up to v6.5 ``invalidate_range`` under the PTL, and at the end.

    False: a page of ``MADV_FREE`` (which has no slot) is in use again and stays.
    """
    mm, address = place
    on = True
    range_ = MmuNotifierRange(mm, address, address + PAGE_SIZE, MmuNotifierEvent.CLEAR)
    await mmu_notifier.invalidate_range_start(cpu, range_)
    table = await pgtable.find_leaf_table(cpu, mm, address)
    if table >= 0:
        await cpu.mem(PtlLock(table))
        index = pgtable.pte_index(cpu, address)
        pte = (await cpu.mem(PteLoad(table, index))).pte
        if ptes.pte_present(pte) and ptes.frame_of(pte) == folio:
            old = await _clear(cpu, ubc, mm, address, table)
            if slot >= 0:
                await cpu.mem(SwapDuplicate(slot))
                await cpu.mem(PteSet(table, index, ptes.make(slot, ptes.SWAP)))
            else:
                on = await _may_discard(cpu, place, folio, old)
            if on:
                await _unmapped(cpu, place, folio)
            else:
                await cpu.mem(PteSet(table, index, old))
                await cpu.mem(FolioSetSwapbacked(folio))
        await cpu.mem(PtlUnlock(table))
    await mmu_notifier.invalidate_range_end(cpu, range_)
    return on


async def _unmapped(cpu: Processor, place: tuple[str, int], folio: int) -> None:
    """The mapping is gone (``discard``): its place in the rmap and its reference, too."""
    mm, address = place
    await cpu.mem(RmapRemove(folio, mm, address))
    if cpu.world.kernel.clear_flush_calls_ir:
        await mmu_notifier.invalidate_range(cpu, mm, address, address + PAGE_SIZE)
    await gup.put_page(cpu, folio)


async def _may_discard(cpu: Processor, place: tuple[str, int], folio: int, pte: int) -> bool:
    """``MADV_FREE page check``: whether the page, whose entry was ``pte``, is dropped unwritten.

    cpu0 (reclaim)                      any agent
                                        store: dirty in the entry, or a fault
    clear pte; old entry clean?         [Required: no store through a copy that is dirty from
    references? dirty?                  before MADV_FREE; that is what its flush is for]
    drop the page
    """
    if pte & ptes.DIRTY:
        await cpu.mem(FolioMarkDirty(folio))
    references = (await cpu.mem(FolioRefCount(folio))).value
    mapped = len((await cpu.mem(RmapWalk(folio))).places)
    if references != 1 + mapped or (await cpu.mem(FolioFlags(folio))).dirty:
        cpu.port.emit(Coverage("lazyfree_kept"))
        return False
    cpu.port.emit(Coverage("lazyfree_discarded"))
    cpu.port.emit(PageDiscarded(folio, *place))
    return True


async def _clear(cpu: Processor, ubc: TlbUbc, mm: str, address: int, table: int) -> int:
    """The entry out: flushed at once, or noted for a flush of many; what it was."""
    if not await tlbbatch.should_defer_flush(cpu, mm):
        return await pgtable.ptep_clear_flush(cpu, mm, address, table)
    index = pgtable.pte_index(cpu, address)
    old = (await cpu.mem(PteGetAndClear(table, index))).pte
    await tlbbatch.set_tlb_ubc_flush_pending(cpu, ubc, mm, address, old)
    return old
