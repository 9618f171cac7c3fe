"""mm/mprotect.c: change the rights of a range."""

from __future__ import annotations

import msgspec

from mmurace.nodes.kernel import mmu_gather, mmu_notifier, pgtable, tlb, tlbbatch
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
    """``mprotect``: 0, or -ENOMEM if a part of the range is not mapped (the rest is changed)."""
    end = address + page_align(length)
    if address % PAGE_SIZE or length <= 0 or end > cpu.world.address_end():
        return -EINVAL
    await cpu.sleep(MEMORY, MmapLock(mm, True))
    found = await cpu.mem(VmaFind(mm, address, end))
    covered = 0
    for vma in found.vmas:
        start, stop = max(vma.start, address), min(vma.end, end)
        covered += stop - start
        if (vma.read, vma.write) != (read, write):
            changed = msgspec.structs.replace(vma.part(start, stop), read=read, write=write)
            await cpu.mem(VmaReplace(mm, start, stop, (changed,)))
            await change_protection(cpu, mm, start, stop, changed)
    await cpu.mem(MmapUnlock(mm))
    return 0 if covered == end - address else -ENOMEM


async def change_protection(cpu: Processor, mm: str, start: int, end: int, vma: Vma) -> None:
    """``change_protection``: rewrite entries in brackets, flush once afterwards.

    v5.19 gathers; before, the count of gathers in flight is raised by hand and the whole span
    is flushed.  Either way the CPU flush comes after ``invalidate_range_end``.
    """
    if cpu.world.kernel.mm.change_protection_gathers:
        gather = await mmu_gather.tlb_gather_mmu(cpu, mm, start, end)
        await _change_range(cpu, gather, start, end, vma)
        await mmu_gather.tlb_finish_mmu(cpu, gather)
        return
    await cpu.mem(TlbFlushPending(mm, 1))
    changed = MmuGather(mm, start, end)
    await _change_range(cpu, changed, start, end, vma)
    if changed.end:
        await tlb.flush_tlb_range(cpu, mm, start, end)
    await cpu.mem(TlbFlushPending(mm, -1))


async def _change_range(cpu: Processor, gather: MmuGather, start: int, end: int, vma: Vma) -> None:
    """``change_pmd_range``: the bracket opens at the first table that is there."""
    opened = False
    range_ = MmuNotifierRange(gather.mm, start, end, MmuNotifierEvent.PROTECTION_VMA)

    async def visit(table: int, first: int, last: int, address: int) -> None:
        nonlocal opened
        if not opened:
            opened = True
            await mmu_notifier.invalidate_range_start(cpu, range_)
        await change_pte_range(cpu, gather, table, (first, last), address, vma)

    await pgtable.walk_page_range(cpu, gather.mm, start, end, visit)
    if opened:
        await mmu_notifier.invalidate_range_end(cpu, range_)


async def change_pte_range(
    cpu: Processor, gather: MmuGather, table: int, part: tuple[int, int], address: int, vma: Vma
) -> None:
    """``change_pte_range``: ``ptep_modify_prot_start`` and ``_commit`` for each entry."""
    first, last = part
    base = address - first * PAGE_SIZE
    await cpu.mem(PtlLock(table))
    await tlbbatch.flush_tlb_batched_pending(cpu, gather.mm)
    while first < last:
        found = await cpu.mem(PteScan(table, first, last))
        if found.index < 0:
            break
        first = found.index + 1
        if ptes.is_migration(found.pte) and found.pte & ptes.WRITE and not vma.write:
            await cpu.mem(PteSet(table, found.index, found.pte & ~ptes.WRITE))
        elif ptes.pte_present(found.pte) and pte_modify(found.pte, vma) != found.pte:
            old = (await cpu.mem(PteGetAndClear(table, found.index))).pte
            await cpu.mem(PteSet(table, found.index, pte_modify(old, vma)))
            gather.adjust_range(base + found.index * PAGE_SIZE)
    await cpu.mem(PtlUnlock(table))


def pte_modify(pte: int, vma: Vma) -> int:
    """``pte_modify`` for private memory: a write right is taken here but never given.

    It comes back with the next write fault (``do_wp_page``).
    """
    rights = ptes.PRESENT if vma.read or vma.write else ptes.PROTNONE
    keep = pte & ~(ptes.PRESENT | ptes.PROTNONE)
    if not vma.write:
        keep &= ~ptes.WRITE
    return keep | rights
