"""mm/madvise.c: the advice that takes pages away, at once or when memory is short."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from mmurace.nodes.kernel import memory, mmu_gather, mmu_notifier, tlbbatch
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EINVAL, ENOMEM
from mmurace.nodes.kernel.locking import (
    folio_trylock,
    folio_unlock,
    mmap_read_lock,
    mmap_read_unlock,
    mmap_write_lock,
    mmap_write_unlock,
    spin_lock,
    spin_unlock,
)
from mmurace.nodes.kernel.mmu_gather import MmuGather
from mmurace.nodes.kernel.mmu_notifier import MmuNotifierRange
from mmurace.nodes.kernel.pagewalk import walk_page_range
from mmurace.nodes.kernel.pgtable import next_pte_not_none, ptep_get_and_clear, set_pte_at
from mmurace.nodes.kernel.vma_lock import lock_vma_under_rcu, vma_end_read, vma_start_write
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.memory import (
    RmapWalk,
    Vma,
    VmaFind,
    VmaReplace,
)
from mmurace.protocol.messages.swap import (
    FolioClearDirty,
    FolioFlags,
    FolioFreeSwap,
    FolioMarkLazyfree,
    FreeSwapAndCache,
)
from mmurace.protocol.ranges import page_align
from mmurace.protocol.records import PageLazyfree


async def madvise_dontneed(cpu: Processor, mm: str, address: int, length: int) -> int:
    """``madvise(MADV_DONTNEED)``: ``madvise_dontneed_single_vma`` of each VMA."""

    async def dontneed(vma: Vma) -> int:
        await memory.zap_page_range_single(cpu, mm, vma)
        return 0

    return await madvise_walk_vmas(cpu, mm, address, length, dontneed)


async def madvise_free(cpu: Processor, mm: str, address: int, length: int) -> int:
    """``madvise(MADV_FREE)``: only of anonymous memory; one VMA after the other (all releases)."""

    async def free(vma: Vma) -> int:
        if vma.file:
            return -EINVAL
        await madvise_free_single_vma(cpu, mm, vma.start, vma.end)
        return 0

    return await madvise_walk_vmas(cpu, mm, address, length, free)


async def madvise_walk_vmas(
    cpu: Processor, mm: str, address: int, length: int, visit: Callable[[Vma], Awaitable[int]]
) -> int:
    """``madvise_walk_vmas``: each VMA's part of the range, under mmap_lock for read.

    From v6.17 (a6fde7add78d) under the lock of the one VMA in which the whole range is, if there is
    such a one and nobody changes it.
    """
    end = address + page_align(length)
    if address % PAGE_SIZE or length <= 0 or end > cpu.world.address_end():
        return -EINVAL
    vma = await try_vma_read_lock(cpu, mm, address, end)
    if vma:
        result = await visit(vma.part(address, end))
        await vma_end_read(cpu, mm, vma)
        return result
    await mmap_read_lock(cpu, mm)
    covered, result = 0, 0
    for vma in (await cpu.mem(VmaFind(mm, address, end))).vmas:
        part = vma.part(max(vma.start, address), min(vma.end, end))
        covered += part.end - part.start
        result = await visit(part)
        if result:
            break
    await mmap_read_unlock(cpu, mm)
    return result or (0 if covered == end - address else -ENOMEM)


async def madvise_nohugepage(cpu: Processor, mm: str, address: int, length: int) -> int:
    """``madvise(MADV_NOHUGEPAGE)``: ``hugepage_madvise``, and the VMAs get the flag.

    mmap_lock is held for write; a part of a VMA becomes one of its own (``madvise_update_vma``).
    """
    end = address + page_align(length)
    if address % PAGE_SIZE or length <= 0 or end > cpu.world.address_end():
        return -EINVAL
    await mmap_write_lock(cpu, mm)
    covered = 0
    for vma in (await cpu.mem(VmaFind(mm, address, end))).vmas:
        part = vma.part(max(vma.start, address), min(vma.end, end))
        covered += part.end - part.start
        flagged = msgspec.structs.replace(part, nohugepage=True)
        await vma_start_write(cpu, mm, part.start, part.end)
        await cpu.mem(VmaReplace(mm, part.start, part.end, (flagged,)))
    await mmap_write_unlock(cpu, mm)
    return 0 if covered == end - address else -ENOMEM


async def try_vma_read_lock(cpu: Processor, mm: str, start: int, end: int) -> Vma | None:
    """``try_vma_read_lock`` (v6.17): the VMA, held for read; None: mmap_lock is to be taken."""
    if not cpu.world.kernel.mm.madvise_vma_lock:
        return None
    vma = await lock_vma_under_rcu(cpu, mm, start, fault=False)
    if vma and end > vma.end:
        await vma_end_read(cpu, mm, vma)
        return None
    return vma


async def madvise_free_single_vma(cpu: Processor, mm: str, start: int, end: int) -> None:
    """``madvise_free_single_vma``: gather, bracket, clean the entries, flush.

    An architecture that flushes when it is done with a VMA (arm64) does so inside the bracket.

    cpu0 (MADV_FREE)                    cpu1, device0
                                        (hold a writable, dirty copy)
    entries: clean
    flush                               [Required: the copies are gone before this returns, for a
    return                              store through one would leave the entry clean]
                                        store: makes the entry dirty again
    """
    gather = await mmu_gather.tlb_gather_mmu(cpu, mm, start, end)
    range_ = MmuNotifierRange(mm, start, end, MmuNotifierEvent.CLEAR)

    async def pmd_entry(table: int, address: int, end: int) -> None:
        await madvise_free_pte_range(cpu, gather, table, address, end)

    await mmu_notifier.invalidate_range_start(cpu, range_)
    await walk_page_range(cpu, mm, start, end, pmd_entry)
    await mmu_gather.tlb_end_vma(cpu, gather)
    await mmu_notifier.invalidate_range_end(cpu, range_)
    await mmu_gather.tlb_finish_mmu(cpu, gather)


async def madvise_free_pte_range(
    cpu: Processor, gather: MmuGather, table: int, address: int, end: int
) -> None:  # fmt: skip
    """``madvise_free_pte_range``: the entries of one leaf table, under its PTL."""
    await spin_lock(cpu, table)
    await tlbbatch.flush_tlb_batched_pending(cpu, gather.mm)
    while found := await next_pte_not_none(cpu, table, address, end):
        at, pte = found
        await _free_pte(cpu, gather, table, at, pte)
        address = at + PAGE_SIZE
    await spin_unlock(cpu, table)


async def _free_pte(
    cpu: Processor, gather: MmuGather, table: int, address: int, pte: int
) -> None:  # fmt: skip
    """One entry: what is in swap goes at once, what is mapped when memory is short."""
    if ptes.is_swap(pte):
        await ptep_get_and_clear(cpu, table, address)
        await cpu.mem(FreeSwapAndCache(ptes.frame_of(pte)))
        return
    if not ptes.pte_present(pte) or pte & ptes.SPECIAL:
        return
    folio = ptes.frame_of(pte)
    flags = await cpu.mem(FolioFlags(folio))
    if (flags.dirty or flags.swapcache) and not await _clean_folio(cpu, folio):
        return
    if pte & (ptes.ACCESSED | ptes.DIRTY):
        old = await ptep_get_and_clear(cpu, table, address)
        await set_pte_at(cpu, table, address, old & ~(ptes.ACCESSED | ptes.DIRTY))
        gather.adjust_range(address)
    await cpu.mem(FolioMarkLazyfree(folio))
    cpu.port.emit(PageLazyfree(gather.mm, address))


async def _clean_folio(cpu: Processor, folio: int) -> bool:
    """Its content need not be kept, neither here nor in swap; False: others want it, or have it.

    A KSM page is left alone, as its content may be others' again later.  The kernel does not ask
    for that here, as far as was read; what becomes of such a page that is merged with again is not
    modelled.
    """
    if not await folio_trylock(cpu, folio):
        return False
    mapped = await cpu.mem(RmapWalk(folio))
    clean = len(mapped.places) == 1 and not mapped.ksm
    if clean:
        clean = (await cpu.mem(FolioFreeSwap(folio))).value
    if clean:
        await cpu.mem(FolioClearDirty(folio))
    await folio_unlock(cpu, folio)
    return clean
