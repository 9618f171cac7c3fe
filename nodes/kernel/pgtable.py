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
    PteCmpxchg,
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
_ACCESS_FLAGS = ptes.WRITE | ptes.ACCESSED | ptes.DIRTY
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
    cpu: Processor, mm: str, address: int, table: int, entry: int, dirty: bool
) -> bool:
    """``ptep_set_access_flags``, under the PTL: more rights or bits; whether ``entry`` is new.

    ``dirty`` for a store.

    cpu0 (fault of a load)              any walker
    load pte: clean
                                        store: sets dirty in the entry
    set accessed                        [Required: dirty stays, so nothing is stored that was
                                        made from what was loaded]

    x86 (arch/x86/mm/pgtable.c, all releases) stores only for a store, with both bits set, and lets
    the processor set accessed when it tries again; it leaves the weaker entry to be dropped by the
    fault that it causes.  arm64 (arch/arm64/mm/fault.c, v4.7, 66dbd6e61a52) merges the bits with
    cmpxchg, and flushes the page for a store (and with it, from v6.6, the secondaries), up to v5.9
    for a load as well (6a1bdb173184).
    """
    index, kernel = pte_index(cpu, address), cpu.world.kernel
    now = (await cpu.mem(PteLoad(table, index))).pte
    if now == entry:
        return False
    if not now & ptes.WRITE and entry & ptes.WRITE:
        cpu.port.emit(Coverage("write_upgrade"))
    if kernel.arch.tlbie_scope != "all":
        await _radix_set_access_flags(cpu, mm, address, table, now, entry)
        return True
    if kernel.machine == "arm64":
        await _merge(cpu, table, index, now, entry)
    elif dirty:
        await cpu.mem(PteSet(table, index, entry))
    if dirty or kernel.arch.spurious_fault_flushes:
        await _flush_upgrade(cpu, mm, address)
    return True


async def _merge(cpu: Processor, table: int, index: int, now: int, entry: int) -> None:
    """Add rights and bits with cmpxchg; a walker changes the entry at most twice meanwhile."""
    bits = entry & _ACCESS_FLAGS
    found = -1
    while found != now:
        now = found if found >= 0 else now
        found = (await cpu.mem(PteCmpxchg(table, index, now, now | bits))).pte


async def _radix_set_access_flags(
    cpu: Processor, mm: str, address: int, table: int, now: int, entry: int
) -> None:
    """``radix__ptep_set_access_flags`` (arch/powerpc/mm/book3s64/radix_pgtable.c).

    Bits are added by an atomic update (``__radix_pte_update``).  The nest MMU of POWER9 must not
    meet an entry that gains rights while it holds the old one, so with a coprocessor the entry is
    invalid while it is flushed.  From v6.0 on POWER9 only.
    """
    index = pte_index(cpu, address)
    upgrade = not now & ptes.WRITE and entry & ptes.WRITE
    if upgrade and cpu.world.kernel.arch.upgrade_needs_flush and (await _copros(cpu, mm)):
        found = (await cpu.mem(PteGetAndClear(table, index))).pte
        await tlb.flush_tlb_page(cpu, mm, address)
        await cpu.mem(
            PteSet(table, index, found | entry & (ptes.ACCESSED | ptes.DIRTY | ptes.WRITE))
        )
    else:
        await _merge(cpu, table, index, now, entry)


async def _copros(cpu: Processor, mm: str) -> bool:
    """``mm->context.copros``."""
    return (await cpu.mem(CoprosAdd(mm, 0))).value > 0


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
