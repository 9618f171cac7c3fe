"""mm/mremap.c: move a mapping, entry by entry, or a table of entries at once."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from mmurace.nodes.kernel import memory, mmap, mmu_notifier, tlb, tlbbatch
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EFAULT, EINVAL, ENOMEM
from mmurace.nodes.kernel.locking import (
    anon_vma_lock_write,
    anon_vma_unlock_write,
    i_mmap_lock_write,
    i_mmap_unlock_write,
    mmap_write_lock,
    mmap_write_unlock,
    spin_lock,
    spin_unlock,
)
from mmurace.nodes.kernel.mmu_notifier import MmuNotifierRange
from mmurace.nodes.kernel.pgtable import (
    PMD,
    next_pte_not_none,
    pmd_index,
    pmd_offset,
    pmdp_get,
    pte_offset_map,
    ptep_get_and_clear,
    set_pte_at,
)
from mmurace.nodes.kernel.vma_lock import vma_start_write
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.memory import (
    PteGetAndClear,
    PteSet,
    RmapMove,
    Vma,
    VmaFind,
)
from mmurace.protocol.ranges import overlaps, page_align
from mmurace.protocol.records import Coverage


@dataclass(frozen=True, slots=True)
class PagetableMoveControl:
    """``struct pagetable_move_control`` (mm/internal.h), within one leaf table on either side."""

    mm: str
    old_addr: int
    new_addr: int
    length: int
    old_table: int
    new_table: int

    @property
    def old_end(self) -> int:
        """Where what is moved ends."""
        return self.old_addr + self.length


def check_mremap_params(cpu: Processor, address: int, length: int, to: int, new_length: int) -> int:
    """``check_mremap_params`` (in ``mremap`` and ``mremap_to`` before): 0 or -EINVAL."""
    task_size = cpu.world.address_end()
    if address % PAGE_SIZE or to % PAGE_SIZE or length <= 0 or new_length <= 0:
        return -EINVAL
    if address + length > task_size or to + new_length > task_size:
        return -EINVAL
    if to != address and overlaps(address, address + length, to, to + new_length):
        return -EINVAL
    return 0


async def do_mremap(
    cpu: Processor, mm: str, address: int, length: int, to: int, new_length: int
) -> int:
    """``mremap``: the address afterwards, or -errno; ``to`` equal to ``address``: in place.

    Who makes it shorter downgrades mmap_lock while the tail is unmapped (85a06835f6f1, v4.20).
    """
    length, new_length = page_align(length), page_align(new_length)
    if check_mremap_params(cpu, address, length, to, new_length):
        return -EINVAL
    await mmap_write_lock(cpu, mm)
    if to == address and new_length <= length:
        await mmap.do_vmi_munmap(cpu, mm, address + new_length, address + length, unlock=True)
        return address
    if to == address:
        result = await expand_vma(cpu, mm, address, length, new_length)
    else:
        result = await mremap_to(cpu, mm, address, length, to, new_length)
    await mmap_write_unlock(cpu, mm)
    return result


async def vma_to_resize(cpu: Processor, mm: str, address: int, length: int) -> Vma | None:
    """``vma_to_resize``: the one VMA that holds the whole range."""
    found = (await cpu.mem(VmaFind(mm, address, address + length))).vmas
    whole = len(found) == 1 and found[0].start <= address and address + length <= found[0].end
    return found[0] if whole else None


async def expand_vma(cpu: Processor, mm: str, address: int, length: int, new_length: int) -> int:
    """``expand_vma`` in place, if nothing is in the way (``vma_expandable``)."""
    end = address + new_length
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
    await mmap.do_vmi_munmap(cpu, mm, to, to + new_length)
    if new_length < length:
        await mmap.do_vmi_munmap(cpu, mm, address + new_length, address + length)
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
    await vma_start_write(cpu, mm, vma.start, vma.end)
    await mmap.vma_link(cpu, mm, vma.part(address, address + new_length).at(to))
    moved = await move_page_tables(cpu, mm, vma, address, to, length)
    if moved < length:
        await move_page_tables(cpu, mm, vma, to, address, moved, need_rmap_locks=True)
        await mmap.do_vmi_munmap(cpu, mm, to, to + new_length)
        return -ENOMEM
    await mmap.do_vmi_munmap(cpu, mm, address, address + length)
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
        extent = get_extent(cpu, old + moved, new + moved, length - moved)
        place = (old + moved, new + moved)
        if await move_pgt_entry(cpu, mm, vma, place, extent, need_rmap_locks):
            moved += extent
            continue
        old_table = await pte_offset_map(cpu, mm, old + moved)
        if old_table >= 0:
            new_table = await memory.pte_alloc_map(cpu, mm, new + moved)
            if new_table < 0:
                break
            pmc = PagetableMoveControl(mm, old + moved, new + moved, extent, old_table, new_table)
            if need_rmap_locks:
                await take_rmap_locks(cpu, mm, vma)
            need_flush |= await move_ptes(cpu, pmc)
            if need_rmap_locks:
                await drop_rmap_locks(cpu, mm, vma)
        moved += extent
    if need_flush:
        await _flush(cpu, mm, old, old + length)
    await mmu_notifier.invalidate_range_end(cpu, range_)
    return moved


def get_extent(cpu: Processor, old: int, new: int, length: int) -> int:
    """``get_extent``: up to the end of the table on either side."""
    size = 1 << cpu.world.shift(PMD)
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
    if not kernel.mm.have_move_pmd or extent != 1 << cpu.world.shift(PMD):
        return False
    old_pmd = await pmd_offset(cpu, mm, old)
    new_pmd = await memory.pmd_alloc(cpu, mm, new) if old_pmd >= 0 else -1
    if new_pmd < 0 or not ptes.hw_present(await pmdp_get(cpu, old_pmd, old)):
        return False
    locked = need_rmap_locks or kernel.mm.move_pmd_rmap_locks == "always"
    if locked:
        await take_rmap_locks(cpu, mm, vma)
    moved = await move_normal_pmd(cpu, mm, place, (old_pmd, new_pmd))
    if locked:
        await drop_rmap_locks(cpu, mm, vma)
    return moved


async def take_rmap_locks(cpu: Processor, mm: str, vma: Vma) -> None:
    """``take_rmap_locks``: for write, that of the file first."""
    if vma.file:
        await i_mmap_lock_write(cpu, vma.file)
    await anon_vma_lock_write(cpu, mm)


async def drop_rmap_locks(cpu: Processor, mm: str, vma: Vma) -> None:
    """``drop_rmap_locks``."""
    await anon_vma_unlock_write(cpu, mm)
    if vma.file:
        await i_mmap_unlock_write(cpu, vma.file)


async def move_normal_pmd(
    cpu: Processor, mm: str, place: tuple[int, int], tables: tuple[int, int]
) -> bool:
    """``move_normal_pmd`` (v5.0): one upper entry, and a flush of all that it maps.

    False if something is at the new place already; the locks are those of the upper tables.
    """
    (old, new), (old_pmd, new_pmd) = place, tables
    if ptes.hw_present(await pmdp_get(cpu, new_pmd, new)):
        return False
    await spin_lock(cpu, old_pmd)
    if new_pmd != old_pmd:
        await spin_lock(cpu, new_pmd)
    pmd = (await cpu.mem(PteGetAndClear(old_pmd, pmd_index(cpu, old)))).pte  # pmd_clear
    await cpu.mem(PteSet(new_pmd, pmd_index(cpu, new), pmd))  # pmd_populate
    cpu.port.emit(Coverage("table_moved"))
    await _flush(cpu, mm, old, old + (1 << cpu.world.shift(PMD)))
    if new_pmd != old_pmd:
        await spin_unlock(cpu, new_pmd)
    await spin_unlock(cpu, old_pmd)
    return True


async def move_ptes(cpu: Processor, pmc: PagetableMoveControl) -> bool:
    """``move_ptes``: whether the caller must still flush (to v4.18).

    cpu0 (mremap A to B)                cpu1 (truncate, no mmap_lock)
    PTL of A, PTL of B
    take A out, put it in at B
    flush A                             [Required: before B can be reached]
    release both
                                        PTL of B; clear; flush B only; free the frame
    """
    when = cpu.world.kernel.mm.mremap_cpu_flush
    await spin_lock(cpu, pmc.old_table)
    if pmc.new_table != pmc.old_table:
        await spin_lock(cpu, pmc.new_table)
    await tlbbatch.flush_tlb_batched_pending(cpu, pmc.mm)
    present, dirty = await _move_entries(cpu, pmc)
    if present and when == "under_both_ptl":
        await _flush(cpu, pmc.mm, pmc.old_addr, pmc.old_end)
    if pmc.new_table != pmc.old_table:
        await spin_unlock(cpu, pmc.new_table)
    if dirty and when == "dirty_under_old_ptl":
        await _flush(cpu, pmc.mm, pmc.old_addr, pmc.old_end)
        present = False
    await spin_unlock(cpu, pmc.old_table)
    return present and when != "under_both_ptl"


async def _move_entries(cpu: Processor, pmc: PagetableMoveControl) -> tuple[bool, bool]:
    """Move every entry, under both PTLs: whether a present one was there, and a dirty one."""
    address, moved_by = pmc.old_addr, pmc.new_addr - pmc.old_addr
    present = dirty = False
    while found := await next_pte_not_none(cpu, pmc.old_table, address, pmc.old_end):
        old, new = found[0], found[0] + moved_by
        pte = await ptep_get_and_clear(cpu, pmc.old_table, old)
        await set_pte_at(cpu, pmc.new_table, new, pte)
        if ptes.in_rmap(pte):
            await cpu.mem(RmapMove(ptes.frame_of(pte), pmc.mm, old, new))
        present |= ptes.pte_present(pte)
        dirty |= ptes.pte_present(pte) and bool(pte & ptes.DIRTY)
        address = old + PAGE_SIZE
    return present, dirty


async def _flush(cpu: Processor, mm: str, start: int, end: int) -> None:
    """``flush_tlb_range``; beside it ``invalidate_range`` where the flush does not do that."""
    await tlb.flush_tlb_range(cpu, mm, start, end)
    kernel = cpu.world.kernel
    if kernel.mm.mremap_sec_flush == "beside_cpu_flush" and not kernel.arch.arch_secondary_flush:
        await mmu_notifier.invalidate_range(cpu, mm, start, end)
