"""mm/swapfile.c: who leads to a page by way of its swap slot."""

from __future__ import annotations

from mmurace.nodes.kernel.context import Processor
from mmurace.protocol.messages.memory import RmapWalk
from mmurace.protocol.messages.swap import FolioMarkDirty, PageSwapEntry, SwapCacheDelete, SwapCount


async def page_mapcount(cpu: Processor, folio: int) -> int:
    """``page_mapcount``: how many entries map it."""
    return len((await cpu.mem(RmapWalk(folio))).places)


async def reuse_swap_page(cpu: Processor, folio: int) -> bool:
    """``reuse_swap_page`` (to v5.17), of a locked page: no more than one entry leads to it.

    Be it that it maps it or that it has its slot; never a KSM page.  Out of the swap cache then,
    and dirty.
    """
    mapped = await cpu.mem(RmapWalk(folio))
    if mapped.ksm:
        return False
    count = len(mapped.places)
    slot = (await cpu.mem(PageSwapEntry(folio))).value
    if slot:
        count += (await cpu.mem(SwapCount(slot))).value
    if count == 1 and slot:
        await cpu.mem(SwapCacheDelete(slot))
        await cpu.mem(FolioMarkDirty(folio))
    return count <= 1
