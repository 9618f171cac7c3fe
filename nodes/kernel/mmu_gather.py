"""mm/mmu_gather.c: unmap first, flush once, then free.

The frames and tables that an unmap takes out are queued; they are freed only after the flush that
covers them.  Another gather in flight on the same mm (``mm_tlb_flush_nested``) means that entries
found already cleared may not have been flushed yet, so the whole mm is flushed.
"""

from __future__ import annotations

from mmurace.nodes.kernel import mmu_notifier, tlb
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.mm_inline import (
    dec_tlb_flush_pending,
    inc_tlb_flush_pending,
    mm_tlb_flush_nested,
)
from mmurace.nodes.kernel.page_ref import put_page
from mmurace.nodes.kernel.variant import Kernel
from mmurace.protocol.limits import PAGE_SIZE, ULONG_MAX
from mmurace.protocol.messages.memory import PagePut
from mmurace.protocol.records import Coverage


class MmuGather:
    """``struct mmu_gather``."""

    __slots__ = ("asked", "end", "freed_tables", "fullmm", "mm", "pages", "start", "tables")

    def __init__(self, mm: str, start: int, end: int) -> None:
        self.mm = mm
        self.asked = (start, end)
        """What it was begun for; it may find less."""
        self.fullmm = False
        self.freed_tables = False
        self.pages: list[int] = []
        self.tables: list[int] = []
        self.start, self.end = ULONG_MAX, 0
        self._reset_range()

    def _reset_range(self) -> None:
        """``__tlb_reset_range``: for a full-mm gather both ends become ~0."""
        self.start = ULONG_MAX
        self.end = ULONG_MAX if self.fullmm else 0
        self.freed_tables = False

    def adjust_range(self, address: int, size: int = PAGE_SIZE) -> None:
        """``__tlb_adjust_range``: the flush must cover this."""
        self.start = min(self.start, address)
        self.end = max(self.end, address + size)

    def reset(self) -> None:
        """After a flush: nothing to cover any more."""
        self._reset_range()


async def tlb_gather_mmu(cpu: Processor, mm: str, start: int, end: int) -> MmuGather:
    """``tlb_gather_mmu``: raises the mm's count of gathers in flight (v4.13)."""
    await inc_tlb_flush_pending(cpu, mm)
    return MmuGather(mm, start, end)


def tlb_remove_page(cpu: Processor, gather: MmuGather, frame: int) -> bool:
    """``__tlb_remove_page``: queue a frame; True if the batch is full and must be flushed."""
    gather.pages.append(frame)
    return len(gather.pages) >= cpu.world.gather_batch


def pte_free_tlb(gather: MmuGather, table: int, address: int) -> None:
    """``pte_free_tlb``: queue a page-table page; the range grows by the page at ``address``.

    That is ``tlb_flush_pmd_range(tlb, address, PAGE_SIZE)``: no leaf of the table is left, and a
    flush of any of its pages reaches the upper entry.
    """
    gather.freed_tables = True
    gather.tables.append(table)
    gather.adjust_range(address)


async def tlb_flush_mmu_tlbonly(cpu: Processor, gather: MmuGather) -> None:
    """``tlb_flush_mmu_tlbonly``: the CPU flush, then up to v6.5 ``invalidate_range``.

    The range goes to ``invalidate_range`` as it stands: (~0, ~0) for a full-mm gather until
    v6.6, which no longer notifies from here.
    """
    if not gather.end:
        return
    await tlb_flush(cpu, gather)
    kernel = cpu.world.kernel
    if kernel.mm.gather_calls_ir:
        whole = gather.fullmm and kernel.mm.nested_encoding == "zero_neg1"
        start, end = (0, ULONG_MAX) if whole else (gather.start, gather.end)
        await mmu_notifier.invalidate_range(cpu, gather.mm, start, end)
    gather.reset()


async def tlb_flush(cpu: Processor, gather: MmuGather) -> None:
    """``tlb_flush`` (asm-generic/tlb.h; arm64 has its own).

    With tables to be freed it is for all levels: arm64 passes ``last_level`` as
    ``!tlb->freed_tables`` (v4.20; before, ``__pte_free_tlb`` flushed the walk caches itself).

    cpu0 (a gather of the whole mm)     cpu1 (a thread of that process)
                                        [Required: it does not run any more, on arm64]
    clear; free
                                        uses what its TLB has
    """
    if gather.fullmm:
        if gather.freed_tables or cpu.world.kernel.arch.fullmm_flush == "always":
            await tlb.flush_tlb_mm(cpu, gather.mm)
    else:
        tables = bool(gather.tables)
        await tlb.flush_tlb_range(cpu, gather.mm, gather.start, gather.end, tables)


async def tlb_end_vma(cpu: Processor, gather: MmuGather) -> None:
    """``tlb_end_vma``: arm64 flushes when it is done with a VMA; it frees what it queued later.

    x86 and ppc (MMU_GATHER_MERGE_VMAS; before v5.19 an empty macro) leave it to the end of all.

    cpu0 (munmap of two VMAs, to v4.18)                         device, through its IOTLB
    first VMA: clear, queue frames
    flush the CPUs; the gather's range is empty again
    second VMA: clear; the batch is full
    flush, ``invalidate_range`` of the second VMA's part; free  [Required: ``invalidate_range`` of
                                                                the first one's, too]
    """
    how = cpu.world.kernel.arch.tlb_end_vma
    if how == "nothing" or gather.fullmm:
        return
    if how == "flush":
        await tlb_flush_mmu_tlbonly(cpu, gather)
    elif gather.end:
        await tlb_flush(cpu, gather)
        gather.reset()


async def tlb_flush_mmu(cpu: Processor, gather: MmuGather) -> None:
    """``tlb_flush_mmu``: flush, then free what was queued (``free_pages_and_swap_cache``).

    cpu0 (zap)                          device, through its IOTLB
    clear pte; queue frame
    flush every TLB                     [Required: the old entry is gone before ...]
    free frame                          ... the frame has another owner
    """
    await tlb_flush_mmu_tlbonly(cpu, gather)
    pages, gather.pages = gather.pages, []
    for frame in pages:
        await cpu.mem(PagePut(frame, swap_cache=True))
    tables, gather.tables = gather.tables, []
    if tables:
        await tlb.tlb_remove_table_sync_one(cpu)
    for table in tables:
        await put_page(cpu, table)


def _cover_nested(gather: MmuGather, kernel: Kernel) -> None:
    """What the flush must cover because of the others (99baac21e458, v4.13; 7a30df49f63a, v5.2)."""
    if kernel.mm.nested_encoding == "own_range_only":
        return
    if kernel.mm.nested_encoding == "exact":
        start, end = gather.asked
        gather.reset()
        gather.adjust_range(start, end - start)
        return
    gather.fullmm = True
    gather.reset()
    gather.freed_tables = True


async def tlb_finish_mmu(cpu: Processor, gather: MmuGather) -> None:
    """``tlb_finish_mmu``: the last flush; nested gathers flush the whole mm.

    cpu0 (DONTNEED)                     cpu1 (DONTNEED, same range)
    clear pte                           pte is none: nothing to flush
                                        [Required: flush all the same before returning]
    """
    if await mm_tlb_flush_nested(cpu, gather.mm):
        cpu.port.emit(Coverage("nested_gather"))
        _cover_nested(gather, cpu.world.kernel)
    await tlb_flush_mmu(cpu, gather)
    await dec_tlb_flush_pending(cpu, gather.mm)
