"""mm/mprotect.c: change the rights of a range."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from mmurace.nodes.kernel import mmu_gather, mmu_notifier, tlb, tlbbatch
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EINVAL, ENOMEM
from mmurace.nodes.kernel.locking import mmap_write_lock, mmap_write_unlock, spin_lock, spin_unlock
from mmurace.nodes.kernel.mm_inline import dec_tlb_flush_pending, inc_tlb_flush_pending
from mmurace.nodes.kernel.mmu_gather import MmuGather
from mmurace.nodes.kernel.mmu_notifier import MmuNotifierRange
from mmurace.nodes.kernel.pgtable import (
    PMD,
    PUD,
    addr_end,
    next_entry_not_none,
    next_pte_not_none,
    ptep_get_and_clear,
    set_pte_at,
)
from mmurace.nodes.kernel.vma_lock import vma_start_write
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.memory import (
    PageAnonExclusive,
    Vma,
    VmaFind,
    VmaReplace,
)
from mmurace.protocol.ranges import page_align


@dataclass(frozen=True, slots=True)
class Change:
    """What ``change_protection`` is asked for: the VMA with its new rights, or a part of it."""

    vma: Vma
    numa: bool = False
    """``MM_CP_PROT_NUMA``: entries become inaccessible, and the rights of the VMA stay."""


async def do_mprotect_pkey(
    cpu: Processor, mm: str, address: int, length: int, read: bool, write: bool
) -> int:
    """``mprotect``: 0, or -ENOMEM if a part of the range is not mapped (the rest is changed).

    From v5.19 (4a18419f71cd) one gather serves the whole call; before, each VMA is flushed when it
    is done.
    """
    end = address + page_align(length)
    if address % PAGE_SIZE or length <= 0 or end > cpu.world.address_end():
        return -EINVAL
    await mmap_write_lock(cpu, mm)
    gather = None
    if cpu.world.kernel.mm.change_protection_gathers:
        gather = await mmu_gather.tlb_gather_mmu(cpu, mm, address, end)
    covered = 0
    for vma in (await cpu.mem(VmaFind(mm, address, end))).vmas:
        part = vma.part(max(vma.start, address), min(vma.end, end))
        covered += part.end - part.start
        await mprotect_fixup(cpu, mm, gather, part, read, write)
    if gather:
        await mmu_gather.tlb_finish_mmu(cpu, gather)
    await mmap_write_unlock(cpu, mm)
    return 0 if covered == end - address else -ENOMEM


async def mprotect_fixup(
    cpu: Processor, mm: str, gather: MmuGather | None, vma: Vma, read: bool, write: bool
) -> None:
    """``mprotect_fixup``: a VMA, or a part of one, gets other rights; not if it has them."""
    if (vma.read, vma.write) != (read, write):
        changed = msgspec.structs.replace(vma, read=read, write=write)
        await vma_start_write(cpu, mm, vma.start, vma.end)
        await cpu.mem(VmaReplace(mm, vma.start, vma.end, (changed,)))
        await change_protection(cpu, mm, gather, changed)


async def change_protection(
    cpu: Processor, mm: str, gather: MmuGather | None, vma: Vma, numa: bool = False
) -> None:
    """``change_protection``: rewrite entries in brackets, and flush after the last of them.

    Without a gather (to v5.18) the count of flushes to come is raised by hand, and the whole VMA
    is flushed if any of its entries was rewritten (``pages``).
    """
    change = Change(vma, numa)
    if gather:
        await change_protection_range(cpu, gather, change)
        await mmu_gather.tlb_end_vma(cpu, gather)
        return
    await inc_tlb_flush_pending(cpu, mm)
    changed = MmuGather(mm, vma.start, vma.end)
    await change_protection_range(cpu, changed, change)
    if changed.end:
        await tlb.flush_tlb_range(cpu, mm, vma.start, vma.end)
    await dec_tlb_flush_pending(cpu, mm)


async def change_protection_range(cpu: Processor, gather: MmuGather, change: Change) -> None:
    """``change_protection_range``: the top of the page table; no bracket yet.

    Levels above the pud are all walked here; ``change_p4d_range`` opens no bracket either.
    """
    pgd = cpu.world.pgd(gather.mm)
    top = max(cpu.world.levels - 1, PUD)
    await change_p4d_range(cpu, gather, change, (top, pgd), change.vma.start, change.vma.end)


async def change_p4d_range(
    cpu: Processor,
    gather: MmuGather,
    change: Change,
    table: tuple[int, int],
    address: int,
    end: int,
) -> None:
    """``change_p4d_range``, and the pgd above: ``table`` is (level of its entries, frame)."""
    level, frame = table
    if level == PUD:
        await change_pud_range(cpu, gather, change, frame, address, end)
        return
    while found := await next_entry_not_none(cpu, level, frame, address, end):
        address, following = found[0], addr_end(cpu, level, found[0], end)
        child = level - 1, ptes.frame_of(found[1])
        await change_p4d_range(cpu, gather, change, child, address, following)
        address = following


async def change_pud_range(
    cpu: Processor, gather: MmuGather, change: Change, table: int, address: int, end: int
) -> None:
    """``change_pud_range``: the bracket opens here from v6.12 on, at the first pud that is there.

    It goes to the end of the table.  A pud whose tables map nothing opens it, too, and so does one
    that is folded into the pgd, whatever is mapped.
    """
    range_ = None
    while found := await next_entry_not_none(cpu, PUD, table, address, end):
        address, following = found[0], addr_end(cpu, PUD, found[0], end)
        if not range_ and cpu.world.kernel.mm.change_protection_bracket == "pud":
            range_ = MmuNotifierRange(gather.mm, address, end, MmuNotifierEvent.PROTECTION_VMA)
            await mmu_notifier.invalidate_range_start(cpu, range_)
        await change_pmd_range(cpu, gather, change, ptes.frame_of(found[1]), address, following)
        address = following
    if range_:
        await mmu_notifier.invalidate_range_end(cpu, range_)


async def change_pmd_range(
    cpu: Processor, gather: MmuGather, change: Change, table: int, address: int, end: int
) -> None:
    """``change_pmd_range``: to v6.11 the bracket opens here, at the first pmd that is there."""
    range_ = None
    while found := await next_entry_not_none(cpu, PMD, table, address, end):
        address, following = found[0], addr_end(cpu, PMD, found[0], end)
        if not range_ and cpu.world.kernel.mm.change_protection_bracket == "pmd":
            range_ = MmuNotifierRange(gather.mm, address, end, MmuNotifierEvent.PROTECTION_VMA)
            await mmu_notifier.invalidate_range_start(cpu, range_)
        await change_pte_range(cpu, gather, change, ptes.frame_of(found[1]), address, following)
        address = following
    if range_:
        await mmu_notifier.invalidate_range_end(cpu, range_)


async def change_pte_range(
    cpu: Processor, gather: MmuGather, change: Change, table: int, address: int, end: int
) -> None:
    """``change_pte_range``: every present entry is taken out and put back, as it was or otherwise.

    A migration entry for writing becomes one for reading, even if the VMA is to be writable, and so
    do those of devices.
    """
    await spin_lock(cpu, table)
    await tlbbatch.flush_tlb_batched_pending(cpu, gather.mm)
    while found := await next_pte_not_none(cpu, table, address, end):
        at, pte = found
        address = at + PAGE_SIZE
        if pte & ptes.WRITE and not ptes.pte_present(pte) and not change.numa:
            await set_pte_at(cpu, table, at, pte & ~ptes.WRITE)
        elif ptes.pte_present(pte):
            if change.numa and pte & (ptes.SPECIAL | ptes.PROTNONE):  # the zero page, or done
                continue
            old = await ptep_get_and_clear(cpu, table, at)  # ptep_modify_prot_start
            new = pte_mknuma(old) if change.numa else pte_modify(old, change.vma)
            if await can_change_pte_writable(cpu, new, change.vma):
                new |= ptes.WRITE
            await set_pte_at(cpu, table, at, new)
            if pte_needs_flush(cpu, old, new):
                gather.adjust_range(at)
    await spin_unlock(cpu, table)


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
    """``pte_needs_flush`` (c9fe66560bf2, v5.19: x86; arm64 in v6.19; the generic one says yes).

    arch/x86/include/asm/tlbflush.h: not if the old entry could not be cached; if the write right
    came or went; if the entry lost its presence, its dirty or its accessed bit.  To v5.18 any entry
    that is rewritten counts.  arch/arm64/include/asm/tlbflush.h (v7.2): not if the old entry could
    not be cached, or is the new one.  ppc has one of its own from v6.1, which is not modelled.
    """
    if not cpu.world.kernel.arch.pte_needs_flush:
        return True
    if cpu.world.kernel.arch.broadcast_tlbi:
        return ptes.hw_present(old) and old != new
    lost = old & ~new & (ptes.PRESENT | ptes.DIRTY | ptes.ACCESSED)
    return ptes.hw_present(old) and bool((old ^ new) & ptes.WRITE or lost)


def pte_mknuma(pte: int) -> int:
    """``pte_modify`` to ``PAGE_NONE``: the entry remembers whether it was writable.

    That is ``pte_mk_savedwrite``, to v6.1; see ``do_numa_page``.
    """
    return pte & ~ptes.PRESENT | ptes.PROTNONE


def pte_modify(pte: int, vma: Vma) -> int:
    """``pte_modify`` for private memory: a write right is taken here but never given.

    It comes back with the next write fault (``do_wp_page``).
    """
    rights = ptes.PRESENT if vma.read or vma.write else ptes.PROTNONE
    keep = pte & ~(ptes.PRESENT | ptes.PROTNONE)
    if not vma.write:
        keep &= ~ptes.WRITE
    return keep | rights
