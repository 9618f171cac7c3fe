"""mm/rmap.c: from a page to the entries that map it, to take them away or to clean them.

The rmap of anonymous pages is kept per frame; that of files is the list of their VMAs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

from mmurace.nodes.kernel import mmu_notifier, pgtable, tlbbatch
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.locking import (
    anon_vma_lock_read,
    anon_vma_unlock_read,
    i_mmap_lock_read,
    i_mmap_unlock_read,
)
from mmurace.nodes.kernel.mmu_notifier import MmuNotifierRange
from mmurace.nodes.kernel.page_ref import put_page
from mmurace.nodes.kernel.pgtable import (
    pte_offset_map_lock,
    pte_unmap_unlock,
    ptep_get,
    ptep_get_and_clear,
    set_pte_at,
)
from mmurace.nodes.kernel.tlbbatch import TlbUbc
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SHIFT, PAGE_SIZE
from mmurace.protocol.messages.filemap import (
    FileVma,
    FolioMappingWord,
    ImmapWalk,
)
from mmurace.protocol.messages.memory import (
    PageAnonExclusive,
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

MIGRATION_KEEPS = ptes.WRITE | ptes.ACCESSED | ptes.DIRTY
"""What a migration entry remembers of the entry it replaces."""


async def folio_mapped(cpu: Processor, folio: int) -> bool:
    """``folio_mapped``: whether any entry maps it."""
    return bool((await cpu.mem(RmapWalk(folio))).places)


async def page_vma_mapped_walk(
    cpu: Processor, mm: str, address: int, folio: int
) -> tuple[int, int] | None:
    """``page_vma_mapped_walk``: (table, entry) that maps the page there, with its table locked.

    None if nothing does (any more); then no lock is held.
    """
    table = await pte_offset_map_lock(cpu, mm, address)
    if table < 0:
        return None
    pte = await ptep_get(cpu, table, address)
    mapped = ptes.pte_present(pte) or ptes.is_device_private(pte)
    if mapped and ptes.frame_of(pte) == folio:
        return table, pte
    await pte_unmap_unlock(cpu, table)
    return None


# ---- rmap_walk -------------------------------------------------------------------------------


async def rmap_walk(cpu: Processor, folio: int, file: str, visit: Visit) -> None:
    """``rmap_walk``: every place where a page may be mapped, each once; ``file`` if it is of one.

    The kernel meets VMAs, in the order of their offsets, and of two with the same offset the older
    first; an entry that has left a VMA is met in the VMA that it went to, which is behind
    (``copy_vma``; ``need_rmap_locks`` says where it is not).  Here it meets places, as long as
    there is one that it has not met.

    It takes no mmap_lock, so it runs beside everything that does.  Its rmap lock pairs with the
    ``unlink_anon_vmas`` and ``unlink_file_vma`` of who takes a VMA away, and the PTL of each place
    with the PTLs under which an entry moves: an entry is met before its move or behind it.

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
        await (i_mmap_lock_read(cpu, file) if file else anon_vma_lock_read(cpu, mm))
        on = await _walk_locked(cpu, folio, "" if file else mm, met, visit)
        await (i_mmap_unlock_read(cpu, file) if file else anon_vma_unlock_read(cpu, mm))
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


async def rmap_walk_file(
    cpu: Processor, at: FolioMappingWord, visit: Callable[[FileVma], Awaitable[bool]]
) -> None:
    """``rmap_walk_file``: the one page of each VMA that maps it, under the rmap lock of the file.

    The walk is over when a visit returns False.
    """
    offset = at.index << PAGE_SHIFT
    await i_mmap_lock_read(cpu, at.file)
    for vma in (await cpu.mem(ImmapWalk(at.file, offset, offset + PAGE_SIZE))).vmas:
        if not await visit(vma):
            break
    await i_mmap_unlock_read(cpu, at.file)


# ---- who is told -----------------------------------------------------------------------------


async def _begin_one_page(cpu: Processor, range_: MmuNotifierRange) -> None:
    """The begin of the bracket around one entry (from v4.13)."""
    if cpu.world.kernel.mm.rmap_notifies == "range":
        await mmu_notifier.invalidate_range_start(cpu, range_)


async def _unlock_and_tell(cpu: Processor, range_: MmuNotifierRange, table: int) -> None:
    """The PTL is given back after a change; up to v4.12 ``invalidate_page`` is called beside that.

    cpu0 (reclaim)                      vcpu0 (page fault)
                                        seq = mmu_notifier_seq; looks the page up
    clear pte; flush; unlock
    invalidate_page: seq++; zap         mmu_lock  [Required: sees a moved seq, or is zapped]
    put the page                        [Required: only now]
    """
    notifies = cpu.world.kernel.mm.rmap_notifies
    if notifies == "page_under_ptl":
        await mmu_notifier.invalidate_page(cpu, range_.mm, range_.start)
    await pte_unmap_unlock(cpu, table)
    if notifies == "page_after_ptl":
        await mmu_notifier.invalidate_page(cpu, range_.mm, range_.start)


