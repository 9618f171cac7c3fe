"""mm/page-writeback.c: dirty pages of files go to the disk, and stay in memory."""

from __future__ import annotations

from mmurace.nodes.kernel import filemap
from mmurace.nodes.kernel.clear_dirty_for_io import folio_clear_dirty_for_io
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.locking import folio_lock, folio_unlock
from mmurace.nodes.kernel.page_ref import put_page
from mmurace.protocol.messages.filemap import (
    FolioMapping,
    FolioMappingWord,
    PageCacheNext,
    WritePage,
)
from mmurace.protocol.messages.swap import FolioFlags


async def write_cache_pages(cpu: Processor, file: str) -> int:
    """``write_cache_pages`` of a whole file, as a flusher thread does it: how many were written.

    The kernel finds dirty pages by a tag that changes with their flag.
    """
    index, written = 0, 0
    while True:
        index = (await cpu.mem(PageCacheNext(file, index))).value
        if index < 0:
            return written
        folio = await filemap.filemap_get_folio(cpu, file, index)
        if folio >= 0:
            written += await _write_folio(cpu, folio, FolioMappingWord(file, index))
            await folio_unlock(cpu, folio)
            await put_page(cpu, folio)
        index += 1


async def _write_folio(cpu: Processor, folio: int, at: FolioMappingWord) -> bool:
    """One page, locked when this returns: whether it was written; not if truncated or clean."""
    await folio_lock(cpu, folio)
    if await cpu.mem(FolioMapping(folio)) != at or not (await cpu.mem(FolioFlags(folio))).dirty:
        return False
    if not await folio_clear_dirty_for_io(cpu, folio, at):
        return False
    await cpu.mem(WritePage(at.file, at.index, folio))
    return True
