"""mm/mprotect.c: change the rights of a range."""

from __future__ import annotations

from typing import Final

import msgspec

from mmurace.nodes.kernel import mmu_gather, mmu_notifier, tlb, tlbbatch
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EINVAL, ENOMEM
from mmurace.nodes.kernel.mmu_gather import MmuGather
from mmurace.nodes.kernel.mmu_notifier import MmuNotifierRange
from mmurace.nodes.world import MEMORY
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.memory import (
    MmapLock,
    MmapUnlock,
    PageAnonExclusive,
    PteGetAndClear,
    PteScan,
    PteSet,
    PtlLock,
    PtlUnlock,
    TlbFlushPending,
    Vma,
    VmaFind,
    VmaReplace,
)
from mmurace.protocol.ranges import page_align


async def do_mprotect(
    cpu: Processor, mm: str, address: int, length: int, read: bool, write: bool
) -> int:
    """``mprotect``: 0, or -ENOMEM if a part of the range is not mapped (the rest is changed).

    From v5.19 (4a18419f71cd) one gather serves the whole call; before, each VMA is flushed when it
    is done.
    """
    end = address + page_align(length)
    if address % PAGE_SIZE or length <= 0 or end > cpu.world.address_end():
        return -EINVAL
    await cpu.sleep(MEMORY, MmapLock(mm, True))
    gather = None
    if cpu.world.kernel.mm.change_protection_gathers:
        gather = await mmu_gather.tlb_gather_mmu(cpu, mm, address, end)
    covered = 0
    for vma in (await cpu.mem(VmaFind(mm, address, end))).vmas:
        start, stop = max(vma.start, address), min(vma.end, end)
        covered += stop - start
        if (vma.read, vma.write) != (read, write):
            changed = msgspec.structs.replace(vma.part(start, stop), read=read, write=write)
            await cpu.mem(VmaReplace(mm, start, stop, (changed,)))
            await change_protection(cpu, mm, changed, gather)
    if gather:
        await mmu_gather.tlb_finish_mmu(cpu, gather)
    await cpu.mem(MmapUnlock(mm))
    return 0 if covered == end - address else -ENOMEM


async def change_protection(cpu: Processor, mm: str, vma: Vma, gather: MmuGather | None) -> None:
    """``change_protection``: rewrite entries in brackets, and flush after the last of them.

    Without a gather (to v5.18) the count of gathers in flight is raised by hand, and the whole VMA
    is flushed if any of its entries was rewritten (``pages``).
    """
    if gather:
        await change_protection_range(cpu, gather, vma)
        await mmu_gather.tlb_end_vma(cpu, gather)
        return
    await cpu.mem(TlbFlushPending(mm, 1))
    changed = MmuGather(mm, vma.start, vma.end)
    await change_protection_range(cpu, changed, vma)
    if changed.end:
        await tlb.flush_tlb_range(cpu, mm, vma.start, vma.end)
    await cpu.mem(TlbFlushPending(mm, -1))


async def change_protection_range(cpu: Processor, gather: MmuGather, vma: Vma) -> None:
    """``change_protection_range``: from the top of the page table.

    A level that the page table does not have is folded into the one above it: its only entry is
    there, whatever is mapped.
    """
    top = cpu.world.levels - 1
    folded = top < _BRACKET_LEVEL[cpu.world.kernel.mm.change_protection_bracket]
    range_ = MmuNotifierRange(gather.mm, vma.start, vma.end, MmuNotifierEvent.PROTECTION_VMA)
    if folded:
        await mmu_notifier.invalidate_range_start(cpu, range_)
    await _change_level(cpu, gather, cpu.world.pgd(gather.mm), top, 0, vma)
    if folded:
        await mmu_notifier.invalidate_range_end(cpu, range_)


_BRACKET_LEVEL: Final = {"pmd": 1, "pud": 2}
"""The level of the tables whose first present entry opens a bracket."""