async def _end_one_page(cpu: Processor, range_: MmuNotifierRange) -> None:
    """The end of that bracket."""
    if cpu.world.kernel.mm.rmap_notifies == "range":
        await mmu_notifier.invalidate_range_end(cpu, range_)


# ---- folio_referenced ------------------------------------------------------------------------


async def folio_referenced(cpu: Processor, folio: int, file: str) -> int:
    """``folio_referenced`` (``page_referenced``): by how many entries it was used; all are old now.

    A page of a file is locked by the caller, so that it stays that file's.
    """
    referenced = 0

    async def visit(place: Place) -> Outcome:
        nonlocal referenced
        referenced += await folio_referenced_one(cpu, place, folio)
        return "met"

    await rmap_walk(cpu, folio, file, visit)
    return referenced


async def folio_referenced_one(cpu: Processor, place: Place, folio: int) -> bool:
    """``folio_referenced_one``: one entry; there is no bracket, and rights stay."""
    mm, address = place
    found = await page_vma_mapped_walk(cpu, mm, address, folio)
    if found is None:
        return False
    young = await pgtable.ptep_clear_flush_young_notify(cpu, mm, address, found[0])
    await pte_unmap_unlock(cpu, found[0])
    return young


# ---- try_to_unmap ----------------------------------------------------------------------------


async def try_to_unmap(
    cpu: Processor, ubc: TlbUbc, folio: int, slot: int | None, at: FolioMappingWord | None = None
) -> None:
    """``try_to_unmap``: every mapping away, or a swap entry in its place; ``at`` if of a file.

    Of an anonymous page it stops at a mapping that must stay; of one of a file when nobody maps it
    any more (``folio_not_mapped``).  The caller has that one locked, so no fault maps it meanwhile;
    moves and forks that the walk meets half way have linked their new VMA behind the old one.
    """

    async def visit(place: Place) -> Outcome:
        return "met" if await try_to_unmap_one(cpu, ubc, place, folio, slot) else "stop"

    async def visit_vma(vma: FileVma) -> bool:
        await try_to_unmap_one(cpu, ubc, (vma.mm, vma.start), folio, None)
        return await folio_mapped(cpu, folio)

    if at is None:
        await rmap_walk(cpu, folio, "", visit)
    elif await folio_mapped(cpu, folio):
        await rmap_walk_file(cpu, at, visit_vma)


async def try_to_unmap_one(
    cpu: Processor, ubc: TlbUbc, place: tuple[str, int], folio: int, slot: int | None
) -> bool:
    """``try_to_unmap_one``: one mapping of a page; ``slot`` is none for a page of a file.

    Of anonymous pages from v4.13 to v6.5 with ``invalidate_range`` under the PTL, and at the end;
    of a locked page of a file, of which no other can take the place before the end, only there.
    False, and the entry is back: a page of ``MADV_FREE`` (whose slot is -1) is in use again, or an
    exclusive page is pinned.
    """
    mm, address = place
    on = True
    range_ = MmuNotifierRange(mm, address, address + PAGE_SIZE, MmuNotifierEvent.CLEAR)
    await _begin_one_page(cpu, range_)
    found = await page_vma_mapped_walk(cpu, mm, address, folio)
    if found is not None:
        table = found[0]
        old = await _clear_now_or_later(cpu, ubc, (mm, address), table)
        if slot is None:
            await _set_dirty(cpu, folio, old)
        elif slot >= 0:
            on = await _set_swap_pte(cpu, folio, slot, table, address)
        else:
            on = await _may_discard(cpu, place, folio, old)
        if on:
            await _unmapped(cpu, place, folio, slot is not None)
        else:
            await set_pte_at(cpu, table, address, old)
        await _unlock_and_tell(cpu, range_, table)
    await _end_one_page(cpu, range_)
    return on


async def _set_swap_pte(
    cpu: Processor, folio: int, slot: int, table: int, address: int
) -> bool:  # fmt: skip
    """A swap entry where the mapping was; False: the page may be pinned and must stay.

    cpu0 (reclaim)                      cpu1 (pin_user_pages_fast)
    clear pte
                                        reference; is pte the same?
    pinned? else not exclusive any more [Required: in this order, so that either the pin is seen
                                        or the cleared entry is]
    """
    await cpu.mem(SwapDuplicate(slot))
    exclusive = await is_exclusive(cpu, folio)
    if exclusive and not await page_try_share_anon_rmap(cpu, folio):
        await cpu.mem(SwapFree(slot))
        return False
    flags = ptes.SWAP | (ptes.EXCLUSIVE if exclusive else 0)
    await set_pte_at(cpu, table, address, ptes.make(slot, flags))
    return True


