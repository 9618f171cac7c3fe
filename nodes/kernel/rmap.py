"""mm/rmap.c: from a page to the entries that map it, to take them away or to clean them.

The rmap of anonymous pages is kept per frame; that of files is the list of their VMAs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

from mmurace.nodes.kernel import gup, mmu_notifier, pgtable, tlbbatch
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.mmu_notifier import MmuNotifierRange
from mmurace.nodes.kernel.tlbbatch import TlbUbc
from mmurace.nodes.world import MEMORY
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SHIFT, PAGE_SIZE
from mmurace.protocol.messages.filemap import (
    FileVma,
    FolioMappingWord,
    ImmapLock,
    ImmapUnlock,
    ImmapWalk,
)
from mmurace.protocol.messages.memory import (
    AnonVmaLock,
    AnonVmaUnlock,
    PageAnonExclusive,
    PteGetAndClear,
    PteLoad,
    PteSet,
    PtlLock,
    PtlUnlock,
    RmapRemove,
    RmapTryShare,
    RmapWalk,
)
from mmurace.protocol.messages.swap import (
    FolioFlags,
    FolioMarkDirty,
    FolioRefCount,
    FolioSetSwapbacked,
    SwapDuplicate,
    SwapFree,
)
from mmurace.protocol.records import Coverage, PageDiscarded

Place = tuple[str, int]
"""(mm, address) of a mapping."""
Outcome = Literal["met", "again", "stop"]
"""Of a visit: done with the place; the place is on its way (to v5.13); the walk is over."""
Visit = Callable[[Place], Awaitable[Outcome]]


async def folio_mapped(cpu: Processor, folio: int) -> bool:
    """``folio_mapped``: whether any entry maps it."""
    return bool((await cpu.mem(RmapWalk(folio))).places)


async def page_vma_mapped_walk(
    cpu: Processor, mm: str, address: int, folio: int
) -> tuple[int, int] | None:
    """``page_vma_mapped_walk``: (table, entry) that maps the page there, with its table locked.

    None if nothing does (any more); then no lock is held.
    """
    table = await pgtable.find_leaf_table(cpu, mm, address)
    if table < 0:
        return None
    await cpu.mem(PtlLock(table))
    pte = (await cpu.mem(PteLoad(table, pgtable.pte_index(cpu, address)))).pte
    if ptes.pte_present(pte) and ptes.frame_of(pte) == folio:
        return table, pte
    await cpu.mem(PtlUnlock(table))
    return None


# ---- rmap_walk -------------------------------------------------------------------------------


async def rmap_walk(cpu: Processor, folio: int, file: str, visit: Visit) -> None:
    """``rmap_walk``: every place where a page may be mapped, each once; ``file`` if it is of one.

    The kernel meets VMAs, in the order of their offsets, and of two with the same offset the older
    first; an entry that has left a VMA is met in the VMA that it went to, which is behind
    (``copy_vma``; ``need_rmap_locks`` says where it is not).  Here it meets places, as long as
    there is one that it has not met.  Under the rmap lock, which keeps each VMA in its list:

    cpu0 (rmap walk)                    cpu1 (mremap A to B)
    lock                                B is in the list, behind A
    place A: none                       took the entry out of A, puts it in at B, under both PTLs
    place B: the entry
    unlock                              [Required: A stays until then, or something else may
                                        have been mapped there, and B was never looked at]
                                        ``unlink_anon_vmas``, ``unlink_file_vma`` of A
    """
    met = set[Place]()
    while left := await _unmet(cpu, folio, met):
        mm = left[0][0]
        await cpu.sleep(MEMORY, ImmapLock(file, False) if file else AnonVmaLock(mm, False))
        on = await _walk_locked(cpu, folio, "" if file else mm, met, visit)
        await cpu.mem(ImmapUnlock(file) if file else AnonVmaUnlock(mm))
        if not on:
            return


async def _walk_locked(
    cpu: Processor, folio: int, mm: str, met: set[Place], visit: Visit
) -> bool:  # fmt: skip
    """All places of one mm, or of all (empty): whether the walk goes on."""
    while True:
        here = [place for place in await _unmet(cpu, folio, met) if mm in ("", place[0])]
        if not here:
            return True
        outcome = await visit(here[0])
        if outcome == "stop":
            return False
        if outcome == "met":
            met.add(here[0])


async def _unmet(cpu: Processor, folio: int, met: set[Place]) -> list[Place]:
    places = (await cpu.mem(RmapWalk(folio))).places
    return [place for place in places if place not in met]


# ---- try_to_unmap ----------------------------------------------------------------------------


async def try_to_unmap(cpu: Processor, ubc: TlbUbc, folio: int, slot: int) -> None:
    """``try_to_unmap`` of an anonymous page: a swap entry in place of every mapping.

    It stops at a mapping that must stay.
    """

    async def visit(place: Place) -> Outcome:
        return "met" if await try_to_unmap_one(cpu, ubc, place, folio, slot) else "stop"

    await rmap_walk(cpu, folio, "", visit)


async def try_to_unmap_file(
    cpu: Processor, ubc: TlbUbc, folio: int, at: FolioMappingWord
) -> None:  # fmt: skip
    """``try_to_unmap`` of a page of a file: ``rmap_walk_file``, until nobody maps it any more.

    The caller has the page locked, so no fault maps it meanwhile; moves and forks that the walk
    meets half way have linked their new VMA behind the old one.
    """
    if not await folio_mapped(cpu, folio):
        return
    await cpu.sleep(MEMORY, ImmapLock(at.file, False))
    for vma in await _vmas_of(cpu, at):
        await try_to_unmap_one(cpu, ubc, (vma.mm, vma.start), folio, None)
        if not await folio_mapped(cpu, folio):
            break
    await cpu.mem(ImmapUnlock(at.file))


async def _vmas_of(cpu: Processor, at: FolioMappingWord) -> tuple[FileVma, ...]:
    """The one page of each VMA that maps this page of the file, under the rmap lock of the file."""
    offset = at.index << PAGE_SHIFT
    return (await cpu.mem(ImmapWalk(at.file, offset, offset + PAGE_SIZE))).vmas


async def try_to_unmap_one(
    cpu: Processor, ubc: TlbUbc, place: tuple[str, int], folio: int, slot: int | None
) -> bool:
    """``try_to_unmap_one``: one mapping of a page; ``slot`` is none for a page of a file.

    Of anonymous pages up to v6.5 with ``invalidate_range`` under the PTL, and at the end; of a
    locked page of a file, of which no other can take the place before the end, only there.
    False, and the entry is back: a page of ``MADV_FREE`` (whose slot is -1) is in use again, or an
    exclusive page is pinned.
    """
    mm, address = place
    on = True
    range_ = MmuNotifierRange(mm, address, address + PAGE_SIZE, MmuNotifierEvent.CLEAR)
    await mmu_notifier.invalidate_range_start(cpu, range_)
    found = await page_vma_mapped_walk(cpu, mm, address, folio)
    if found is not None:
        table, index = found[0], pgtable.pte_index(cpu, address)
        old = await clear_or_defer(cpu, ubc, (mm, address), table)
        if slot is None:
            await _set_dirty(cpu, folio, old)
        elif slot >= 0:
            on = await _swap_entry(cpu, folio, slot, (table, index))
        else:
            on = await _may_discard(cpu, place, folio, old)
        if on:
            await _unmapped(cpu, place, folio, slot is not None)
        else:
            await cpu.mem(PteSet(table, index, old))
        await cpu.mem(PtlUnlock(table))
    await mmu_notifier.invalidate_range_end(cpu, range_)
    return on


async def _swap_entry(cpu: Processor, folio: int, slot: int, place: tuple[int, int]) -> bool:
    """A swap entry where the mapping was; False: the page may be pinned and must stay.

    cpu0 (reclaim)                      cpu1 (pin_user_pages_fast)
    clear pte
                                        reference; is pte the same?
    pinned? else not exclusive any more [Required: in this order, so that either the pin is seen
                                        or the cleared entry is]
    """
    await cpu.mem(SwapDuplicate(slot))
    exclusive = await anon_exclusive(cpu, folio)
    if exclusive and not await try_share(cpu, folio):
        await cpu.mem(SwapFree(slot))
        return False
    flags = ptes.SWAP | (ptes.EXCLUSIVE if exclusive else 0)
    await cpu.mem(PteSet(*place, ptes.make(slot, flags)))
    return True


async def anon_exclusive(cpu: Processor, folio: int) -> bool:
    """``PageAnonExclusive`` (v5.19, 6c287605fd56)."""
    if cpu.world.kernel.mm.cow_reuse != "anon_exclusive":
        return False
    return (await cpu.mem(PageAnonExclusive(folio))).value


async def try_share(cpu: Processor, folio: int) -> bool:
    """``page_try_share_anon_rmap`` (``folio_try_share_anon_rmap_pte``, v6.8), entry cleared.

    From v6.1 (088b8aa537c2) no flush is needed before it; v5.19 and v6.0, of which there is no
    preset, do not defer the flush of an exclusive page.
    """
    shared = (await cpu.mem(RmapTryShare(folio))).value
    if not shared:
        cpu.port.emit(Coverage("anon_exclusive_pinned"))
    return shared


async def _set_dirty(cpu: Processor, folio: int, pte: int) -> None:
    """The entry is gone, so the page itself has to say that it must be written.

    cpu0 (reclaim)                      any walker
                                        store: sets dirty in the entry
    clear pte; was it dirty?
    mark the page dirty                 [Required: before anybody asks the page]
    """
    if pte & ptes.DIRTY:
        await cpu.mem(FolioMarkDirty(folio))


async def _unmapped(cpu: Processor, place: tuple[str, int], folio: int, anon: bool) -> None:
    """The mapping is gone (``discard``): its place in the rmap and its reference, too."""
    mm, address = place
    if anon and cpu.world.kernel.mm.clear_flush_calls_ir:
        await mmu_notifier.invalidate_range(cpu, mm, address, address + PAGE_SIZE)
    await cpu.mem(RmapRemove(folio, mm, address))
    await gup.put_page(cpu, folio)


async def _may_discard(cpu: Processor, place: tuple[str, int], folio: int, pte: int) -> bool:
    """``MADV_FREE page check``: whether the page, whose entry was ``pte``, is dropped unwritten.

    cpu0 (reclaim)                      any agent
                                        store: dirty in the entry, or a fault
    clear pte; old entry clean?         [Required: no store through a copy that is dirty from
    references? dirty?                  before MADV_FREE; that is what its flush is for]
    drop the page
    """
    await _set_dirty(cpu, folio, pte)
    references = (await cpu.mem(FolioRefCount(folio))).value
    mapped = len((await cpu.mem(RmapWalk(folio))).places)
    if references != 1 + mapped or (await cpu.mem(FolioFlags(folio))).dirty:
        cpu.port.emit(Coverage("lazyfree_kept"))
        await cpu.mem(FolioSetSwapbacked(folio))
        return False
    cpu.port.emit(Coverage("lazyfree_discarded"))
    cpu.port.emit(PageDiscarded(folio, *place))
    return True


async def clear_or_defer(
    cpu: Processor, ubc: TlbUbc, place: tuple[str, int], table: int
) -> int:  # fmt: skip
    """The entry out: flushed at once, or noted for a flush of many; what it was."""
    mm, address = place
    if not await tlbbatch.should_defer_flush(cpu, mm):
        return await pgtable.ptep_clear_flush(cpu, mm, address, table)
    index = pgtable.pte_index(cpu, address)
    old = (await cpu.mem(PteGetAndClear(table, index))).pte
    await tlbbatch.set_tlb_ubc_flush_pending(cpu, ubc, mm, address, old)
    return old


# ---- folio_mkclean ---------------------------------------------------------------------------


async def folio_mkclean(cpu: Processor, folio: int, at: FolioMappingWord) -> bool:
    """``folio_mkclean`` (``page_mkclean``): no entry lets anybody store unheard; was any so?

    The page is locked.  Private mappings have no such entry and are passed over
    (``invalid_mkclean_vma``).
    """
    if not await folio_mapped(cpu, folio):
        return False
    cleaned = False
    await cpu.sleep(MEMORY, ImmapLock(at.file, False))
    for vma in await _vmas_of(cpu, at):
        if vma.shared:
            cleaned |= await page_mkclean_one(cpu, vma.mm, vma.start, folio)
    await cpu.mem(ImmapUnlock(at.file))
    return cleaned


async def page_mkclean_one(cpu: Processor, mm: str, address: int, folio: int) -> bool:
    """``page_mkclean_one`` (``page_vma_mkclean_one``, v5.18): read-only and clean, in a bracket.

    cpu0 (writeback)                    any agent
                                        (holds a writable, dirty copy)
    clear pte; flush
    set pte: read-only, clean           [Required: the copy is gone before the page is written]
    write the page                      a store faults, and makes the page dirty again

    Rights are taken away and no page replaces another, so from v4.15 to v6.5 only the end of the
    bracket calls ``invalidate_range``.
    """
    cleaned = False
    range_ = MmuNotifierRange(mm, address, address + PAGE_SIZE, MmuNotifierEvent.PROTECTION_PAGE)
    await mmu_notifier.invalidate_range_start(cpu, range_)
    found = await page_vma_mapped_walk(cpu, mm, address, folio)
    if found is not None:
        table, pte = found
        if pte & (ptes.WRITE | ptes.DIRTY):
            old = await pgtable.ptep_clear_flush(cpu, mm, address, table)
            clean = old & ~(ptes.WRITE | ptes.DIRTY)
            await cpu.mem(PteSet(table, pgtable.pte_index(cpu, address), clean))
            cpu.port.emit(Coverage("folio_mkclean"))
            cleaned = True
        await cpu.mem(PtlUnlock(table))
    await mmu_notifier.invalidate_range_end(cpu, range_)
    return cleaned
