"""mm/pgtable-generic.c and the walks of include/linux/pgtable.h."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mmurace.nodes.kernel import mmu_notifier, page_alloc, tlb
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.translation import table_index
from mmurace.protocol import pte as ptes
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.book3s64 import CoprosAdd
from mmurace.protocol.messages.memory import (
    FrameAlloc,
    PagePut,
    PteGetAndClear,
    PteLoad,
    PteScan,
    PteSet,
    PtlLock,
    PtlUnlock,
    TlbFlushPending,
)
from mmurace.protocol.records import Coverage

TABLE_FLAGS = ptes.PRESENT | ptes.WRITE | ptes.ACCESSED
Visit = Callable[[int, int, int, int], Awaitable[None]]
"""(leaf table, first index, last index, address of the first) of a part of a range."""


def pte_index(cpu: Processor, address: int) -> int:
    """The index of ``address`` in its leaf table."""
    return table_index(cpu.world, 0, address)


async def find_leaf_table(cpu: Processor, mm: str, address: int, down_to: int = 0) -> int:
    """The leaf table of ``address``, or -1 if an upper entry is none (``pmd_none``).

    With ``down_to`` the table at that level.
    """
    table = cpu.world.pgd(mm)
    for level in range(cpu.world.levels - 1, down_to, -1):
        upper = await cpu.mem(PteLoad(table, table_index(cpu.world, level, address)))
        if not ptes.hw_present(upper.pte):
            return -1
        table = ptes.frame_of(upper.pte)
    return table


async def alloc_leaf_table(cpu: Processor, mm: str, address: int, down_to: int = 0) -> int:
    """``p4d_alloc`` .. ``pte_alloc``: the leaf table of ``address``, made if need be; -1: OOM.

    With ``down_to`` the table at that level (1: ``pmd_alloc``).
    """
    table = cpu.world.pgd(mm)
    for level in range(cpu.world.levels - 1, down_to, -1):
        index = table_index(cpu.world, level, address)
        upper = await cpu.mem(PteLoad(table, index))
        pte = upper.pte
        if not ptes.hw_present(pte):
            pte = await _pte_alloc_one(cpu, mm, table, index, address, level)
            if not pte:
                return -1
        table = ptes.frame_of(pte)
    return table


async def _pte_alloc_one(
    cpu: Processor, mm: str, table: int, index: int, address: int, level: int
) -> int:
    """``__pte_alloc`` and its like: another thread may have been faster; the entry, or 0."""
    span = cpu.world.shift(level)
    allocation = FrameAlloc("table", mm, address >> span << span, level - 1)
    frame = await page_alloc.alloc_pages(cpu, mm, allocation)
    if frame < 0:
        return 0
    await cpu.mem(PtlLock(table))
    present = (await cpu.mem(PteLoad(table, index))).pte
    if not ptes.hw_present(present):
        await cpu.mem(PteSet(table, index, ptes.make(frame, TABLE_FLAGS)))
    await cpu.mem(PtlUnlock(table))
    if not ptes.hw_present(present):
        return ptes.make(frame, TABLE_FLAGS)
    await cpu.mem(PagePut(frame))
    return present


async def walk_page_range(cpu: Processor, mm: str, start: int, end: int, visit: Visit) -> None:
    """Visit the part of every leaf table that [start, end) covers; skips what is not there."""
    top = cpu.world.levels - 1
    await _walk_level(cpu, cpu.world.pgd(mm), top, 0, start, end, visit)


async def _walk_level(
    cpu: Processor, table: int, level: int, base: int, start: int, end: int, visit: Visit
) -> None:
    shift = cpu.world.shift(level)
    first = max(start - base, 0) >> shift
    last = min((end - base + (1 << shift) - 1) >> shift, cpu.world.entries)
    if level == 0:
        await visit(table, first, last, base + (first << shift))
        return
    while first < last:
        found = await cpu.mem(PteScan(table, first, last))
        if found.index < 0:
            return
        child_base = base + (found.index << shift)
        child = ptes.frame_of(found.pte)
        await _walk_level(cpu, child, level - 1, child_base, start, end, visit)
        first = found.index + 1


async def ptep_clear_flush(cpu: Processor, mm: str, address: int, table: int) -> int:
    """``ptep_clear_flush``, or ``ptep_clear_flush_notify`` up to v6.5; under the PTL.

    The old entry.  Up to v6.5 the ``_notify`` variant calls ``invalidate_range`` here, before
    anything new is published; from v6.6 the flush itself does.
    """
    old = (await cpu.mem(PteGetAndClear(table, pte_index(cpu, address)))).pte
    if await pte_accessible(cpu, mm, old):
        await tlb.flush_tlb_page(cpu, mm, address)
    return old


async def pte_accessible(cpu: Processor, mm: str, pte: int) -> bool:
    """``pte_accessible`` (20841405940e, v3.13): whether a TLB may hold what was in the entry.

    cpu0 (mprotect to none)             cpu1 (reclaim, migration)
    gathers in flight: one more
    pte: PROTNONE                       clear pte
                                        flush          [Required: there may still be copies of
    flush                               write or copy the page     what was there before PROTNONE]

    ppc has none of its own, and flushes whatever it was.
    """
    if ptes.hw_present(pte) or cpu.world.kernel.machine == "ppc":
        return True
    return ptes.pte_present(pte) and (await cpu.mem(TlbFlushPending(mm, 0))).value > 0


async def ptep_clear_flush_notify(cpu: Processor, mm: str, address: int, table: int) -> int:
    """``ptep_clear_flush_notify`` (v3.19 to v6.5): clear, flush, ``invalidate_range``."""
    old = await ptep_clear_flush(cpu, mm, address, table)
    if cpu.world.kernel.mm.clear_flush_calls_ir:
        await mmu_notifier.invalidate_range(cpu, mm, address, address + PAGE_SIZE)
    return old


async def ptep_set_access_flags(
    cpu: Processor, mm: str, address: int, table: int, old: int, new: int
) -> bool:
    """``ptep_set_access_flags``, under the PTL: more rights or bits; whether it changed.

    arm64 flushes the page when it changed (and with it, from v6.6, the secondaries); x86
    leaves the weaker entry to be dropped by the fault that it causes; so does ppc without
    coprocessors.
    """
    changed = old != new
    if changed and cpu.world.kernel.arch.tlbie_scope != "all":
        await _radix_set_access_flags(cpu, mm, address, table, old, new)
    elif changed:
        await cpu.mem(PteSet(table, pte_index(cpu, address), new))
        if not old & ptes.WRITE and new & ptes.WRITE:
            cpu.port.emit(Coverage("write_upgrade"))
        await _flush_upgrade(cpu, mm, address)
    return changed


async def _radix_set_access_flags(
    cpu: Processor, mm: str, address: int, table: int, old: int, new: int
) -> None:
    """``radix__ptep_set_access_flags`` (arch/powerpc/mm/book3s64/radix_pgtable.c).

    The nest MMU of POWER9 must not meet an entry that gains rights while it holds the old one, so
    with a coprocessor the entry is invalid while it is flushed.  From v6.0 on POWER9 only.
    """
    index = pte_index(cpu, address)
    if not old & ptes.WRITE and new & ptes.WRITE:
        cpu.port.emit(Coverage("write_upgrade"))
        if cpu.world.kernel.arch.upgrade_needs_flush and (await cpu.mem(CoprosAdd(mm, 0))).value:
            found = (await cpu.mem(PteGetAndClear(table, index))).pte
            await tlb.flush_tlb_page(cpu, mm, address)
            new |= found & (ptes.ACCESSED | ptes.DIRTY)
    await cpu.mem(PteSet(table, index, new))


async def _flush_upgrade(cpu: Processor, mm: str, address: int) -> None:
    """The flush of ``ptep_set_access_flags``, and the call beside it where there is one.

    device, through its IOTLB           cpu0 (write fault)
    holds the entry without write
                                        entry = writable; flush the CPUs
                                        [Required: the unit loses the entry as well, if it
                                        faults on a weak entry instead of walking again]
    """
    kernel = cpu.world.kernel
    if not kernel.arch.upgrade_needs_flush:
        return
    if kernel.arch.upgrade_tlbi_scope == "local":
        await tlb.local_flush_tlb_page(cpu, mm, address)
    else:
        await tlb.flush_tlb_page(cpu, mm, address)
    if kernel.mm.upgrade_notify == "arch_beside_flush" and not kernel.arch.arch_secondary_flush:
        # The RFC of June 2023: only this flush calls the secondaries.
        await mmu_notifier.invalidate_range(cpu, mm, address, address + PAGE_SIZE)
