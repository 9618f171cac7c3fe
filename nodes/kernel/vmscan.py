"""mm/vmscan.c: anonymous pages go to swap, pages of files to where they came from.

Swap is unlimited, and both are written at once.
"""

from __future__ import annotations

from typing import Final, Literal

from mmurace.nodes.kernel import rmap, tlbbatch
from mmurace.nodes.kernel.clear_dirty_for_io import folio_clear_dirty_for_io
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.locking import folio_trylock, folio_unlock
from mmurace.nodes.kernel.page_ref import put_page
from mmurace.nodes.kernel.tlbbatch import TlbUbc
from mmurace.nodes.world import MEMORY
from mmurace.protocol.messages.filemap import (
    FolioMapping,
    FolioMappingWord,
    RemoveMapping,
    WritePage,
)
from mmurace.protocol.messages.memory import PageFreeze
from mmurace.protocol.messages.swap import (
    AddToSwap,
    FolioFlags,
    FolioRefCount,
    FreePages,
    FreeUnrefPage,
    IsolateLru,
    PutbackLru,
    ReclaimThrottle,
    SwapCacheDelete,
    SwapCacheFreeze,
    SwapCount,
    SwapWrite,
)
from mmurace.protocol.records import Coverage

SWAP_CLUSTER_MAX: Final = 4
"""Pages of one round of direct reclaim; 32 in the kernel, whose memory is larger."""
DEF_PRIORITY: Final = 12
"""Rounds that may find nothing to free."""


async def balance_pgdat(cpu: Processor, pages: int) -> int:
    """kswapd: one round of ``balance_pgdat`` over ``pages`` pages; how many it freed.

    It ends with ``pgdat_balanced``; whoever wakes it again decides whether that was enough.
    """
    _, freed = await shrink_inactive_list(cpu, pages, "")
    await cpu.mem(FreePages())
    return freed


async def try_to_free_pages(cpu: Processor, current: str) -> bool:
    """``try_to_free_pages``: direct reclaim; whether it is worth while to ask for a page again.

    If others have isolated all there is, it waits for the first that they free or put back
    (``reclaim_throttle``); it holds none itself, so somebody goes on.
    """
    for _ in range(DEF_PRIORITY):
        isolated, freed = await shrink_inactive_list(cpu, SWAP_CLUSTER_MAX, current)
        if freed:
            cpu.port.emit(Coverage("direct_reclaim"))
            return True
        if not isolated:
            return (await cpu.sleep(MEMORY, ReclaimThrottle())).value
    return False


async def shrink_inactive_list(cpu: Processor, pages: int, current: str) -> tuple[int, int]:
    """``shrink_inactive_list``: isolate, shrink, put back; pages isolated, and pages freed.

    ``current`` is the mm of the thread, empty for kswapd.
    """
    isolated = await cpu.mem(IsolateLru(pages))
    folios, ubc = isolated.frames, TlbUbc(current)
    free: list[int] = []
    kept: list[int] = []
    for folio in folios:
        shrink = _shrink_file_folio if folio in isolated.files else _shrink_anon_folio
        freed = await folio_trylock(cpu, folio) and await shrink(cpu, ubc, folio)
        (free if freed else kept).append(folio)
    await _free_folios(cpu, ubc, free)
    for folio in kept:
        await cpu.mem(PutbackLru(folio))
        await put_page(cpu, folio)
    return len(folios), len(free)


async def shrink_active_list(cpu: Processor, pages: int) -> int:
    """``shrink_active_list``: which of ``pages`` pages were used since the last time; how many.

    Of pages that are used the kernel keeps a list of their own; here all are on one, and go back to
    its end.  A page of a file that somebody else has locked counts as used.
    """
    isolated = await cpu.mem(IsolateLru(pages))
    used = 0
    for folio in isolated.frames:
        look = _file_folio_referenced if folio in isolated.files else _anon_folio_referenced
        used += await look(cpu, folio)
        await cpu.mem(PutbackLru(folio))
        await put_page(cpu, folio)
    return used


async def _anon_folio_referenced(cpu: Processor, folio: int) -> bool:
    return await rmap.folio_referenced(cpu, folio, "") > 0


