"""mm/memory.c: page faults, zapping, freeing page tables."""

from __future__ import annotations

from collections.abc import Sequence

from mmurace.nodes.kernel import (
    do_fault,
    do_swap_page,
    do_wp_page,
    migrate,
    mmu_gather,
    mmu_notifier,
    page_alloc,
    pgtable,
    tlb,
    tlbbatch,
    vm_fault,
)
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EFAULT, ENOMEM
from mmurace.nodes.kernel.mmu_gather import MmuGather
from mmurace.nodes.kernel.mmu_notifier import MmuNotifierRange
from mmurace.nodes.kernel.vm_fault import ANON_FLAGS, VmFault
from mmurace.nodes.world import MEMORY
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.filemap import FileVma
from mmurace.protocol.messages.memory import (
    AnonVmaLock,
    AnonVmaUnlock,
    FrameAlloc,
    MmapLock,
    MmapUnlock,
    PagePut,
    PteGetAndClear,
    PteLoad,
    PteScan,
    PtlLock,
    PtlUnlock,
    RmapAdd,
    RmapRemove,
    Vma,
    VmaFind,
)
from mmurace.protocol.messages.swap import FolioMarkDirty, FreeSwapAndCache
from mmurace.protocol.ranges import page_of
from mmurace.protocol.records import Coverage

Vmas = Sequence[Vma | FileVma]
"""What is zapped; of interest is whether it is shared."""
Mapped = tuple[int, int]
"""A frame, and where it was mapped."""

ZERO_PAGE = 0


# ---- page faults -----------------------------------------------------------------------------


async def handle_mm_fault(cpu: Processor, mm: str, address: int, write: bool) -> int:
    """A page fault of any agent on ``mm``: 0 (retry the access) or -errno.

    arch ``do_user_addr_fault`` with ``handle_mm_fault``; takes mmap_lock for read.
    """
    address = page_of(address)
    await cpu.sleep(MEMORY, MmapLock(mm, False))
    found = (await cpu.mem(VmaFind(mm, address, address + PAGE_SIZE))).vmas
    if not found or not (found[0].write if write else found[0].read):
        await cpu.mem(MmapUnlock(mm))
        return -EFAULT
    table = await pgtable.alloc_leaf_table(cpu, mm, address)
    if table < 0:
        await cpu.mem(MmapUnlock(mm))
        return -ENOMEM
    pte = (await cpu.mem(PteLoad(table, pgtable.pte_index(cpu, address)))).pte
    fault = VmFault(mm, address, write, found[0], table, pte)
    result = await handle_pte_fault(cpu, fault)
    await cpu.mem(MmapUnlock(mm))
    return result


async def handle_pte_fault(cpu: Processor, fault: VmFault) -> int:
    """``handle_pte_fault``: nothing there, in swap, not writable, or nothing left to do."""
    if ptes.is_migration(fault.pte):  # do_swap_page
        return await migrate.migration_entry_wait(cpu, fault.table, fault.address)
    if ptes.is_swap(fault.pte):
        return await do_swap_page.do_swap_page(cpu, fault)
    if not ptes.pte_present(fault.pte):
        if fault.vma.file:
            return await do_fault.do_fault(
                cpu, fault.mm, fault.vma, fault.address, fault.table, fault.write
            )
        return await do_anonymous_page(cpu, fault)
    await cpu.mem(PtlLock(fault.table))
    if await vm_fault.load(cpu, fault) != fault.pte:
        await cpu.mem(PtlUnlock(fault.table))
        return 0
    if fault.write and not fault.pte & ptes.WRITE:
        return await do_wp_page.do_wp_page(cpu, fault)
    return await _mark_young(cpu, fault)


async def _mark_young(cpu: Processor, fault: VmFault) -> int:
    """The end of ``handle_pte_fault``: somebody else has done it, or a spurious fault.

    The PTL is held; released here.  Only of a store is it said that it may be a protection fault
    for which a flush of the own TLB is needed.
    """
    new = fault.pte | ptes.ACCESSED | (ptes.DIRTY if fault.write else 0)
    changed = await pgtable.ptep_set_access_flags(
        cpu, fault.mm, fault.address, fault.table, new, fault.write
    )
    if not changed and fault.write:
        await tlb.flush_tlb_fix_spurious_fault(cpu, fault.mm, fault.address)
    await cpu.mem(PtlUnlock(fault.table))
    if changed:
        await do_wp_page.notify_upgrade(cpu, fault)
    return 0


