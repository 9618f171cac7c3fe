"""mm/madvise.c: the advice that takes pages away, at once or when memory is short."""

from __future__ import annotations

from mmurace.nodes.kernel import memory, mmu_gather, mmu_notifier, pgtable, tlbbatch
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EINVAL, ENOMEM
from mmurace.nodes.kernel.mmu_gather import MmuGather
from mmurace.nodes.kernel.mmu_notifier import MmuNotifierRange
from mmurace.nodes.world import MEMORY
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.memory import (
    FolioUnlock,
    MmapLock,
    MmapUnlock,
    PteGetAndClear,
    PteScan,
    PteSet,
    PtlLock,
    PtlUnlock,
    RmapWalk,
    VmaFind,
)
from mmurace.protocol.messages.swap import (
    FolioClearDirty,
    FolioFlags,
    FolioFreeSwap,
    FolioMarkLazyfree,
    FolioTrylock,
    FreeSwapAndCache,
)
from mmurace.protocol.ranges import page_align


async def madvise_dontneed(cpu: Processor, mm: str, address: int, length: int) -> int:
    """``madvise(MADV_DONTNEED)``: ``madvise_dontneed_single_vma`` under mmap_lock for read."""
    end = address + page_align(length)
    if address % PAGE_SIZE or length <= 0 or end > cpu.world.address_end():
        return -EINVAL
    await cpu.sleep(MEMORY, MmapLock(mm, False))
    found = await cpu.mem(VmaFind(mm, address, end))
    covered = 0
    for vma in found.vmas:
        start, stop = max(vma.start, address), min(vma.end, end)
        covered += stop - start
        await memory.zap_page_range_single(cpu, mm, vma.part(start, stop))
    await cpu.mem(MmapUnlock(mm))
    return 0 if covered == end - address else -ENOMEM


async def madvise_free(cpu: Processor, mm: str, address: int, length: int) -> int:
    """``madvise(MADV_FREE)``: only of anonymous memory; one VMA after the other (all releases)."""
    end = address + page_align(length)
    if address % PAGE_SIZE or length <= 0 or end > cpu.world.address_end():
        return -EINVAL
    await cpu.sleep(MEMORY, MmapLock(mm, False))
    covered, result = 0, 0
    for vma in (await cpu.mem(VmaFind(mm, address, end))).vmas:
        start, stop = max(vma.start, address), min(vma.end, end)
        if vma.file:
            result = -EINVAL
            break
        covered += stop - start
        await madvise_free_single_vma(cpu, mm, start, stop)
    await cpu.mem(MmapUnlock(mm))
    return result or (0 if covered == end - address else -ENOMEM)


async def madvise_free_single_vma(cpu: Processor, mm: str, start: int, end: int) -> None:
    """``madvise_free_single_vma``: gather, bracket, clean the entries, flush.

    cpu0 (MADV_FREE)                    cpu1, device0
                                        (hold a writable, dirty copy)
    entries: clean
    flush                               [Required: the copies are gone before this returns, for a
    return                              store through one would leave the entry clean]
                                        store: makes the entry dirty again
    """
    gather = await mmu_gather.tlb_gather_mmu(cpu, mm, start, end)
    range_ = MmuNotifierRange(mm, start, end, MmuNotifierEvent.CLEAR)

    async def visit(table: int, first: int, last: int, address: int) -> None:
        await madvise_free_pte_range(cpu, gather, table, (first, last), address)

    await mmu_notifier.invalidate_range_start(cpu, range_)
    await pgtable.walk_page_range(cpu, mm, start, end, visit)
    await mmu_notifier.invalidate_range_end(cpu, range_)
    await mmu_gather.tlb_finish_mmu(cpu, gather)


async def madvise_free_pte_range(
    cpu: Processor, gather: MmuGather, table: int, part: tuple[int, int], address: int
) -> None:
    """``madvise_free_pte_range``: the entries of one leaf table, under its PTL."""
    first, last = part
    base = address - first * PAGE_SIZE
    await cpu.mem(PtlLock(table))
    await tlbbatch.flush_tlb_batched_pending(cpu, gather.mm)
    while first < last:
        found = await cpu.mem(PteScan(table, first, last))
        if found.index < 0:
            break
        first = found.index + 1
        await _free_entry(cpu, gather, (table, found.index), found.pte, base)
    await cpu.mem(PtlUnlock(table))


async def _free_entry(
    cpu: Processor, gather: MmuGather, place: tuple[int, int], pte: int, base: int
) -> None:
    """One entry: what is in swap goes at once, what is mapped when memory is short."""
    if ptes.is_swap(pte):
        await cpu.mem(PteGetAndClear(*place))
        await cpu.mem(FreeSwapAndCache(ptes.frame_of(pte)))
        return
    if not ptes.pte_present(pte) or pte & ptes.SPECIAL:
        return
    folio = ptes.frame_of(pte)
    flags = await cpu.mem(FolioFlags(folio))
    if (flags.dirty or flags.swapcache) and not await _clean_folio(cpu, folio):
        return
    if pte & (ptes.ACCESSED | ptes.DIRTY):
        old = (await cpu.mem(PteGetAndClear(*place))).pte
        clean = old & ~(ptes.ACCESSED | ptes.DIRTY)
        await cpu.mem(PteSet(*place, clean))
        gather.adjust_range(base + place[1] * PAGE_SIZE)
    await cpu.mem(FolioMarkLazyfree(folio))


async def _clean_folio(cpu: Processor, folio: int) -> bool:
    """Its content need not be kept, neither here nor in swap; False: others want it, or have it."""
    if not (await cpu.mem(FolioTrylock(folio))).value:
        return False
    clean = len((await cpu.mem(RmapWalk(folio))).places) == 1
    if clean:
        clean = (await cpu.mem(FolioFreeSwap(folio))).value
    if clean:
        await cpu.mem(FolioClearDirty(folio))
    await cpu.mem(FolioUnlock(folio))
    return clean