async def is_exclusive(cpu: Processor, folio: int) -> bool:
    """``PageAnonExclusive`` (v5.19, 6c287605fd56)."""
    if cpu.world.kernel.mm.cow_reuse != "anon_exclusive":
        return False
    return (await cpu.mem(PageAnonExclusive(folio))).value


async def page_try_share_anon_rmap(cpu: Processor, folio: int) -> bool:
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
    kernel = cpu.world.kernel
    if anon and kernel.mm.clear_flush_calls_ir and kernel.mm.rmap_notifies == "range":
        await mmu_notifier.invalidate_range(cpu, mm, address, address + PAGE_SIZE)
    await cpu.mem(RmapRemove(folio, mm, address))
    await put_page(cpu, folio)


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


async def _clear_now_or_later(
    cpu: Processor, ubc: TlbUbc, place: tuple[str, int], table: int
) -> int:  # fmt: skip
    """The entry out: flushed at once, or noted for a flush of many; what it was."""
    mm, address = place
    if not await tlbbatch.should_defer_flush(cpu, mm):
        return await pgtable.ptep_clear_flush(cpu, mm, address, table)
    old = await ptep_get_and_clear(cpu, table, address)
    await tlbbatch.set_tlb_ubc_flush_pending(cpu, ubc, mm, address, old)
    return old


# ---- try_to_migrate ---------------------------------------------------------------------------


async def try_to_migrate(cpu: Processor, ubc: TlbUbc | None, old: int, file: str) -> bool:
    """``try_to_migrate``: a migration entry in place of every mapping; whether there was any.

    ``ubc``: what may be flushed later (``TTU_BATCH_FLUSH``), if anything may.

    The rmap goes on listing them, so that whoever moves or copies such an entry (mremap, fork)
    leads ``remove_migration_ptes`` to it.
    """
    replaced = False

    async def visit(place: Place) -> Outcome:
        nonlocal replaced
        replaced |= await try_to_migrate_one(cpu, ubc, place, old)
        return "met"

    await rmap_walk(cpu, old, file, visit)
    return replaced


async def try_to_migrate_one(
    cpu: Processor, ubc: TlbUbc | None, place: tuple[str, int], old: int
) -> bool:  # fmt: skip
    """``try_to_migrate_one``: whether an entry was replaced.

    Not if the mapping has gone, nor if the page is exclusive and may be pinned: then it is back.
    """
    mm, address = place
    replaced = False
    range_ = MmuNotifierRange(mm, address, address + PAGE_SIZE, MmuNotifierEvent.CLEAR)
    await _begin_one_page(cpu, range_)
    found = await page_vma_mapped_walk(cpu, mm, address, old)
    if found is not None:
        table, _ = found
        if ubc is not None and cpu.world.kernel.mm.migration_batches:
            entry = await _clear_now_or_later(cpu, ubc, place, table)
        else:
            entry = await pgtable.ptep_clear_flush(cpu, mm, address, table)
        exclusive = await is_exclusive(cpu, old)
        replaced = not exclusive or await page_try_share_anon_rmap(cpu, old)
        flags = ptes.MIGRATION | (entry & MIGRATION_KEEPS) | (ptes.EXCLUSIVE if exclusive else 0)
        now = ptes.make(old, flags) if replaced else entry
        await set_pte_at(cpu, table, address, now)
        if replaced:
            await put_page(cpu, old)
        await _unlock_and_tell(cpu, range_, table)
    await _end_one_page(cpu, range_)
    return replaced


# ---- folio_mkclean ---------------------------------------------------------------------------


async def folio_mkclean(cpu: Processor, folio: int, at: FolioMappingWord) -> bool:
    """``folio_mkclean`` (``page_mkclean``): no entry lets anybody store unheard; was any so?

    The page is locked.  Private mappings have no such entry and are passed over
    (``invalid_mkclean_vma``).
    """
    cleaned = False

    async def visit(vma: FileVma) -> bool:
        nonlocal cleaned
        if vma.shared:
            cleaned |= await page_mkclean_one(cpu, vma.mm, vma.start, folio)
        return True

    if await folio_mapped(cpu, folio):
        await rmap_walk_file(cpu, at, visit)
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
    await _begin_one_page(cpu, range_)
    found = await page_vma_mapped_walk(cpu, mm, address, folio)
    if found is not None:
        table, pte = found
        if pte & (ptes.WRITE | ptes.DIRTY):
            old = await pgtable.ptep_clear_flush(cpu, mm, address, table)
            await set_pte_at(cpu, table, address, old & ~(ptes.WRITE | ptes.DIRTY))
            cpu.port.emit(Coverage("folio_mkclean"))
            cleaned = True
            await _unlock_and_tell(cpu, range_, table)
        else:
            await pte_unmap_unlock(cpu, table)
    await _end_one_page(cpu, range_)
    return cleaned
