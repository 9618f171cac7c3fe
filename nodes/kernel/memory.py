"""mm/memory.c: page faults, zapping, freeing page tables."""

from __future__ import annotations

from collections.abc import Sequence

from mmurace.nodes.kernel import (
    device_entry,
    do_fault,
    do_numa_page,
    do_swap_page,
    do_wp_page,
    migration_entry,
    mmu_gather,
    mmu_notifier,
    page_alloc,
    pgtable,
    tlb,
    tlbbatch,
)
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EFAULT, ENOMEM
from mmurace.nodes.kernel.locking import (
    anon_vma_lock_write,
    anon_vma_unlock_write,
    i_mmap_lock_read,
    i_mmap_lock_write,
    i_mmap_unlock_read,
    i_mmap_unlock_write,
    mmap_read_lock,
    mmap_read_unlock,
    spin_lock,
    spin_unlock,
)
from mmurace.nodes.kernel.mmu_gather import MmuGather
from mmurace.nodes.kernel.mmu_notifier import MmuNotifierRange
from mmurace.nodes.kernel.page_ref import ZERO_PAGE, put_page
from mmurace.nodes.kernel.pagewalk import walk_page_range
from mmurace.nodes.kernel.pgtable import (
    PMD,
    PTE,
    TABLE_FLAGS,
    addr_end,
    next_entry_not_none,
    next_pte_not_none,
    ptep_get,
    ptep_get_and_clear,
    set_pte_at,
)
from mmurace.nodes.kernel.vm_fault import ANON_FLAGS, VM_FAULT_RETRY, VmFault
from mmurace.nodes.kernel.vma_lock import vmf_anon_prepare
from mmurace.nodes.translation import table_index
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.filemap import FileVma, ImmapWalk
from mmurace.protocol.messages.memory import (
    FrameAlloc,
    PteGetAndClear,
    PteLoad,
    PteSet,
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


# ---- page faults -----------------------------------------------------------------------------


async def handle_mm_fault(cpu: Processor, mm: str, address: int, write: bool) -> int:
    """A page fault of any agent on ``mm``: 0 (retry the access) or -errno.

    arch ``do_user_addr_fault`` with ``handle_mm_fault``; takes mmap_lock for read.
    """
    await mmap_read_lock(cpu, mm)
    result = await handle_mm_fault_locked(cpu, mm, page_of(address), write)
    await mmap_read_unlock(cpu, mm)
    return result


async def handle_mm_fault_locked(cpu: Processor, mm: str, address: int, write: bool) -> int:
    """``handle_mm_fault`` itself, of a page: the caller has mmap_lock."""
    found = (await cpu.mem(VmaFind(mm, address, address + PAGE_SIZE))).vmas
    if not found or not (found[0].write if write else found[0].read):
        return -EFAULT
    return await fault_in_vma(cpu, mm, address, write, found[0])


async def fault_in_vma(
    cpu: Processor, mm: str, address: int, write: bool, vma: Vma, vma_lock: bool = False
) -> int:
    """``__handle_mm_fault``: 0, -errno, or VM_FAULT_RETRY if the lock of the VMA does not do."""
    table = await pte_alloc_map(cpu, mm, address)
    if table < 0:
        return -ENOMEM
    pte = await ptep_get(cpu, table, address)
    fault = VmFault(mm, address, write, vma, table, pte, vma_lock)
    if needs_mmap_lock(cpu, fault):
        return VM_FAULT_RETRY
    return await handle_pte_fault(cpu, fault)


def needs_mmap_lock(cpu: Processor, fault: VmFault) -> bool:
    """What is not handled with the VMA's lock alone, by release.

    v6.4 (17c05f18e541): nothing that is not present.  v6.6 (4c2f803abb17): no fault for which a
    file would be asked.  All releases: no page of a device, whose ``migrate_to_ram`` is not ready
    for it.
    """
    if not fault.vma_lock:
        return False
    missing = not ptes.pte_present(fault.pte)
    match cpu.world.kernel.mm.fault_vma_lock:
        case "anon" if missing and fault.pte:
            return True
        case "without_files" if fault.vma.file and (missing and not fault.pte):
            return True
        case "without_files" if fault.vma.shared and fault.write:
            return True
    return missing and ptes.is_device_private(fault.pte)


async def handle_pte_fault(cpu: Processor, fault: VmFault) -> int:
    """``handle_pte_fault``: nothing there, in swap, not writable, or nothing left to do."""
    if ptes.is_migration(fault.pte):  # do_swap_page
        return await migration_entry.migration_entry_wait(cpu, fault.table, fault.address)
    if ptes.is_swap(fault.pte):
        return await do_swap_page.do_swap_page(cpu, fault)
    if ptes.is_device_private(fault.pte):
        return await device_entry.do_device_private_page(cpu, fault)
    if ptes.is_device_exclusive(fault.pte):
        return await device_entry.remove_device_exclusive_entry(cpu, fault)
    if not ptes.pte_present(fault.pte):
        if fault.vma.file:
            return await do_fault.do_fault(cpu, fault)
        return await do_anonymous_page(cpu, fault)
    await spin_lock(cpu, fault.table)
    if await ptep_get(cpu, fault.table, fault.address) != fault.pte:
        await spin_unlock(cpu, fault.table)
        return 0
    if fault.pte & ptes.PROTNONE:  # the VMA may be accessed
        return await do_numa_page.do_numa_page(cpu, fault)
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
    await spin_unlock(cpu, fault.table)
    if changed:
        await do_wp_page.bracket_after_upgrade(cpu, fault)
    return 0


async def do_anonymous_page(cpu: Processor, fault: VmFault) -> int:
    """``do_anonymous_page``: the zero page for a read, a zeroed page for a write."""
    if not fault.write:
        zero = ptes.make(ZERO_PAGE, ANON_FLAGS | ptes.SPECIAL)
        await spin_lock(cpu, fault.table)
        if await ptep_get(cpu, fault.table, fault.address) == ptes.NONE:
            await set_pte_at(cpu, fault.table, fault.address, zero)
        await spin_unlock(cpu, fault.table)
        return 0
    if retry := await vmf_anon_prepare(cpu, fault):
        return retry
    frame = await page_alloc.alloc_pages(cpu, fault.mm, FrameAlloc("anon"))
    if frame < 0:
        return -ENOMEM
    # smp_wmb() of __folio_mark_uptodate: the page is zeroed before an entry leads to it
    await spin_lock(cpu, fault.table)
    raced = await ptep_get(cpu, fault.table, fault.address) != ptes.NONE
    if not raced:
        await cpu.mem(RmapAdd(frame, fault.mm, fault.address, exclusive=True))
        await set_pte_at(
            cpu, fault.table, fault.address, ptes.make(frame, ANON_FLAGS | fault.write_flags)
        )
    await spin_unlock(cpu, fault.table)
    if raced:
        await put_page(cpu, frame)
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

    async def pmd_entry(table: int, address: int, end: int) -> None:
        await zap_pte_range(cpu, gather, table, address, end, vmas)

    for vma in vmas:
        at, to = max(vma.start, start), min(vma.end, end)
        await walk_page_range(cpu, gather.mm, at, to, pmd_entry)
        await mmu_gather.tlb_end_vma(cpu, gather)


async def zap_pte_range(
    cpu: Processor, gather: MmuGather, table: int, address: int, end: int, vmas: Vmas
) -> None:  # fmt: skip
    """``zap_pte_range``: clear entries under the PTL; a full batch is freed after it.

    If it is full, or a dirty entry of a shared mapping is among them, all are flushed before the
    PTL is released (``force_flush``; 1cf35d47712d, v3.15).
    """
    while address < end:
        full, written = False, list[Mapped]()
        await spin_lock(cpu, table)
        await tlbbatch.flush_tlb_batched_pending(cpu, gather.mm)
        while address < end and not full:
            found = await next_pte_not_none(cpu, table, address, end)
            address = found[0] + PAGE_SIZE if found else end
            if found:
                at = found[0]
                shared = any(vma.shared and vma.start <= at < vma.end for vma in vmas)
                full = await _zap_present_pte(cpu, gather, table, at, written if shared else None)
        if full or written:
            await mmu_gather.tlb_flush_mmu_tlbonly(cpu, gather)
            await tlb_flush_rmaps(cpu, gather, written)
        await spin_unlock(cpu, table)
        if full:
            cpu.port.emit(Coverage("gather_batch_full"))
        if full or written:
            await mmu_gather.tlb_flush_mmu(cpu, gather)


async def _zap_present_pte(
    cpu: Processor, gather: MmuGather, table: int, address: int, written: list[Mapped] | None
) -> bool:
    """``zap_present_ptes`` or ``zap_nonpresent_ptes``: clear one entry; True if the batch is full.

    ``written`` gets the page if the mapping is shared (else there is none) and the entry was dirty:
    the page itself has to say so from now on.
    """
    old = await ptep_get_and_clear(cpu, table, address)
    frame = ptes.frame_of(old)
    if not ptes.pte_present(old):
        if ptes.is_migration(old):  # it holds no reference
            await cpu.mem(RmapRemove(frame, gather.mm, address))
        elif ptes.is_swap(old):
            await cpu.mem(FreeSwapAndCache(frame))
        elif ptes.usable(old):
            await device_entry.zap_device_entry(cpu, gather.mm, address, old)
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


async def tlb_flush_rmaps(cpu: Processor, gather: MmuGather, written: list[Mapped]) -> None:
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


async def unmap_mapping_range(cpu: Processor, file: str, start: int, end: int) -> None:
    """``unmap_mapping_range``: zap bytes [start, end) of the file wherever they are mapped.

    It takes no mmap_lock.  i_mmap_lock pairs with ``vma_link_file`` and ``unlink_file_vma``, and
    the PTL with that of whoever sets an entry meanwhile.

    cpu1 (truncate)                     cpu0 (mremap, fork, munmap of the same pages)
    i_mmap_lock                         mmap_lock
    PTL of each table                   PTL of each table, and nothing else in common
    """
    lock, unlock = i_mmap_lock_read, i_mmap_unlock_read
    if cpu.world.kernel.mm.unmap_mapping_lock == "exclusive":
        lock, unlock = i_mmap_lock_write, i_mmap_unlock_write
    await lock(cpu, file)
    for vma in (await cpu.mem(ImmapWalk(file, start, end))).vmas:
        await zap_page_range_single(cpu, vma.mm, vma)
    await unlock(cpu, file)


# ---- page tables -----------------------------------------------------------------------------


async def free_pgtables(
    cpu: Processor, gather: MmuGather, start: int, end: int, floor: int, ceiling: int
) -> None:
    """``free_pgtables``: free the tables that map nothing but [floor, ceiling).

    ``unlink_anon_vmas`` comes first: an rmap walk that still looks at these tables holds the
    rmap lock, and none that starts later finds them.
    """
    await anon_vma_lock_write(cpu, gather.mm)
    await anon_vma_unlock_write(cpu, gather.mm)
    top = cpu.world.levels - 1
    await free_pgd_range(cpu, gather, top, cpu.world.pgd(gather.mm), (start, end, floor, ceiling))


async def free_pgd_range(
    cpu: Processor, gather: MmuGather, level: int, table: int, span: tuple[int, int, int, int]
) -> None:
    """``free_pgd_range`` .. ``free_pmd_range``: children that lie in the gap go, others stay.

    ``free_pte_range`` clears the pmd under no lock of its own (``pmd_clear``): there is no
    VMA in the gap whose fault could look for it, and no rmap leads there.
    """
    address, end, floor, ceiling = span
    while level > PTE and (found := await next_entry_not_none(cpu, level, table, address, end)):
        address, following = found[0], addr_end(cpu, level, found[0], end)
        child = ptes.frame_of(found[1])
        await free_pgd_range(cpu, gather, level - 1, child, (address, following, floor, ceiling))
        size = 1 << cpu.world.shift(level)
        base = address - address % size
        if floor <= base and base + size <= ceiling:
            await cpu.mem(PteGetAndClear(table, table_index(cpu.world, level, address)))
            mmu_gather.pte_free_tlb(gather, child, base)
        address = following


async def pte_alloc_map(cpu: Processor, mm: str, address: int) -> int:
    """``p4d_alloc`` .. ``pte_alloc_map`` (include/linux/mm.h): the leaf table of ``address``.

    Made if need be; -1: no memory.
    """
    return await _alloc(cpu, mm, address, PTE)


async def pmd_alloc(cpu: Processor, mm: str, address: int) -> int:
    """``p4d_alloc`` .. ``pmd_alloc``: the table with the pmd of ``address``; -1: no memory."""
    return await _alloc(cpu, mm, address, PMD)


async def _alloc(cpu: Processor, mm: str, address: int, down_to: int) -> int:
    table = cpu.world.pgd(mm)
    for level in range(cpu.world.levels - 1, down_to, -1):
        upper = (await cpu.mem(PteLoad(table, table_index(cpu.world, level, address)))).pte
        if not ptes.hw_present(upper):
            upper = await _pte_alloc(cpu, mm, table, level, address)
            if not upper:
                return -1
        table = ptes.frame_of(upper)
    return table


async def _pte_alloc(cpu: Processor, mm: str, table: int, level: int, address: int) -> int:
    """``__pte_alloc``, ``__pmd_alloc`` and their like: the entry of a new table, or 0: no memory.

    Another thread may have been faster.  ``pmd_install`` stores the entry behind an ``smp_wmb``,
    which pairs with the data dependency of every walk: the table is empty before it is found.
    """
    span = cpu.world.shift(level)
    allocation = FrameAlloc("table", mm, address >> span << span, level - 1)
    frame = await page_alloc.alloc_pages(cpu, mm, allocation)
    if frame < 0:
        return 0
    index = table_index(cpu.world, level, address)
    await spin_lock(cpu, table)
    present = (await cpu.mem(PteLoad(table, index))).pte
    if not ptes.hw_present(present):
        # smp_wmb(): the reply to FrameAlloc says that the table is empty.
        await cpu.mem(PteSet(table, index, ptes.make(frame, TABLE_FLAGS)))
    await spin_unlock(cpu, table)
    if not ptes.hw_present(present):
        return ptes.make(frame, TABLE_FLAGS)
    await put_page(cpu, frame)
    return present
