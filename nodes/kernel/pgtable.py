"""include/linux/pgtable.h, arch/x86/mm/pgtable.c, mm/pgtable-generic.c: entries, and ways there.

An entry is named by its table and by an address in it.  ``pte_offset_map_lock`` pairs with
``pte_unmap_unlock``: software changes entries between the two, or with one atomic access.  Hardware
walkers, and fast GUP, load them at any time and take no lock.
"""

from __future__ import annotations

from typing import Final

from mmurace.nodes.kernel import mm_inline, mmu_notifier, tlb
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.locking import spin_lock, spin_unlock
from mmurace.nodes.translation import table_index
from mmurace.protocol import pte as ptes
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.book3s64 import CoprosAdd
from mmurace.protocol.messages.memory import PteCmpxchg, PteGetAndClear, PteLoad, PteScan, PteSet
from mmurace.protocol.records import Coverage

PTE: Final = 0
PMD: Final = 1
PUD: Final = 2
P4D: Final = 3
PGD: Final = 4
"""Levels: what the entries of a table are.  Those that the world does not have are folded."""
TABLE_FLAGS = ptes.PRESENT | ptes.WRITE | ptes.ACCESSED
_ACCESS_FLAGS = ptes.WRITE | ptes.ACCESSED | ptes.DIRTY


# ---- entries -----------------------------------------------------------------------------------


def pte_index(cpu: Processor, address: int) -> int:
    """The index of ``address`` in its leaf table."""
    return table_index(cpu.world, PTE, address)


def pmd_index(cpu: Processor, address: int) -> int:
    """The index of ``address`` in its table of pmds."""
    return table_index(cpu.world, PMD, address)


async def ptep_get(cpu: Processor, table: int, address: int) -> int:
    """``ptep_get`` (v5.8), ``ptep_get_lockless``: the entry as it is now."""
    return (await cpu.mem(PteLoad(table, pte_index(cpu, address)))).pte


async def set_pte_at(cpu: Processor, table: int, address: int, pte: int) -> None:
    """``set_pte_at``, where there was no present entry before; under the PTL."""
    await cpu.mem(PteSet(table, pte_index(cpu, address), pte))


async def ptep_get_and_clear(cpu: Processor, table: int, address: int) -> int:
    """``ptep_get_and_clear``: what it was; one access, in which no bit of a walker gets lost."""
    return (await cpu.mem(PteGetAndClear(table, pte_index(cpu, address)))).pte


async def _cmpxchg_entry(cpu: Processor, table: int, address: int, old: int, new: int) -> int:
    """``cmpxchg`` of an entry: what was there; it is ``new`` now if that was ``old``."""
    return (await cpu.mem(PteCmpxchg(table, pte_index(cpu, address), old, new))).pte


async def pmdp_get(cpu: Processor, table: int, address: int) -> int:
    """``pmdp_get`` (v6.7; a plain load before), ``pmdp_get_lockless``."""
    return (await cpu.mem(PteLoad(table, pmd_index(cpu, address)))).pte


async def ptep_set_wrprotect(cpu: Processor, table: int, address: int, pte: int) -> int:
    """``ptep_set_wrprotect``: one read-modify-write, which a walker's bits do not get lost in."""
    while pte & ptes.WRITE:
        found = await _cmpxchg_entry(cpu, table, address, pte, pte & ~ptes.WRITE)
        if found == pte:
            return pte & ~ptes.WRITE
        pte = found
    return pte


async def ptep_test_and_clear_young(cpu: Processor, table: int, address: int) -> bool:
    """``ptep_test_and_clear_young``, under the PTL: whether it was accessed since the last time.

    cpu0 (aging)                        any walker
    load pte: young, clean
                                        store: sets dirty in the entry
    take accessed out                   [Required: dirty stays, so nothing is stored that was
                                        made from what was loaded]

    x86 (arch/x86/mm/pgtable.c) clears the one bit; arm64 (v4.3, 2f4b829c625e) and ppc try until
    nothing has come in between, as here.
    """
    pte = await ptep_get(cpu, table, address)
    while pte & ptes.ACCESSED:
        old = pte & ~ptes.ACCESSED
        if cpu.world.kernel.arch.young_clear == "plain_store":
            await set_pte_at(cpu, table, address, old)
            return True
        found = await _cmpxchg_entry(cpu, table, address, pte, old)
        if found == pte:
            return True
        pte = found
    return False


# ---- walks -------------------------------------------------------------------------------------


async def pmd_offset(cpu: Processor, mm: str, address: int) -> int:
    """``pgd_offset`` .. ``pmd_offset``: the table with the pmd of ``address``, or -1."""
    return await _offset(cpu, mm, address, PMD)


async def pte_offset_map(cpu: Processor, mm: str, address: int) -> int:
    """``pgd_offset`` .. ``pte_offset_map``: the leaf table of ``address``; -1 (``pmd_none``): none.

    In the kernel the caller has the pmd already.
    """
    return await _offset(cpu, mm, address, PTE)


async def pte_offset_map_lock(cpu: Processor, mm: str, address: int) -> int:
    """``pte_offset_map_lock``: the leaf table of ``address``, locked; -1 and no lock: none."""
    table = await pte_offset_map(cpu, mm, address)
    if table >= 0:
        await spin_lock(cpu, table)
    return table


async def pte_unmap_unlock(cpu: Processor, table: int) -> None:
    """``pte_unmap_unlock``."""
    await spin_unlock(cpu, table)


async def _offset(cpu: Processor, mm: str, address: int, down_to: int) -> int:
    table = cpu.world.pgd(mm)
    for level in range(cpu.world.levels - 1, down_to, -1):
        upper = await cpu.mem(PteLoad(table, table_index(cpu.world, level, address)))
        if not ptes.hw_present(upper.pte):
            return -1
        table = ptes.frame_of(upper.pte)
    return table


