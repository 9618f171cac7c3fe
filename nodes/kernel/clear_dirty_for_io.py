"""mm/page-writeback.c: ``folio_clear_dirty_for_io``, before a page is written by whomever."""

from __future__ import annotations

from mmurace.nodes.kernel import rmap
from mmurace.nodes.kernel.context import Processor
from mmurace.protocol.messages.filemap import FolioMappingWord
from mmurace.protocol.messages.swap import FolioMarkDirty, FolioTestClearDirty


async def folio_clear_dirty_for_io(cpu: Processor, folio: int, at: FolioMappingWord) -> bool:
    """``folio_clear_dirty_for_io``, under the folio lock: whether the page must be written.

    cpu0 (writeback)                    cpu1, device0
    every entry: read-only, clean
    page: clean                         [Required: a store from here on faults, or is in what ...]
    write the page                      ... is written
    """
    if await rmap.folio_mkclean(cpu, folio, at):
        await cpu.mem(FolioMarkDirty(folio))
    return (await cpu.mem(FolioTestClearDirty(folio))).value
