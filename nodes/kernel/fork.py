"""kernel/fork.c ``dup_mmap``, with ``copy_page_range`` of mm/memory.c."""

from __future__ import annotations

from mmurace.nodes.kernel import filemap, gup, mmap, mmu_notifier, page_alloc, pgtable, tlb
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
    FrameAlloc,
    FrameCopy,
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
from mmurace.protocol.messages.swap import SwapDuplicate
from mmurace.protocol.records import Coverage


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
            enough = await copy_pte_range(cpu, dst_mm, (table, child), (first, last), address)

    await mmu_notifier.invalidate_range_start(cpu, range_)
    await pgtable.walk_page_range(cpu, src_mm, vma.start, vma.end, visit)
    await mmu_notifier.invalidate_range_end(cpu, range_)
    return enough


async def copy_pte_range(
    cpu: Processor, dst_mm: str, tables: tuple[int, int], part: tuple[int, int], address: int
) -> bool:
    """``copy_pte_range``: the entries of one leaf table, under the child's PTL and the parent's.

    A page that must be copied needs a frame, for which both are released (``page_copy_prealloc``);
    False: there is none.
    """
    first, last = part
    base, prealloc = address - first * PAGE_SIZE, list[int]()
    while first < last:
        await cpu.mem(PtlLock(tables[1]))
        await cpu.mem(PtlLock(tables[0]))
        first = await _copy_entries(cpu, dst_mm, tables, (first, last), base, prealloc)
        await cpu.mem(PtlUnlock(tables[0]))
        await cpu.mem(PtlUnlock(tables[1]))
        if first < last:
            frame = await page_alloc.alloc_pages(cpu, dst_mm, FrameAlloc("anon"))
            if frame < 0:
                return False
            prealloc.append(frame)
    for frame in prealloc:
        await gup.put_page(cpu, frame)
    return True


async def _copy_entries(
    cpu: Processor, dst_mm: str, tables: tuple[int, int], part: tuple[int, int], base: int,
    prealloc: list[int],
) -> int:  # fmt: skip
    """Under both locks: the index at which a frame is needed, or the last."""
    first, last = part
    while first < last:
        found = await cpu.mem(PteScan(tables[0], first, last))
        if found.index < 0:
            break
        place = dst_mm, base + found.index * PAGE_SIZE
        if not ptes.pte_present(found.pte):
            await copy_nonpresent_pte(cpu, place, tables, found.index, found.pte)
        elif not await copy_present_pte(cpu, place, tables, (found.index, found.pte), prealloc):
            return found.index
        first = found.index + 1
    return last


async def copy_present_pte(
    cpu: Processor, place: tuple[str, int], tables: tuple[int, int], entry: tuple[int, int],
    prealloc: list[int],
) -> bool:  # fmt: skip
    """``copy_present_pte``: the child maps the same page, and neither may write to it.

    An anonymous page is nobody's alone from now on; if it is so and may be pinned, the child gets
    a copy (``page_try_dup_anon_rmap``, v5.19), for which ``prealloc`` is needed: False without.
    """
    src, dst = tables
    index, pte = entry
    frame = ptes.frame_of(pte)
    if not pte & ptes.SPECIAL:
        await gup.get_page(cpu, frame)
        if not (await cpu.mem(RmapTryDup(frame, *place))).value:
            await gup.put_page(cpu, frame)
            return await copy_present_page(cpu, place, (dst, index), frame, prealloc)
    pte = await ptep_set_wrprotect(cpu, src, index, pte)
    await cpu.mem(PteSet(dst, index, pte & ~ptes.ACCESSED))
    return True


async def copy_present_page(
    cpu: Processor, place: tuple[str, int], to: tuple[int, int], frame: int,
    prealloc: list[int],
) -> bool:  # fmt: skip
    """``copy_present_page`` (70e806e4e645, v5.9): a copy for the child; the parent keeps its own.

    False: no frame was allocated before the locks were taken.
    """
    if not prealloc:
        return False
    copy = prealloc.pop()
    await cpu.mem(FrameCopy(frame, copy))
    await cpu.mem(RmapAdd(copy, *place, exclusive=True))
    flags = ptes.PRESENT | ptes.ACCESSED | ptes.WRITE | ptes.DIRTY
    await cpu.mem(PteSet(*to, ptes.make(copy, flags)))
    cpu.port.emit(Coverage("fork_copied_pinned"))
    return True


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