async def do_anonymous_page(cpu: Processor, fault: VmFault) -> int:
    """``do_anonymous_page``: the zero page for a read, a zeroed page for a write."""
    if not fault.write:
        zero = ptes.make(ZERO_PAGE, ANON_FLAGS | ptes.SPECIAL)
        await cpu.mem(PtlLock(fault.table))
        if await vm_fault.load(cpu, fault) == ptes.NONE:
            await vm_fault.set_pte_at(cpu, fault, zero)
        await cpu.mem(PtlUnlock(fault.table))
        return 0
    frame = await page_alloc.alloc_pages(cpu, fault.mm, FrameAlloc("anon"))
    if frame < 0:
        return -ENOMEM
    await cpu.mem(PtlLock(fault.table))
    raced = await vm_fault.load(cpu, fault) != ptes.NONE
    if not raced:
        await cpu.mem(RmapAdd(frame, fault.mm, fault.address, exclusive=True))
        await vm_fault.set_pte_at(cpu, fault, ptes.make(frame, ANON_FLAGS | fault.write_flags))
    await cpu.mem(PtlUnlock(fault.table))
    if raced:
        await cpu.mem(PagePut(frame))
    return 0


# ---- zapping ---------------------------------------------------------------------------------


async def unmap_vmas(
    cpu: Processor, gather: MmuGather, start: int, end: int, vmas: Vmas
) -> None:  # fmt: skip
    """``unmap_vmas``: one bracket around the zap of every VMA in [start, end)."""
    range_ = MmuNotifierRange(gather.mm, start, end, MmuNotifierEvent.UNMAP)
    await mmu_notifier.invalidate_range_start(cpu, range_)
    await unmap_page_range(cpu, gather, start, end, vmas)
    await mmu_notifier.invalidate_range_end(cpu, range_)


async def zap_page_range_single(cpu: Processor, mm: str, vma: Vma | FileVma) -> None:
    """``zap_page_range_single``: gather, bracket, zap, finish; of a VMA, or a part of one."""
    gather = await mmu_gather.tlb_gather_mmu(cpu, mm, vma.start, vma.end)
    range_ = MmuNotifierRange(mm, vma.start, vma.end, MmuNotifierEvent.CLEAR)
    await mmu_notifier.invalidate_range_start(cpu, range_)
    await unmap_page_range(cpu, gather, vma.start, vma.end, (vma,))
    await mmu_notifier.invalidate_range_end(cpu, range_)
    await mmu_gather.tlb_finish_mmu(cpu, gather)


async def unmap_page_range(
    cpu: Processor, gather: MmuGather, start: int, end: int, vmas: Vmas
) -> None:  # fmt: skip
    """``unmap_page_range`` of each VMA in [start, end): zap its leaf tables; ``tlb_end_vma``."""

    async def visit(table: int, first: int, last: int, address: int) -> None:
        await zap_pte_range(cpu, gather, table, (first, last), address, vmas)

    for vma in vmas:
        at, to = max(vma.start, start), min(vma.end, end)
        await pgtable.walk_page_range(cpu, gather.mm, at, to, visit)
        await mmu_gather.tlb_end_vma(cpu, gather)


async def zap_pte_range(
    cpu: Processor, gather: MmuGather, table: int, part: tuple[int, int], address: int, vmas: Vmas
) -> None:
    """``zap_pte_range``: clear entries under the PTL; a full batch is freed after it.

    If it is full, or a dirty entry of a shared mapping is among them, all are flushed before the
    PTL is released (``force_flush``; 1cf35d47712d, v3.15).
    """
    first, last = part
    base = address - first * PAGE_SIZE
    while first < last:
        full, written = False, list[Mapped]()
        await cpu.mem(PtlLock(table))
        await tlbbatch.flush_tlb_batched_pending(cpu, gather.mm)
        while first < last and not full:
            found = await cpu.mem(PteScan(table, first, last))
            first = last if found.index < 0 else found.index + 1
            if found.index >= 0:
                at = base + found.index * PAGE_SIZE
                shared = any(vma.shared and vma.start <= at < vma.end for vma in vmas)
                place = (table, found.index)
                full = await _zap_entry(cpu, gather, place, at, written if shared else None)
        if full or written:
            await mmu_gather.tlb_flush_mmu_tlbonly(cpu, gather)
            await _tlb_flush_rmaps(cpu, gather, written)
        await cpu.mem(PtlUnlock(table))
        if full:
            cpu.port.emit(Coverage("gather_batch_full"))
        if full or written:
            await mmu_gather.tlb_flush_mmu(cpu, gather)


