"""mm/mremap.c: move a mapping, entry by entry, or a table of entries at once."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from mmurace.nodes.kernel import mmap, mmu_notifier, pgtable, tlb, tlbbatch
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EFAULT, EINVAL, ENOMEM
from mmurace.nodes.kernel.mmu_notifier import MmuNotifierRange
from mmurace.nodes.translation import table_index
from mmurace.nodes.world import MEMORY
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.filemap import ImmapLock, ImmapUnlock
from mmurace.protocol.messages.memory import (
    AnonVmaLock,
    AnonVmaUnlock,
    MmapLock,
    MmapUnlock,
    PteGetAndClear,
    PteLoad,
    PteScan,
    PteSet,
    PtlLock,
    PtlUnlock,
    RmapMove,
    Vma,
    VmaFind,
)
from mmurace.protocol.ranges import overlaps, page_align
from mmurace.protocol.records import Coverage


@dataclass(frozen=True, slots=True)
class Extent:
    """A part of a move that stays within one leaf table on either side."""

    mm: str
    old: int
    new: int
    length: int
    old_table: int
    new_table: int


async def do_mremap(
    cpu: Processor, mm: str, address: int, length: int, to: int, new_length: int
) -> int:
    """``mremap``: the address afterwards, or -errno; ``to`` equal to ``address``: in place."""
    length, new_length = page_align(length), page_align(new_length)
    if mmap.bad_range(cpu, address, length) or mmap.bad_range(cpu, to, new_length):
        return -EINVAL
    if to != address and overlaps(address, address + length, to, to + new_length):
        return -EINVAL
    await cpu.sleep(MEMORY, MmapLock(mm, True))
    if to == address:
        result = await _resize(cpu, mm, address, length, new_length)
    else:
        result = await mremap_to(cpu, mm, address, length, to, new_length)
    await cpu.mem(MmapUnlock(mm))
    return result


async def vma_to_resize(cpu: Processor, mm: str, address: int, length: int) -> Vma | None:
    """``vma_to_resize``: the one VMA that holds the whole range."""
    found = (await cpu.mem(VmaFind(mm, address, address + length))).vmas
    whole = len(found) == 1 and found[0].start <= address and address + length <= found[0].end
    return found[0] if whole else None


async def _resize(cpu: Processor, mm: str, address: int, length: int, new_length: int) -> int:
    """In place: unmap the tail, or grow if nothing is in the way.

    mmap_lock is downgraded while the tail is unmapped (85a06835f6f1, v4.20).
    """
    end = address + new_length
    if new_length <= length:
        await mmap.do_munmap_locked(cpu, mm, end, address + length, downgrade=True)
        return address
    vma = await vma_to_resize(cpu, mm, address, length)
    if vma is None:
        return -EFAULT
    if vma.end != address + length or (await cpu.mem(VmaFind(mm, vma.end, end))).vmas:
        return -ENOMEM
    await mmap.vma_link(cpu, mm, msgspec.structs.replace(vma, end=end).part(vma.end, end))
    return address


async def mremap_to(
    cpu: Processor, mm: str, address: int, length: int, to: int, new_length: int
) -> int:
    """``mremap_to``: make room, drop what does not come along, move the rest."""
    await mmap.do_munmap_locked(cpu, mm, to, to + new_length)
    if new_length < length:
        await mmap.do_munmap_locked(cpu, mm, address + new_length, address + length)
        length = new_length
    vma = await vma_to_resize(cpu, mm, address, length)
    if vma is None:
        return -EFAULT
    return await move_vma(cpu, mm, vma, (address, length), (to, new_length))


async def move_vma(
    cpu: Processor, mm: str, vma: Vma, old: tuple[int, int], new: tuple[int, int]
) -> int:
    """``move_vma``: a copy of the VMA at the new place, the entries into it, the old one away.

    The new VMA comes behind the old one in the rmap, so that a walk that has met an entry of
    neither meets it in the new one; no rmap lock is needed (``need_rmap_locks``).  The way back, if
    there is no memory for tables, is the other way round.
    """
    address, length = old
    to, new_length = new
    await mmap.vma_link(cpu, mm, vma.part(address, address + new_length).at(to))
    moved = await move_page_tables(cpu, mm, vma, address, to, length)
    if moved < length:
        await move_page_tables(cpu, mm, vma, to, address, moved, need_rmap_locks=True)
        await mmap.do_munmap_locked(cpu, mm, to, to + new_length)
        return -ENOMEM
    await mmap.do_munmap_locked(cpu, mm, address, address + length)
    return to


async def move_page_tables(
    cpu: Processor, mm: str, vma: Vma, old: int, new: int, length: int,
    need_rmap_locks: bool = False,
) -> int:  # fmt: skip
    """``move_page_tables``: one bracket around all tables; how much was moved."""
    range_ = MmuNotifierRange(mm, old, old + length, MmuNotifierEvent.UNMAP)
    await mmu_notifier.invalidate_range_start(cpu, range_)
    moved, need_flush = 0, False
    while moved < length:
        extent = _extent(cpu, old + moved, new + moved, length - moved)
        place = (old + moved, new + moved)
        if await move_pgt_entry(cpu, mm, vma, place, extent, need_rmap_locks):
            moved += extent
            continue
        old_table = await pgtable.find_leaf_table(cpu, mm, old + moved)
        if old_table >= 0:
            new_table = await pgtable.alloc_leaf_table(cpu, mm, new + moved)
            if new_table < 0:
                break
            part = Extent(mm, old + moved, new + moved, extent, old_table, new_table)
            if need_rmap_locks:
                await take_rmap_locks(cpu, mm, vma)
            need_flush |= await move_ptes(cpu, part)
            if need_rmap_locks:
                await drop_rmap_locks(cpu, mm, vma)
        moved += extent
    if need_flush:
        await _flush(cpu, mm, old, old + length)
    await mmu_notifier.invalidate_range_end(cpu, range_)
    return moved


def _extent(cpu: Processor, old: int, new: int, length: int) -> int:
    """``get_extent``: up to the end of the table on either side."""
    size = 1 << cpu.world.shift(1)
    return min(length, size - old % size, size - new % size)


async def move_pgt_entry(
    cpu: Processor, mm: str, vma: Vma, place: tuple[int, int], extent: int, need_rmap_locks: bool
) -> bool:
    """``move_pgt_entry`` of a whole leaf table (v5.0): whether it was moved as one.

    From v5.14 with the rmap locks held, as an rmap walk finds the table and not the entry:

    cpu0 (mremap A to B)                cpu1 (truncate)
                                        finds the table of A
    moves it to B, flushes A
    cpu2 fills its TLB from B
                                        clears an entry of it, flushes A, frees the frame
                                        [Required: not between its look-up and its flush]
    """
    old, new = place
    kernel = cpu.world.kernel
    if not kernel.mm.have_move_pmd or extent != 1 << cpu.world.shift(1):
        return False
    old_pmd = await pgtable.find_leaf_table(cpu, mm, old, 1)
    new_pmd = await pgtable.alloc_leaf_table(cpu, mm, new, 1) if old_pmd >= 0 else -1
    if new_pmd < 0 or not await _pmd_present(cpu, old_pmd, old):
        return False
    locked = need_rmap_locks or kernel.mm.move_pmd_rmap_locks == "always"
    if locked:
        await take_rmap_locks(cpu, mm, vma)
    moved = await move_normal_pmd(cpu, mm, place, (old_pmd, new_pmd))
    if locked:
        await drop_rmap_locks(cpu, mm, vma)
    return moved


async def _pmd_present(cpu: Processor, table: int, address: int) -> bool:
    index = table_index(cpu.world, 1, address)
    return ptes.hw_present((await cpu.mem(PteLoad(table, index))).pte)


async def take_rmap_locks(cpu: Processor, mm: str, vma: Vma) -> None:
    """``take_rmap_locks``: for write, that of the file first."""
    if vma.file:
        await cpu.sleep(MEMORY, ImmapLock(vma.file, True))
    await cpu.sleep(MEMORY, AnonVmaLock(mm, True))


async def drop_rmap_locks(cpu: Processor, mm: str, vma: Vma) -> None:
    """``drop_rmap_locks``."""
    await cpu.mem(AnonVmaUnlock(mm))
    if vma.file:
        await cpu.mem(ImmapUnlock(vma.file))


async def move_normal_pmd(
    cpu: Processor, mm: str, place: tuple[int, int], tables: tuple[int, int]
) -> bool:
    """``move_normal_pmd`` (v5.0): one upper entry, and a flush of all that it maps.

    False if something is at the new place already; the locks are those of the upper tables.
    """
    (old, new), (old_pmd, new_pmd) = place, tables
    if await _pmd_present(cpu, new_pmd, new):
        return False
    await cpu.mem(PtlLock(old_pmd))
    if new_pmd != old_pmd:
        await cpu.mem(PtlLock(new_pmd))
    pmd = (await cpu.mem(PteGetAndClear(old_pmd, table_index(cpu.world, 1, old)))).pte
    await cpu.mem(PteSet(new_pmd, table_index(cpu.world, 1, new), pmd))
    cpu.port.emit(Coverage("table_moved"))
    await _flush(cpu, mm, old, old + (1 << cpu.world.shift(1)))
    if new_pmd != old_pmd:
        await cpu.mem(PtlUnlock(new_pmd))
    await cpu.mem(PtlUnlock(old_pmd))
    return True


async def move_ptes(cpu: Processor, part: Extent) -> bool:
    """``move_ptes``: whether the caller must still flush (to v4.18).

    cpu0 (mremap A to B)                cpu1 (truncate, no mmap_lock)
    PTL of A, PTL of B
    take A out, put it in at B
    flush A                             [Required: before B can be reached]
    release both
                                        PTL of B; clear; flush B only; free the frame
    """
    when = cpu.world.kernel.mm.mremap_cpu_flush
    await cpu.mem(PtlLock(part.old_table))
    if part.new_table != part.old_table:
        await cpu.mem(PtlLock(part.new_table))
    await tlbbatch.flush_tlb_batched_pending(cpu, part.mm)
    present, dirty = await _move_entries(cpu, part)
    if present and when == "under_both_ptl":
        await _flush(cpu, part.mm, part.old, part.old + part.length)
    if part.new_table != part.old_table:
        await cpu.mem(PtlUnlock(part.new_table))
    if dirty and when == "dirty_under_old_ptl":
        await _flush(cpu, part.mm, part.old, part.old + part.length)
        present = False
    await cpu.mem(PtlUnlock(part.old_table))
    return present and when != "under_both_ptl"


async def _move_entries(cpu: Processor, part: Extent) -> tuple[bool, bool]:
    """Move every entry, under both PTLs: whether a present one was there, and a dirty one."""
    index = pgtable.pte_index(cpu, part.old)
    last, shift = index + part.length // PAGE_SIZE, pgtable.pte_index(cpu, part.new) - index
    present = dirty = False
    while index < last:
        found = (await cpu.mem(PteScan(part.old_table, index, last))).index
        if found < 0:
            break
        pte = (await cpu.mem(PteGetAndClear(part.old_table, found))).pte
        await cpu.mem(PteSet(part.new_table, found + shift, pte))
        old = part.old + (found - pgtable.pte_index(cpu, part.old)) * PAGE_SIZE
        if (ptes.pte_present(pte) and not pte & ptes.SPECIAL) or ptes.is_migration(pte):
            new = old - part.old + part.new
            await cpu.mem(RmapMove(ptes.frame_of(pte), part.mm, old, new))
        present |= ptes.pte_present(pte)
        dirty |= ptes.pte_present(pte) and bool(pte & ptes.DIRTY)
        index = found + 1
    return present, dirty


async def _flush(cpu: Processor, mm: str, start: int, end: int) -> None:
    """``flush_tlb_range``; beside it ``invalidate_range`` where the flush does not do that."""
    await tlb.flush_tlb_range(cpu, mm, start, end)
    kernel = cpu.world.kernel
    if kernel.mm.mremap_sec_flush == "beside_cpu_flush" and not kernel.arch.arch_secondary_flush:
        await mmu_notifier.invalidate_range(cpu, mm, start, end)
