"""mm/ksm.c: pages of equal content become one page, which nobody writes to.

cpu0 (ksmd)                         any agent
                                    (translation: the page, writable)
entry: read-only; flush             [Required: nobody has a writable one from here on]
end of the bracket                  [Required: nor a secondary]
compare with the KSM page
entry: the KSM page                 a store in between would be lost

There are no trees here: a scan compares the pages of its range with each other.  Which VMAs may be
merged (``VM_MERGEABLE``) is not asked: all private ones are.
"""

from __future__ import annotations

from mmurace.nodes.kernel import mmu_notifier, pgtable, rmap
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EINVAL
from mmurace.nodes.kernel.follow_page import follow_page
from mmurace.nodes.kernel.locking import (
    folio_trylock,
    folio_unlock,
    mmap_read_lock,
    mmap_read_unlock,
)
from mmurace.nodes.kernel.mm_inline import mm_tlb_flush_pending
from mmurace.nodes.kernel.mmu_notifier_range import MmuNotifierRange
from mmurace.nodes.kernel.page_ref import get_page, put_page
from mmurace.nodes.kernel.pgtable import (
    pte_offset_map_lock,
    pte_unmap_unlock,
    ptep_get,
    set_pte_at,
)
from mmurace.nodes.kernel.vm_fault import ANON_FLAGS
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.memory import (
    PageAnon,
    PagesIdentical,
    RmapAdd,
    RmapRemove,
    RmapWalk,
    SetPageKsm,
    Vma,
    VmaFind,
)
from mmurace.protocol.messages.swap import (
    FolioFreeSwap,
    FolioMarkDirty,
    FolioRefCount,
    PageSwapEntry,
)
from mmurace.protocol.ranges import page_align
from mmurace.protocol.records import Coverage


async def ksm_do_scan(cpu: Processor, mm: str, address: int, length: int) -> int:
    """``ksm_do_scan`` of a range: how many pages were replaced by others, or -EINVAL."""
    end = address + page_align(length)
    if address % PAGE_SIZE or length <= 0 or end > cpu.world.address_end():
        return -EINVAL
    merged, others = 0, list[int]()
    for at in range(address, end, PAGE_SIZE):
        for other in others:
            if await cmp_and_merge_page(cpu, mm, at, other):
                merged += 1
                break
        else:
            others.append(at)
    return merged


async def cmp_and_merge_page(cpu: Processor, mm: str, address: int, other: int) -> bool:
    """``cmp_and_merge_page``: the page at ``other`` in place of that at ``address``, if equal.

    Both have a reference meanwhile.  ``other`` is read-only first (``try_to_merge_two_pages``),
    unless it is a KSM page already; if that was in vain it stays a KSM page, and is copied when
    somebody stores (``break_cow``, which does so at once, is left out).
    """
    page = await get_mergeable_page(cpu, mm, address)
    if page < 0:
        return False
    kpage = await get_mergeable_page(cpu, mm, other)
    merged = False
    if kpage not in (-1, page) and (await cpu.mem(PagesIdentical(page, kpage))).value:
        ksm = (await cpu.mem(RmapWalk(kpage))).ksm
        if ksm or await try_to_merge_with_ksm_page(cpu, mm, other, (kpage, -1)):
            merged = await try_to_merge_with_ksm_page(cpu, mm, address, (page, kpage))
    if kpage >= 0:
        await put_page(cpu, kpage)
    await put_page(cpu, page)
    return merged


async def get_mergeable_page(cpu: Processor, mm: str, address: int) -> int:
    """``get_mergeable_page``: the anonymous page that is mapped there, with a reference; or -1."""
    await mmap_read_lock(cpu, mm)
    page = -1
    if await find_mergeable_vma(cpu, mm, address):
        page = await follow_page(cpu, mm, address)
    await mmap_read_unlock(cpu, mm)
    if page >= 0 and not (await cpu.mem(PageAnon(page))).value:
        await put_page(cpu, page)
        return -1
    return max(page, -1)


async def find_mergeable_vma(cpu: Processor, mm: str, address: int) -> Vma | None:
    """``find_mergeable_vma``, under mmap_lock: a private one."""
    vmas = (await cpu.mem(VmaFind(mm, address, address + PAGE_SIZE))).vmas
    return vmas[0] if vmas and not vmas[0].shared else None


async def try_to_merge_with_ksm_page(
    cpu: Processor, mm: str, address: int, pages: tuple[int, int]
) -> bool:
    """``try_to_merge_with_ksm_page``: (page, KSM page, or -1 to make it one); under mmap_lock."""
    await mmap_read_lock(cpu, mm)
    vma = await find_mergeable_vma(cpu, mm, address)
    merged = vma is not None and await try_to_merge_one_page(cpu, mm, vma, address, pages)
    await mmap_read_unlock(cpu, mm)
    return merged


