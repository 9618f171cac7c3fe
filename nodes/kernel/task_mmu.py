"""fs/proc/task_mmu.c: ``/proc/PID/clear_refs``."""

from __future__ import annotations

from mmurace.nodes.kernel import mmu_gather, mmu_notifier, tlb
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.locking import (
    mmap_read_unlock,
    mmap_write_downgrade,
    mmap_write_lock,
    mmap_write_unlock,
    spin_lock,
    spin_unlock,
)
from mmurace.nodes.kernel.mm_inline import dec_tlb_flush_pending, inc_tlb_flush_pending
from mmurace.nodes.kernel.mmu_notifier import MmuNotifierRange
from mmurace.nodes.kernel.pagewalk import walk_page_range
from mmurace.nodes.kernel.pgtable import next_pte_not_none, ptep_get_and_clear, set_pte_at
from mmurace.nodes.kernel.vma_lock import vma_start_write
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE, ULONG_MAX
from mmurace.protocol.messages.memory import (
    VmaFind,
)


async def clear_refs_write(cpu: Processor, mm: str) -> int:
    """``clear_refs_write`` of CLEAR_REFS_SOFT_DIRTY: every page read-only, so that stores are seen.

    The bracket is [0, -1UL) in all releases: before v6.6 this is who tells ``invalidate_range`` of
    everything, from ``invalidate_range_end``.  The CPUs are flushed behind it.

    cpu0 (clear_refs)                   cpu1
                                        (TLB holds the page, writable and dirty)
    pte: read-only, not soft-dirty
    flush                               [Required: the copy is gone before this returns, or a store
    return                              through it is in nobody's report]
    """
    gathers = cpu.world.kernel.mm.clear_refs_flush != "flush_tlb_mm"
    await mmap_write_lock(cpu, mm)
    if gathers:
        await _with_gather(cpu, mm)
        await mmap_read_unlock(cpu, mm)
    else:
        await inc_tlb_flush_pending(cpu, mm)
        await _clear_soft_dirty_range(cpu, mm)
        await tlb.flush_tlb_mm(cpu, mm)
        await dec_tlb_flush_pending(cpu, mm)
        await mmap_write_unlock(cpu, mm)
    return 0


async def _with_gather(cpu: Processor, mm: str) -> None:
    """To v5.10: mmap_lock held for read, and a gather of everything.

    To v5.5 that is a ``fullmm`` gather, which flushes at its end.  From v5.6 (0758cd830494) a
    gather that has cleared nothing flushes nothing, unless another is in flight.
    """
    gather = await mmu_gather.tlb_gather_mmu(cpu, mm, 0, ULONG_MAX)
    await mmap_write_downgrade(cpu, mm)
    await _clear_soft_dirty_range(cpu, mm)
    if cpu.world.kernel.mm.clear_refs_flush == "fullmm_gather":
        gather.fullmm = True
        gather.reset()
    await mmu_gather.tlb_finish_mmu(cpu, gather)


async def _clear_soft_dirty_range(cpu: Processor, mm: str) -> None:
    """The bracket, and ``clear_refs_pte_range`` for what is mapped in it.

    arm64 has no CONFIG_MEM_SOFT_DIRTY: its ``clear_soft_dirty`` is empty.
    """
    range_ = MmuNotifierRange(mm, 0, ULONG_MAX, MmuNotifierEvent.SOFT_DIRTY)
    await mmu_notifier.invalidate_range_start(cpu, range_)

    async def pmd_entry(table: int, address: int, end: int) -> None:
        await clear_refs_pte_range(cpu, table, address, end)

    if cpu.world.kernel.machine != "arm64":
        for vma in (await cpu.mem(VmaFind(mm, 0, cpu.world.address_end()))).vmas:
            await vma_start_write(cpu, mm, vma.start, vma.end)
            await walk_page_range(cpu, mm, vma.start, vma.end, pmd_entry)
    await mmu_notifier.invalidate_range_end(cpu, range_)


async def clear_refs_pte_range(cpu: Processor, table: int, address: int, end: int) -> None:
    """``clear_refs_pte_range``: ``clear_soft_dirty`` of each entry, under the PTL."""
    await spin_lock(cpu, table)
    while found := await next_pte_not_none(cpu, table, address, end):
        at, pte = found
        if ptes.pte_present(pte):
            old = await ptep_get_and_clear(cpu, table, at)
            await set_pte_at(cpu, table, at, old & ~ptes.WRITE)
        address = at + PAGE_SIZE
    await spin_unlock(cpu, table)
