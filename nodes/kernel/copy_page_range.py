"""mm/memory.c: ``copy_page_range``, the page table of a child."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mmurace.nodes.kernel import memory, mmu_notifier, page_alloc
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.device_entry import try_restore_exclusive_pte
from mmurace.nodes.kernel.locking import spin_lock, spin_unlock
from mmurace.nodes.kernel.mmu_notifier import MmuNotifierRange
from mmurace.nodes.kernel.page_ref import get_page, put_page
from mmurace.nodes.kernel.pagewalk import walk_page_range
from mmurace.nodes.kernel.pgtable import next_pte_not_none, ptep_set_wrprotect, set_pte_at
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.memory import FrameAlloc, FrameCopy, RmapAdd, RmapTryDup, Vma
from mmurace.protocol.messages.swap import SwapDuplicate
from mmurace.protocol.records import Coverage

BUSY: Final = -1
"""In the place of an address: the copy ends here, and the fork with it (``-EBUSY``)."""


@dataclass(frozen=True, slots=True)
class _Copying:
    """A VMA, and the two processes."""

    src_mm: str
    dst_mm: str
    vma: Vma


def vma_needs_copy(vma: Vma) -> bool:
    """``vma_needs_copy`` (v5.19; before, the first lines of ``copy_page_range``): all releases.

    Without an ``anon_vma`` everything that is mapped is of a file, or the zero page, and can be
    faulted in again: nothing is copied, and there is no bracket.  Shared mappings have none.
    """
    return vma.anon_vma


async def copy_page_range(cpu: Processor, src_mm: str, dst_mm: str, vma: Vma) -> bool:
    """``copy_page_range`` of a cow mapping; False: no memory for the child's tables."""
    range_ = MmuNotifierRange(src_mm, vma.start, vma.end, MmuNotifierEvent.PROTECTION_PAGE)
    enough, copying = True, _Copying(src_mm, dst_mm, vma)

    async def pmd_entry(table: int, address: int, end: int) -> None:
        nonlocal enough
        child = await memory.pte_alloc_map(cpu, dst_mm, address) if enough else -1
        enough = child >= 0 and await copy_pte_range(cpu, copying, (table, child), address, end)

    await mmu_notifier.invalidate_range_start(cpu, range_)
    await walk_page_range(cpu, src_mm, vma.start, vma.end, pmd_entry)
    await mmu_notifier.invalidate_range_end(cpu, range_)
    return enough


async def copy_pte_range(
    cpu: Processor, copying: _Copying, tables: tuple[int, int], address: int, end: int
) -> bool:
    """``copy_pte_range``: the entries of one leaf table, under the child's PTL and the parent's.

    ``tables`` are the parent's and the child's.  A page that must be copied needs a frame, for
    which both locks are released (``page_copy_prealloc``); False: there is none, or a page that a
    device has for itself is locked by somebody.
    """
    prealloc = list[int]()
    while address < end:
        await spin_lock(cpu, tables[1])
        await spin_lock(cpu, tables[0])
        address = await _copy_ptes(cpu, copying, tables, (address, end), prealloc)
        await spin_unlock(cpu, tables[0])
        await spin_unlock(cpu, tables[1])
        if address == BUSY:
            return False
        if address < end:
            frame = await page_alloc.alloc_pages(cpu, copying.dst_mm, FrameAlloc("anon"))
            if frame < 0:
                return False
            prealloc.append(frame)
    for frame in prealloc:
        await put_page(cpu, frame)
    return True


async def _copy_ptes(
    cpu: Processor, copying: _Copying, tables: tuple[int, int], part: tuple[int, int],
    prealloc: list[int],
) -> int:  # fmt: skip
    """Under both locks: the address at which a frame is needed, the end, or ``BUSY``."""
    address, end = part
    while found := await next_pte_not_none(cpu, tables[0], address, end):
        address, pte = found
        place = copying.dst_mm, address
        if ptes.is_device_exclusive(pte):
            mm, vma = copying.src_mm, copying.vma
            if not await try_restore_exclusive_pte(cpu, mm, vma, address, tables[0], pte):
                return BUSY
            continue  # with what is there now
        if not ptes.pte_present(pte):
            await copy_nonpresent_pte(cpu, place, tables, pte)
        elif not await copy_present_pte(cpu, place, tables, pte, prealloc):
            return address
        address += PAGE_SIZE
    return end


async def copy_present_pte(
    cpu: Processor, place: tuple[str, int], tables: tuple[int, int], pte: int, prealloc: list[int]
) -> bool:
    """``copy_present_pte``: the child maps the same page, and neither may write to it.

    An anonymous page is nobody's alone from now on; if it may be pinned, the child gets a copy
    (v5.9; from v5.19 if it is exclusive), for which ``prealloc`` is needed: False without.
    """
    src, dst = tables
    frame = ptes.frame_of(pte)
    if not pte & ptes.SPECIAL:
        await get_page(cpu, frame)
        if not await _try_dup(cpu, place, frame):
            await put_page(cpu, frame)
            return await copy_present_page(cpu, place, dst, frame, prealloc)
    pte = await ptep_set_wrprotect(cpu, src, place[1], pte)
    await set_pte_at(cpu, dst, place[1], pte & ~ptes.ACCESSED)
    return True


async def _try_dup(cpu: Processor, place: tuple[str, int], frame: int) -> bool:
    """``page_try_dup_anon_rmap`` (v5.19; before, ``copy_present_page``): False to copy."""
    if cpu.world.kernel.mm.fork_copies_pinned:
        return (await cpu.mem(RmapTryDup(frame, *place))).value
    await cpu.mem(RmapAdd(frame, *place))
    return True


async def copy_present_page(
    cpu: Processor, place: tuple[str, int], dst: int, frame: int, prealloc: list[int]
) -> bool:
    """``copy_present_page`` (70e806e4e645, v5.9): a copy for the child; the parent keeps its own.

    False: no frame was allocated before the locks were taken.
    """
    if not prealloc:
        return False
    copy = prealloc.pop()
    await cpu.mem(FrameCopy(frame, copy))
    await cpu.mem(RmapAdd(copy, *place, exclusive=True))
    flags = ptes.PRESENT | ptes.ACCESSED | ptes.WRITE | ptes.DIRTY
    await set_pte_at(cpu, dst, place[1], ptes.make(copy, flags))
    cpu.port.emit(Coverage("fork_copied_pinned"))
    return True


async def copy_nonpresent_pte(
    cpu: Processor, place: tuple[str, int], tables: tuple[int, int], pte: int
) -> None:  # fmt: skip
    """``copy_nonpresent_pte``: what is not present, as shared in both tables."""
    src, dst = tables
    frame = ptes.frame_of(pte)
    shared = pte & ~(ptes.EXCLUSIVE | ptes.WRITE)
    if ptes.is_swap(pte):
        await cpu.mem(SwapDuplicate(frame))
    elif ptes.is_device_private(pte):
        await get_page(cpu, frame)
        await _try_dup(cpu, place, frame)  # a page of a device is not pinned
    else:
        await cpu.mem(RmapAdd(frame, *place))
    if shared != pte:
        await set_pte_at(cpu, src, place[1], shared)
    await set_pte_at(cpu, dst, place[1], shared)