async def _change_level(
    cpu: Processor, gather: MmuGather, table: int, level: int, base: int, vma: Vma
) -> None:
    """``change_pud_range``, ``change_pmd_range``: the entries of a table that are there.

    The bracket goes from the first of them to the end of the table; an entry whose leaf table maps
    nothing opens it, too.
    """
    shift = cpu.world.shift(level)
    first = max(vma.start - base, 0) >> shift
    last = min((vma.end - base + (1 << shift) - 1) >> shift, cpu.world.entries)
    if level == 0:
        await change_pte_range(cpu, gather, table, (first, last), base, vma)
        return
    opens = level == _BRACKET_LEVEL[cpu.world.kernel.mm.change_protection_bracket]
    range_ = None
    while first < last:
        found = await cpu.mem(PteScan(table, first, last))
        if found.index < 0:
            break
        first, at = found.index + 1, base + (found.index << shift)
        if opens and not range_:
            start = max(vma.start, at)
            end = min(vma.end, base + (cpu.world.entries << shift))
            range_ = MmuNotifierRange(gather.mm, start, end, MmuNotifierEvent.PROTECTION_VMA)
            await mmu_notifier.invalidate_range_start(cpu, range_)
        await _change_level(cpu, gather, ptes.frame_of(found.pte), level - 1, at, vma)
    if range_:
        await mmu_notifier.invalidate_range_end(cpu, range_)


async def change_pte_range(
    cpu: Processor, gather: MmuGather, table: int, part: tuple[int, int], base: int, vma: Vma
) -> None:
    """``change_pte_range``: every present entry is taken out and put back, as it was or otherwise.

    A migration entry for writing becomes one for reading, even if the VMA is to be writable.
    """
    first, last = part
    await cpu.mem(PtlLock(table))
    await tlbbatch.flush_tlb_batched_pending(cpu, gather.mm)
    while first < last:
        found = await cpu.mem(PteScan(table, first, last))
        if found.index < 0:
            break
        first = found.index + 1
        if ptes.is_migration(found.pte) and found.pte & ptes.WRITE:
            await cpu.mem(PteSet(table, found.index, found.pte & ~ptes.WRITE))
        elif ptes.pte_present(found.pte):
            old = (await cpu.mem(PteGetAndClear(table, found.index))).pte
            new = pte_modify(old, vma)
            if await can_change_pte_writable(cpu, new, vma):
                new |= ptes.WRITE
            await cpu.mem(PteSet(table, found.index, new))
            if pte_needs_flush(cpu, old, new):
                gather.adjust_range(base + found.index * PAGE_SIZE)
    await cpu.mem(PtlUnlock(table))


async def can_change_pte_writable(cpu: Processor, pte: int, vma: Vma) -> bool:
    """``can_change_pte_writable`` (v6.0), and what stood in its place; under the PTL.

    Shared: a dirty page, of whose store the file system has been told (all releases).  Private: a
    page that is exclusively this process's own (64fe24a3e05e, v6.0: if it is dirty; 7ea7e333842e,
    v6.2: or clean).  Other entries wait for a write fault.
    """
    if not vma.write or not ptes.hw_present(pte):
        return False
    if vma.shared:
        return bool(pte & ptes.DIRTY)
    upgrades = cpu.world.kernel.mm.change_protection_upgrades
    if upgrades == "dirty_shared" or pte & ptes.SPECIAL:
        return False
    if upgrades == "dirty_exclusive" and not pte & ptes.DIRTY:
        return False
    return (await cpu.mem(PageAnonExclusive(ptes.frame_of(pte)))).value


def pte_needs_flush(cpu: Processor, old: int, new: int) -> bool:
    """``pte_needs_flush`` (c9fe66560bf2, v5.19: x86 only; the generic one always says yes).

    arch/x86/include/asm/tlbflush.h: not if the old entry could not be cached; if the write right
    came or went; if the entry lost its presence, its dirty or its accessed bit.  To v5.18 any entry
    that is rewritten counts.  ppc has one of its own from v6.1, which is not modelled.
    """
    if not cpu.world.kernel.arch.pte_needs_flush:
        return True
    lost = old & ~new & (ptes.PRESENT | ptes.DIRTY | ptes.ACCESSED)
    return ptes.hw_present(old) and bool((old ^ new) & ptes.WRITE or lost)


def pte_modify(pte: int, vma: Vma) -> int:
    """``pte_modify`` for private memory: a write right is taken here but never given.

    It comes back with the next write fault (``do_wp_page``).
    """
    rights = ptes.PRESENT if vma.read or vma.write else ptes.PROTNONE
    keep = pte & ~(ptes.PRESENT | ptes.PROTNONE)
    if not vma.write:
        keep &= ~ptes.WRITE
    return keep | rights
