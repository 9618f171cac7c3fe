"""mm/memory.c: page faults, zapping, freeing page tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmurace.nodes.kernel import (
    do_fault,
    do_swap_page,
    gup,
    mmu_gather,
    mmu_notifier,
    page_alloc,
    pgtable,
    tlb,
    tlbbatch,
)
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EFAULT, ENOMEM
from mmurace.nodes.kernel.mmu_gather import MmuGather
from mmurace.nodes.kernel.mmu_notifier import MmuNotifierRange
from mmurace.nodes.world import MEMORY
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.filemap import FileVma
from mmurace.protocol.messages.memory import (
    AnonVmaLock,
    AnonVmaUnlock,
    FolioUnlock,
    FolioWait,
    FrameAlloc,
    FrameCopy,
    MmapLock,
    MmapUnlock,
    PageAnon,
    PageGet,
    PagePut,
    PteGetAndClear,
    PteLoad,
    PteScan,
    PteSet,
    PtlLock,
    PtlUnlock,
    RmapAdd,
    RmapRemove,
    RmapWalk,
    Vma,
    VmaFind,
)
from mmurace.protocol.messages.swap import FolioFreeSwap, FolioMarkDirty, FolioTrylock, SwapFree
from mmurace.protocol.ranges import page_of
from mmurace.protocol.records import Coverage

Vmas = Sequence[Vma | FileVma]
"""What is zapped; of interest is whether it is shared."""
Mapped = tuple[int, int]
"""A frame, and where it was mapped."""

ZERO_PAGE = 0
ANON_FLAGS = ptes.PRESENT | ptes.ACCESSED


@dataclass(slots=True)
class VmFault:
    """``struct vm_fault``: what faults, in which VMA, at which leaf entry."""

    mm: str
    address: int
    write: bool
    vma: Vma
    table: int
    pte: int

    @property
    def write_flags(self) -> int:
        """``maybe_mkwrite(pte_mkdirty(...))``."""
        return ptes.WRITE | ptes.DIRTY if self.vma.write and self.write else 0


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
    if ptes.is_migration(pte):
        await cpu.mem(MmapUnlock(mm))
        return await migration_entry_wait(cpu, fault)
    result = await handle_pte_fault(cpu, fault)
    await cpu.mem(MmapUnlock(mm))
    return result


async def handle_pte_fault(cpu: Processor, fault: VmFault) -> int:
    """``handle_pte_fault``: nothing there, not writable, or nothing left to do."""
    if ptes.is_swap(fault.pte):
        place = (fault.table, pgtable.pte_index(cpu, fault.address))
        return await do_swap_page.do_swap_page(
            cpu, fault.mm, fault.vma, fault.address, place, fault.pte
        )
    if not ptes.pte_present(fault.pte):
        if fault.vma.file:
            return await do_fault.do_fault(
                cpu, fault.mm, fault.vma, fault.address, fault.table, fault.write
            )
        return await do_anonymous_page(cpu, fault)
    if fault.write and not fault.pte & ptes.WRITE:
        return await do_wp_page(cpu, fault)
    return await _mark_accessed(cpu, fault)


async def migration_entry_wait(cpu: Processor, fault: VmFault) -> int:
    """``migration_entry_wait``: sleep until the migrating folio is unlocked; then retry."""
    cpu.port.emit(Coverage("migration_entry_wait"))
    await cpu.sleep(MEMORY, FolioWait(ptes.frame_of(fault.pte)))
    return 0


async def _mark_accessed(cpu: Processor, fault: VmFault) -> int:
    """The end of ``handle_pte_fault``: somebody else has done it, or a spurious fault."""
    changed = False
    await cpu.mem(PtlLock(fault.table))
    now = await _load(cpu, fault)
    if now == fault.pte:
        new = now | ptes.ACCESSED | (ptes.DIRTY if fault.write else 0)
        changed = await pgtable.ptep_set_access_flags(
            cpu, fault.mm, fault.address, fault.table, now, new
        )
        if not changed:
            await tlb.flush_tlb_fix_spurious_fault(cpu, fault.mm, fault.address)
    await cpu.mem(PtlUnlock(fault.table))
    if changed:
        await notify_upgrade(cpu, fault)
    return 0


async def _load(cpu: Processor, fault: VmFault) -> int:
    return (await cpu.mem(PteLoad(fault.table, pgtable.pte_index(cpu, fault.address)))).pte


async def do_anonymous_page(cpu: Processor, fault: VmFault) -> int:
    """``do_anonymous_page``: the zero page for a read, a zeroed page for a write."""
    if not fault.write:
        zero = ptes.make(ZERO_PAGE, ANON_FLAGS | ptes.SPECIAL)
        await cpu.mem(PtlLock(fault.table))
        if await _load(cpu, fault) == ptes.NONE:
            await _set(cpu, fault, zero)
        await cpu.mem(PtlUnlock(fault.table))
        return 0
    frame = await page_alloc.alloc_pages(cpu, fault.mm, FrameAlloc("anon"))
    if frame < 0:
        return -ENOMEM
    await cpu.mem(PtlLock(fault.table))
    raced = await _load(cpu, fault) != ptes.NONE
    if not raced:
        await cpu.mem(RmapAdd(frame, fault.mm, fault.address))
        await _set(cpu, fault, ptes.make(frame, ANON_FLAGS | fault.write_flags))
    await cpu.mem(PtlUnlock(fault.table))
    if raced:
        await cpu.mem(PagePut(frame))
    return 0


async def _set(cpu: Processor, fault: VmFault, pte: int) -> None:
    await cpu.mem(PteSet(fault.table, pgtable.pte_index(cpu, fault.address), pte))


async def do_wp_page(cpu: Processor, fault: VmFault) -> int:
    """``do_wp_page``: write to the page of the file, reuse a page that is ours alone, or copy."""
    await cpu.mem(PtlLock(fault.table))
    if await _load(cpu, fault) != fault.pte:
        await cpu.mem(PtlUnlock(fault.table))
        return 0
    frame, counted = ptes.frame_of(fault.pte), not fault.pte & ptes.SPECIAL
    of_file = counted and bool(fault.vma.file)
    cached = of_file and not (await cpu.mem(PageAnon(frame))).value
    if counted and not cached and await wp_can_reuse_anon_folio(cpu, frame):
        await wp_page_reuse(cpu, fault)
        await cpu.mem(PtlUnlock(fault.table))
        await notify_upgrade(cpu, fault)
        return 0
    if counted:
        await cpu.mem(PageGet(frame))
    await cpu.mem(PtlUnlock(fault.table))
    shared = cached and fault.vma.shared
    return await (wp_page_shared if shared else wp_page_copy)(cpu, fault)


async def wp_can_reuse_anon_folio(cpu: Processor, folio: int) -> bool:
    """``reuse_swap_page`` to v5.16, ``wp_can_reuse_anon_folio``: mapped once, no swap entry.

    Under the PTL.  A page that somebody has locked is copied; to v5.8 its lock is waited for.

    cpu0 (reclaim)                      cpu1 (write fault in the other process)
    folio lock
    swap entry in place of one mapping
                                        mapped once      [Required: not reused, or what is stored
    write it to swap                    goes to swap, where the first process reads it]
    """
    if not (await cpu.mem(FolioTrylock(folio))).value:
        return False
    alone = len((await cpu.mem(RmapWalk(folio))).places) == 1
    alone = alone and (await cpu.mem(FolioFreeSwap(folio))).value
    await cpu.mem(FolioUnlock(folio))
    return alone


async def wp_page_shared(cpu: Processor, fault: VmFault) -> int:
    """``wp_page_shared`` with ``finish_mkwrite_fault``: the caller took a reference.

    cpu0 (write fault)                  cpu1 (writeback)
    folio lock; page: dirty             waits for it
    PTL; pte: writable, dirty           [Required: not clean between the two]
    unlock                              pte: read-only, clean; writes the page
    """
    frame = ptes.frame_of(fault.pte)
    changed = False
    locked = await do_fault.do_page_mkwrite(cpu, fault.vma.file, frame)
    if locked:
        await cpu.mem(PtlLock(fault.table))
        changed = await _load(cpu, fault) == fault.pte
        if changed:
            await wp_page_reuse(cpu, fault)
        await cpu.mem(PtlUnlock(fault.table))
        await cpu.mem(FolioUnlock(frame))
    await gup.put_page(cpu, frame)
    if changed:
        await notify_upgrade(cpu, fault)
    return 0


async def wp_page_reuse(cpu: Processor, fault: VmFault) -> None:
    """``wp_page_reuse``: the same frame, now writable; under the PTL."""
    new = fault.pte | ptes.ACCESSED | fault.write_flags
    await pgtable.ptep_set_access_flags(cpu, fault.mm, fault.address, fault.table, fault.pte, new)


async def notify_upgrade(cpu: Processor, fault: VmFault) -> None:
    """A bracket back to back once the PTL is dropped (proposed in May 2023, never merged).

    It does not surround the change, so nothing may be concluded from being inside it; a
    shared-table secondary is flushed by the ``invalidate_range`` of its end.
    """
    if not cpu.world.kernel.mm.upgrade_notify.startswith("generic_after_ptl"):
        return
    range_ = MmuNotifierRange(
        fault.mm, fault.address, fault.address + PAGE_SIZE, MmuNotifierEvent.PROTECTION_UPGRADE
    )
    await mmu_notifier.invalidate_range_start(cpu, range_)
    await mmu_notifier.invalidate_range_end(cpu, range_)


async def wp_page_copy(cpu: Processor, fault: VmFault) -> int:
    """``wp_page_copy``: a new frame in place of a shared one (the caller took a reference).

    cpu0 (COW)                          device, through its IOTLB
    clear pte; flush CPUs and secondaries
                                        [Required: no old translation from here on]
    publish the new frame               reads the new frame, never the old one after it
    """
    source = ptes.frame_of(fault.pte)
    counted = not fault.pte & ptes.SPECIAL
    frame = await page_alloc.alloc_pages(cpu, fault.mm, FrameAlloc("anon"))
    if frame < 0:
        await gup.put_page(cpu, source)
        return -ENOMEM
    if counted:
        await cpu.mem(FrameCopy(source, frame))
    range_ = MmuNotifierRange(
        fault.mm, fault.address, fault.address + PAGE_SIZE, MmuNotifierEvent.CLEAR
    )
    await mmu_notifier.invalidate_range_start(cpu, range_)
    await cpu.mem(PtlLock(fault.table))
    raced = await _load(cpu, fault) != fault.pte
    if not raced:
        await pgtable.ptep_clear_flush_notify(cpu, fault.mm, fault.address, fault.table)
        await cpu.mem(RmapAdd(frame, fault.mm, fault.address))
        await _set(cpu, fault, ptes.make(frame, ANON_FLAGS | fault.write_flags))
        if counted:  # only now: who finds the page mapped once may write to it
            await cpu.mem(RmapRemove(source, fault.mm, fault.address))
    await cpu.mem(PtlUnlock(fault.table))
    await mmu_notifier.invalidate_range_end(cpu, range_, cpu.world.kernel.mm.cow_range_only_end)
    await gup.put_page(cpu, frame if raced else source)
    await gup.put_page(cpu, source)
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
    """``unmap_page_range``: zap every leaf table of [start, end)."""

    async def visit(table: int, first: int, last: int, address: int) -> None:
        await zap_pte_range(cpu, gather, table, (first, last), address, vmas)

    await pgtable.walk_page_range(cpu, gather.mm, start, end, visit)


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
            await cpu.mem(SwapFree(frame))
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
    """``free_pgd_range`` and what is below it: children that lie in the gap go, others stay."""
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
            await cpu.mem(PtlLock(table))
            await cpu.mem(PteGetAndClear(table, found.index))
            await cpu.mem(PtlUnlock(table))
            mmu_gather.free_table(gather, child, at)