async def try_to_merge_one_page(
    cpu: Processor, mm: str, vma: Vma, address: int, pages: tuple[int, int]
) -> bool:
    """``try_to_merge_one_page``: write-protect, compare, replace, with the page locked."""
    page, kpage = pages
    if not await folio_trylock(cpu, page):
        return False
    merged = False
    entry = await write_protect_page(cpu, mm, address, page)
    if entry >= 0 and kpage < 0:
        await cpu.mem(SetPageKsm(page))
        await cpu.mem(FolioMarkDirty(page))  # or reclaim would drop one that is clean
        merged = True
    elif entry >= 0 and (await cpu.mem(PagesIdentical(page, kpage, merging=True))).value:
        merged = await replace_page(cpu, (mm, address), vma, pages, entry)
    await folio_unlock(cpu, page)
    return merged


async def write_protect_page(cpu: Processor, mm: str, address: int, page: int) -> int:
    """``write_protect_page`` of a locked page: its entry, read-only and clean; -1: it must stay.

    A copy that is writable and dirty is in some TLB only if the entry is, or the mm owes a flush:
    two that run beside each other can have taken one bit each (b3a81d0841a9, v4.13).

    cpu0 (clear_refs)       cpu2 (MADV_FREE)        cpu1                    cpu3 (ksmd)
                                                    (TLB: writable, dirty)
    pte: read-only          pte: clean
                                                                            nothing to flush
                                                                            compare
    flush                   flush                   store                   [Required: not after
                                                                            the comparison]
    """
    event = MmuNotifierEvent.CLEAR
    range_ = MmuNotifierRange(mm, address, address + PAGE_SIZE, event)
    await mmu_notifier.invalidate_range_start(cpu, range_)
    found = await rmap.page_vma_mapped_walk(cpu, mm, address, page)
    entry = -1
    if found is not None:
        table, entry = found
        exclusive = await rmap.is_exclusive(cpu, page)
        if exclusive or await _may_be_written(cpu, mm, entry):
            entry = await _clear_and_wrprotect(cpu, (mm, address), table, (page, exclusive))
        await pte_unmap_unlock(cpu, table)
    await mmu_notifier.invalidate_range_end(cpu, range_)
    return entry


async def _may_be_written(cpu: Processor, mm: str, entry: int) -> bool:
    """Whether anybody may have a translation through which he stores and is not heard of."""
    if entry & (ptes.WRITE | ptes.DIRTY):
        return True
    return cpu.world.kernel.mm.ksm_heeds_pending and await mm_tlb_flush_pending(cpu, mm)


async def _clear_and_wrprotect(
    cpu: Processor, place: rmap.Place, table: int, of: tuple[int, bool]
) -> int:
    """Flush, and look whether anybody else has a reference; -1, and the entry is back, if so.

    ``of``: the page, and whether it is ``PageAnonExclusive``.

    cpu0 (ksmd)                         cpu1 (pin_user_pages_fast)
    clear pte; flush
                                        reference; is pte the same?
    references: mapped, and mine?       [Required: in this order, so that either the reference is
                                        seen or the cleared entry is]
    """
    (mm, address), (page, exclusive) = place, of
    entry = await pgtable.ptep_clear_flush(cpu, mm, address, table)
    if not await _nobody_else(cpu, page) or (
        exclusive and not await rmap.page_try_share_anon_rmap(cpu, page)
    ):
        cpu.port.emit(Coverage("ksm_undone"))
        await set_pte_at(cpu, table, address, entry)
        return -1
    if entry & ptes.DIRTY:
        await cpu.mem(FolioMarkDirty(page))
    entry &= ~(ptes.DIRTY | ptes.WRITE)
    await set_pte_at(cpu, table, address, entry)
    return entry


async def _nobody_else(cpu: Processor, page: int) -> bool:
    """``page_mapcount(page) + 1 + swapped == page_count(page)``."""
    mapped = len((await cpu.mem(RmapWalk(page))).places)
    swapped = (await cpu.mem(PageSwapEntry(page))).value > 0
    return (await cpu.mem(FolioRefCount(page))).value == mapped + 1 + swapped


async def replace_page(
    cpu: Processor, place: rmap.Place, vma: Vma, pages: tuple[int, int], entry: int
) -> bool:
    """``replace_page``: the KSM page where the other was; False: the entry has changed since."""
    mm, address = place
    page, kpage = pages
    range_ = MmuNotifierRange(mm, address, address + PAGE_SIZE, MmuNotifierEvent.CLEAR)
    await mmu_notifier.invalidate_range_start(cpu, range_)
    table = await pte_offset_map_lock(cpu, mm, address)
    same = table >= 0 and await ptep_get(cpu, table, address) == entry
    if same:
        await get_page(cpu, kpage)
        await cpu.mem(RmapAdd(kpage, mm, address))
        await pgtable.ptep_clear_flush(cpu, mm, address, table)
        rights = ANON_FLAGS if vma.read or vma.write else ptes.PROTNONE
        await set_pte_at(cpu, table, address, ptes.make(kpage, rights))
        await cpu.mem(RmapRemove(page, mm, address))
        if not await rmap.folio_mapped(cpu, page):
            await cpu.mem(FolioFreeSwap(page))
        cpu.port.emit(Coverage("ksm_merged"))
    if table >= 0:
        await pte_unmap_unlock(cpu, table)
    await mmu_notifier.invalidate_range_end(cpu, range_)
    if same:
        await put_page(cpu, page)
    return same