async def _file_folio_referenced(cpu: Processor, folio: int) -> bool:
    """``folio_referenced`` of a page of a file, which locks it (``we_locked``)."""
    if not await folio_trylock(cpu, folio):
        return True
    at = await cpu.mem(FolioMapping(folio))
    used = bool(at.file) and await rmap.folio_referenced(cpu, folio, at.file) > 0
    await folio_unlock(cpu, folio)
    return used


async def _free_folios(cpu: Processor, ubc: TlbUbc, free: list[int]) -> None:
    """The end of ``shrink_folio_list``: flush, then free; what is kept goes back only after it.

    cpu0 (reclaim)                      any agent
    entries cleared, flush deferred     (holds a copy)
    flush                               [Required: the copy is gone before ...]
    free the frames                     ... a frame has another owner
    """
    await tlbbatch.try_to_unmap_flush(cpu, ubc)
    for folio in free:
        await cpu.mem(FreeUnrefPage(folio))


async def _shrink_anon_folio(cpu: Processor, ubc: TlbUbc, folio: int) -> bool:
    """A locked anonymous page of ``shrink_folio_list``: whether the caller's is the last reference.

    Unlocked when it returns.
    """
    slot = (await cpu.mem(AddToSwap(folio))).value
    await rmap.try_to_unmap(cpu, ubc, folio, slot)
    freed = not await rmap.folio_mapped(cpu, folio)
    if slot < 0:
        freed = freed and (await cpu.mem(PageFreeze(folio, 1))).value
    else:
        freed = await _swap_out(cpu, ubc, folio, slot, freed)
    await folio_unlock(cpu, folio)
    return freed


async def _swap_out(cpu: Processor, ubc: TlbUbc, folio: int, slot: int, unmapped: bool) -> bool:
    """``pageout`` and ``__remove_mapping`` of a page with a slot: whether it can be freed."""
    freed = unmapped
    if unmapped:
        await tlbbatch.try_to_unmap_flush_dirty(cpu, ubc)
        await cpu.mem(SwapWrite(slot, folio))
        freed = (await cpu.mem(SwapCacheFreeze(slot, folio))).value
    if not freed and not (await cpu.mem(SwapCount(slot))).value:
        await cpu.mem(SwapCacheDelete(slot))
    return freed


async def _shrink_file_folio(cpu: Processor, ubc: TlbUbc, folio: int) -> bool:
    """A locked page of a file, in ``shrink_folio_list``: as for ``_shrink_anon_folio``.

    cpu0 (reclaim)                      cpu1 (fault, truncation, fast GUP)
    folio lock
    clear every entry; dirty? write     a fault waits for the lock
    references as expected? dirty?
    out of the page cache               [Required: as one access, or a reference that somebody
    unlock                              takes, or a store through it, is overlooked]
                                        looks the page up again, and reads it from the disk
    """
    at = await cpu.mem(FolioMapping(folio))
    if at.file:  # else it was truncated before it was locked
        await rmap.try_to_unmap(cpu, ubc, folio, None, at)
    keep = not at.file or await rmap.folio_mapped(cpu, folio)
    if not keep and (await cpu.mem(FolioFlags(folio))).dirty:
        await tlbbatch.try_to_unmap_flush_dirty(cpu, ubc)
        outcome = await pageout(cpu, folio, at)
        keep = outcome == "keep"
        if outcome == "success":
            if not await _lock_again(cpu, folio):
                return False
            at = await cpu.mem(FolioMapping(folio))
            keep = not at.file
    removed = RemoveMapping(at.file, at.index, folio)
    freed = not keep and (await cpu.mem(removed)).value
    cpu.port.emit(Coverage("file_page_reclaimed" if freed else "file_page_kept"))
    await folio_unlock(cpu, folio)
    return freed


async def pageout(
    cpu: Processor, folio: int, at: FolioMappingWord
) -> Literal["keep", "success", "clean"]:
    """``pageout`` of a page of a file: in use by others; written, and unlocked; clean by now."""
    if (await cpu.mem(FolioRefCount(folio))).value != 2:  # is_page_cache_freeable
        return "keep"
    if not await folio_clear_dirty_for_io(cpu, folio, at):
        return "clean"
    await cpu.mem(WritePage(at.file, at.index, folio))
    await folio_unlock(cpu, folio)
    return "success"


async def _lock_again(cpu: Processor, folio: int) -> bool:
    """A page that was written at once can be freed, unless others have it by now."""
    if (await cpu.mem(FolioFlags(folio))).dirty:
        return False
    return await folio_trylock(cpu, folio)