async def _zap_entry(
    cpu: Processor, gather: MmuGather, place: tuple[int, int], address: int,
    written: list[Mapped] | None,
) -> bool:  # fmt: skip
    """Clear one entry; True if the batch is full.

    ``written`` gets the page if the mapping is shared (else there is none) and the entry was dirty:
    the page itself has to say so from now on.
    """
    old = (await cpu.mem(PteGetAndClear(*place))).pte
    frame = ptes.frame_of(old)
    if not ptes.pte_present(old):
        if ptes.is_migration(old):  # it holds no reference
            await cpu.mem(RmapRemove(frame, gather.mm, address))
        elif ptes.is_swap(old):
            await cpu.mem(FreeSwapAndCache(frame))
        return False
    gather.adjust_range(address)
    if old & ptes.SPECIAL:
        return False
    dirty = written is not None and bool(old & ptes.DIRTY)
    if dirty and written is not None:
        await cpu.mem(FolioMarkDirty(frame))
        written.append((frame, address))
    if not (dirty and cpu.world.kernel.mm.zap_delays_rmap):
        await cpu.mem(RmapRemove(frame, gather.mm, address))
    return mmu_gather.tlb_remove_page(cpu, gather, frame)


async def _tlb_flush_rmaps(cpu: Processor, gather: MmuGather, written: list[Mapped]) -> None:
    """``tlb_flush_rmaps`` (5df397dec7c4, v6.2), under the PTL; before, the rmap was told at once.

    cpu0 (zap)                          cpu1                      cpu2 (writeback)
    clear pte: it was dirty             (holds a dirty copy)
    mark the page dirty
                                                                  nobody maps it: clean; write
                                        store
    flush                               [Required: before the rmap forgets the mapping, so that
    forget the mapping                  writeback waits for the PTL]
    """
    if cpu.world.kernel.mm.zap_delays_rmap:
        for frame, address in written:
            await cpu.mem(RmapRemove(frame, gather.mm, address))


# ---- page tables -----------------------------------------------------------------------------


async def free_pgtables(
    cpu: Processor, gather: MmuGather, start: int, end: int, floor: int, ceiling: int
) -> None:
    """``free_pgtables``: free the tables that map nothing but [floor, ceiling).

    ``unlink_anon_vmas`` comes first: an rmap walk that still looks at these tables holds the
    rmap lock, and none that starts later finds them.
    """
    await cpu.sleep(MEMORY, AnonVmaLock(gather.mm, True))
    await cpu.mem(AnonVmaUnlock(gather.mm))
    top = cpu.world.levels - 1
    span = (start, end, floor, ceiling)
    await _free_level(cpu, gather, cpu.world.pgd(gather.mm), top, 0, span)


async def _free_level(
    cpu: Processor,
    gather: MmuGather,
    table: int,
    level: int,
    base: int,
    span: tuple[int, int, int, int],
) -> None:
    """``free_pgd_range`` and what is below it: children that lie in the gap go, others stay.

    ``free_pte_range`` clears the upper entry under no lock of its own (``pmd_clear``): there is no
    VMA in the gap whose fault could look for it, and no rmap leads there.
    """
    start, end, floor, ceiling = span
    if level == 0:
        return
    size = 1 << cpu.world.shift(level)
    first = max(start - base, 0) // size
    last = min((end - base + size - 1) // size, cpu.world.entries)
    while first < last:
        found = await cpu.mem(PteScan(table, first, last))
        if found.index < 0:
            return
        first = found.index + 1
        at = base + found.index * size
        child = ptes.frame_of(found.pte)
        await _free_level(cpu, gather, child, level - 1, at, span)
        if floor <= at and at + size <= ceiling:
            await cpu.mem(PteGetAndClear(table, found.index))
            mmu_gather.free_table(gather, child, at)