def addr_end(cpu: Processor, level: int, address: int, end: int) -> int:
    """``pgd_addr_end`` .. ``pmd_addr_end``: where the entry of ``address`` ends, or ``end``."""
    size = 1 << cpu.world.shift(level)
    return min(address - address % size + size, end)


async def next_entry_not_none(
    cpu: Processor, level: int, table: int, address: int, end: int
) -> tuple[int, int] | None:
    """The loop over a table's entries up to the next that is not none: (its address, the entry).

    The kernel loads one after the other; here that is one access.  A level that the page table does
    not have is folded into the one above (include/asm-generic/pgtable-nop4d.h and its like): its
    only entry is there, and leads to the table itself.
    """
    if address >= end:
        return None
    if level > PTE and level >= cpu.world.levels:
        return address, ptes.make(table, TABLE_FLAGS)
    shift, first = cpu.world.shift(level), table_index(cpu.world, level, address)
    count = ((end - 1) >> shift) - (address >> shift) + 1
    found = await cpu.mem(PteScan(table, first, first + count))
    if found.index < 0:
        return None
    return max(address, (address >> shift) + found.index - first << shift), found.pte


async def next_pte_not_none(
    cpu: Processor, table: int, address: int, end: int
) -> tuple[int, int] | None:
    """The next entry of a leaf table that is not ``pte_none``: (its address, the entry)."""
    return await next_entry_not_none(cpu, PTE, table, address, end)


# ---- entries with their flushes ----------------------------------------------------------------


async def ptep_clear_flush(cpu: Processor, mm: str, address: int, table: int) -> int:
    """``ptep_clear_flush``, or ``ptep_clear_flush_notify`` up to v6.5; under the PTL.

    The old entry.  Up to v6.5 the ``_notify`` variant calls ``invalidate_range`` here, before
    anything new is published; from v6.6 the flush itself does.
    """
    old = await ptep_get_and_clear(cpu, table, address)
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
    if not cpu.world.kernel.arch.pending_is_accessible:
        return False
    return ptes.pte_present(pte) and await mm_inline.mm_tlb_flush_pending(cpu, mm)


async def ptep_clear_flush_notify(cpu: Processor, mm: str, address: int, table: int) -> int:
    """``ptep_clear_flush_notify`` (v3.19 to v6.5): clear, flush, ``invalidate_range``."""
    old = await ptep_clear_flush(cpu, mm, address, table)
    if cpu.world.kernel.mm.clear_flush_calls_ir:
        await mmu_notifier.invalidate_range(cpu, mm, address, address + PAGE_SIZE)
    return old


async def ptep_clear_flush_young_notify(
    cpu: Processor, mm: str, address: int, table: int
) -> bool:  # fmt: skip
    """``ptep_clear_flush_young_notify``, under the PTL: whether an entry of the mm was young.

    A copy that is left grants what the entry grants, and only keeps the entry old: the page looks
    idle while it is used.  So x86 flushes nothing (v3.15), and arm64 waits for nothing (v5.0).

    What subscribers answer is no part of this: their entries have no accessed bit here.
    """
    young = await ptep_test_and_clear_young(cpu, table, address)
    how = cpu.world.kernel.arch.young_flush
    if young and how == "page":
        await tlb.flush_tlb_page(cpu, mm, address)
    elif young and how == "nosync":
        await tlb.flush_tlb_page_nosync(cpu, mm, address)
    await mmu_notifier.clear_flush_young(cpu, mm, address, address + PAGE_SIZE)
    return young


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
    kernel = cpu.world.kernel
    now = await ptep_get(cpu, table, address)
    if now == entry:
        return False
    if not now & ptes.WRITE and entry & ptes.WRITE:
        cpu.port.emit(Coverage("write_upgrade"))
    if kernel.arch.tlbie_scope != "all":
        await radix__ptep_set_access_flags(cpu, mm, address, table, now, entry)
        return True
    if kernel.machine == "arm64":
        await _merge(cpu, table, address, now, entry)
    elif dirty:
        await set_pte_at(cpu, table, address, entry)
    if dirty or kernel.arch.spurious_fault_flushes:
        await _flush_upgrade(cpu, mm, address)
    return True


async def _merge(cpu: Processor, table: int, address: int, now: int, entry: int) -> None:
    """Add rights and bits with cmpxchg; a walker changes the entry at most twice meanwhile."""
    bits = entry & _ACCESS_FLAGS
    found = -1
    while found != now:
        now = found if found >= 0 else now
        found = await _cmpxchg_entry(cpu, table, address, now, now | bits)


async def radix__ptep_set_access_flags(
    cpu: Processor, mm: str, address: int, table: int, now: int, entry: int
) -> None:
    """``radix__ptep_set_access_flags`` (arch/powerpc/mm/book3s64/radix_pgtable.c).

    Bits are added by an atomic update (``__radix_pte_update``).  The nest MMU of POWER9 must not
    meet an entry that gains rights while it holds the old one, so with a coprocessor the entry is
    invalid while it is flushed.  From v6.0 on POWER9 only.
    """
    upgrade = not now & ptes.WRITE and entry & ptes.WRITE
    if upgrade and cpu.world.kernel.arch.upgrade_needs_flush and (await _copros(cpu, mm)):
        found = await ptep_get_and_clear(cpu, table, address)
        await tlb.flush_tlb_page(cpu, mm, address)
        await set_pte_at(cpu, table, address, found | entry & _ACCESS_FLAGS)
    else:
        await _merge(cpu, table, address, now, entry)


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
