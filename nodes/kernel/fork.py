"""kernel/fork.c ``dup_mmap``, with ``copy_page_range`` of mm/memory.c."""

from __future__ import annotations

from nodes.kernel import filemap, gup, mmap, mmu_notifier, pgtable, tlb
from nodes.kernel.context import Processor
from nodes.kernel.errno import EINVAL, ENOMEM
from nodes.kernel.mmu_notifier import MmuNotifierRange
from nodes.world import MEMORY
from protocol import pte as ptes
from protocol.events import MmuNotifierEvent
from protocol.limits import PAGE_SIZE
from protocol.messages.memory import (
    BrkLoad,
    BrkStore,
    MmapLock,
    MmapUnlock,
    PteCmpxchg,
    PteScan,
    PteSet,
    PtlLock,
    PtlUnlock,
    RmapAdd,
    RmapTryDup,
    Vma,
    VmaFind,
    VmaReplace,
)
from protocol.messages.swap import SwapDuplicate


async def dup_mmap(cpu: Processor, oldmm: str, mm: str) -> int:
    """``fork``: ``dup_mmap``; 0, -ENOMEM, or -EINVAL if ``mm`` is no new one.

    cpu0 (fork)                         cpu1, device: the parent's
    write-protect every private page    may still write through an old entry
    flush the parent's TLBs
    return                              [Required: no such entry from here on: the child
                                        would see what the parent writes]
    """
    await cpu.sleep(MEMORY, MmapLock(oldmm, True))
    await cpu.sleep(MEMORY, MmapLock(mm, True))
    if (await cpu.mem(VmaFind(mm, 0, cpu.world.address_end()))).vmas:
        await cpu.mem(MmapUnlock(mm))
        await cpu.mem(MmapUnlock(oldmm))
        return -EINVAL
    result = await _dup_vmas(cpu, oldmm, mm)
    await cpu.mem(MmapUnlock(mm))
    if cpu.world.kernel.fork_cpu_flush:
        await tlb.flush_tlb_mm(cpu, oldmm)
    await cpu.mem(MmapUnlock(oldmm))
    if result:
        await mmap.exit_mmap(cpu, mm)
    return result


async def _dup_vmas(cpu: Processor, oldmm: str, mm: str) -> int:
    """One VMA after the other: into the child, into the rmap of its file, and its entries."""
    await cpu.mem(BrkStore(mm, (await cpu.mem(BrkLoad(oldmm))).value))
    for vma in (await cpu.mem(VmaFind(oldmm, 0, cpu.world.address_end()))).vmas:
        await cpu.mem(VmaReplace(mm, vma.start, vma.end, (vma,)))
        await filemap.vma_link_file(cpu, mm, vma)
        if vma_needs_copy(vma) and not await copy_page_range(cpu, oldmm, mm, vma):
            return -ENOMEM
    return 0


def vma_needs_copy(vma: Vma) -> bool:
    """``vma_needs_copy`` (v5.19; before, the first lines of ``copy_page_range``): all releases.

    Without an ``anon_vma`` everything that is mapped is of a file, or the zero page, and can be
    faulted in again: nothing is copied, and there is no bracket.  Shared mappings have none.
    """
    return vma.anon_vma


async def copy_page_range(cpu: Processor, src_mm: str, dst_mm: str, vma: Vma) -> bool:
    """``copy_page_range`` of a cow mapping; False: no memory for the child's tables."""
    range_ = MmuNotifierRange(src_mm, vma.start, vma.end, MmuNotifierEvent.PROTECTION_PAGE)
    enough = True

    async def visit(table: int, first: int, last: int, address: int) -> None:
        nonlocal enough
        child = await pgtable.alloc_leaf_table(cpu, dst_mm, address) if enough else -1
        enough = child >= 0
        if enough:
            await copy_pte_range(cpu, dst_mm, (table, child), (first, last), address)

    await mmu_notifier.invalidate_range_start(cpu, range_)
    await pgtable.walk_page_range(cpu, src_mm, vma.start, vma.end, visit)
    await mmu_notifier.invalidate_range_end(cpu, range_)
    return enough


async def copy_pte_range(
    cpu: Processor, dst_mm: str, tables: tuple[int, int], part: tuple[int, int], address: int
) -> None:
    """``copy_pte_range``: the entries of one leaf table, under the child's PTL and the parent's."""
    src, dst = tables
    first, last = part
    base = address - first * PAGE_SIZE
    await cpu.mem(PtlLock(dst))
    await cpu.mem(PtlLock(src))
    while first < last:
        found = await cpu.mem(PteScan(src, first, last))
        if found.index < 0:
            break
        first = found.index + 1
        await _copy_entry(cpu, dst_mm, tables, found.index, found.pte, base)
    await cpu.mem(PtlUnlock(src))
    await cpu.mem(PtlUnlock(dst))


async def _copy_entry(
    cpu: Processor, dst_mm: str, tables: tuple[int, int], index: int, pte: int, base: int
) -> None:
    """One entry that is not none."""
    place = dst_mm, base + index * PAGE_SIZE
    if ptes.pte_present(pte):
        await copy_present_pte(cpu, place, tables, index, pte)
    else:
        await copy_nonpresent_pte(cpu, place, tables, index, pte)


async def copy_present_pte(
    cpu: Processor, place: tuple[str, int], tables: tuple[int, int], index: int, pte: int
) -> None:
    """``copy_present_pte``: the child maps the same page, and neither may write to it.

    An anonymous page is nobody's alone from now on (``page_try_dup_anon_rmap``, v5.19).
    """
    src, dst = tables
    frame = ptes.frame_of(pte)
    if not pte & ptes.SPECIAL:
        await gup.get_page(cpu, frame)
        await cpu.mem(RmapTryDup(frame, *place))
    pte = await ptep_set_wrprotect(cpu, src, index, pte)
    await cpu.mem(PteSet(dst, index, pte & ~ptes.ACCESSED))


async def copy_nonpresent_pte(
    cpu: Processor, place: tuple[str, int], tables: tuple[int, int], index: int, pte: int
) -> None:
    """``copy_nonpresent_pte``: of a swap entry or a migration entry, as shared in both tables."""
    src, dst = tables
    frame = ptes.frame_of(pte)
    shared = pte & ~(ptes.EXCLUSIVE | ptes.WRITE)
    if ptes.is_swap(pte):
        await cpu.mem(SwapDuplicate(frame))
    else:
        await cpu.mem(RmapAdd(frame, *place))
    if shared != pte:
        await cpu.mem(PteSet(src, index, shared))
    await cpu.mem(PteSet(dst, index, shared))


async def ptep_set_wrprotect(cpu: Processor, table: int, index: int, pte: int) -> int:
    """``ptep_set_wrprotect``: one read-modify-write, which a walker's bits do not get lost in."""
    while pte & ptes.WRITE:
        found = (await cpu.mem(PteCmpxchg(table, index, pte, pte & ~ptes.WRITE))).pte
        if found == pte:
            return pte & ~ptes.WRITE
        pte = found
    return pte
