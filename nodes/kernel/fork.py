"""kernel/fork.c ``dup_mmap``, with ``copy_page_range`` of mm/memory.c."""

from __future__ import annotations

from mmurace.nodes.kernel import filemap, gup, mmap, mmu_notifier, pgtable, tlb
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EINVAL, ENOMEM
from mmurace.nodes.kernel.mmu_notifier import MmuNotifierRange
from mmurace.nodes.world import MEMORY
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.memory import (
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
    Vma,
    VmaFind,
    VmaReplace,
)
from mmurace.protocol.messages.swap import SwapDuplicate


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
    if cpu.world.kernel.mm.fork_cpu_flush:
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
        if not vma.shared and not await copy_page_range(cpu, oldmm, mm, vma):
            return -ENOMEM
    return 0


async def copy_page_range(cpu: Processor, src_mm: str, dst_mm: str, vma: Vma) -> bool:
    """``copy_page_range`` of a private mapping; False: no memory for the child's tables.

    What a shared mapping maps can be faulted in again, so it is not copied
    (``vma_needs_copy``), and only a bracket around a cow mapping is needed.
    """
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
    """``copy_present_pte``, or ``copy_nonpresent_pte`` for a migration entry."""
    src, dst = tables
    pte = await ptep_set_wrprotect(cpu, src, index, pte)
    frame, address = ptes.frame_of(pte), base + index * PAGE_SIZE
    present = ptes.pte_present(pte)
    if present and not pte & ptes.SPECIAL:
        await gup.get_page(cpu, frame)
    if ptes.is_swap(pte):
        await cpu.mem(SwapDuplicate(frame))
    if (present and not pte & ptes.SPECIAL) or ptes.is_migration(pte):
        await cpu.mem(RmapAdd(frame, dst_mm, address))
    await cpu.mem(PteSet(dst, index, pte & ~ptes.ACCESSED if present else pte))


async def ptep_set_wrprotect(cpu: Processor, table: int, index: int, pte: int) -> int:
    """``ptep_set_wrprotect``: one read-modify-write, which a walker's bits do not get lost in.

    A migration entry becomes one for reading in the same way.
    """
    while pte & ptes.WRITE:
        found = (await cpu.mem(PteCmpxchg(table, index, pte, pte & ~ptes.WRITE))).pte
        if found == pte:
            return pte & ~ptes.WRITE
        pte = found
    return pte
