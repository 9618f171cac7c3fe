"""mm/swap_state.c: the swap cache, through which a page comes back."""

from __future__ import annotations

from mmurace.nodes.kernel import page_alloc
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.locking import folio_unlock
from mmurace.nodes.kernel.page_ref import put_page
from mmurace.protocol.messages.memory import FrameAlloc
from mmurace.protocol.messages.swap import SwapCacheAdd, SwapCacheGet, SwapRead
from mmurace.protocol.records import Coverage


async def swap_cache_get_folio(cpu: Processor, slot: int) -> int:
    """``swap_cache_get_folio`` (``lookup_swap_cache``): the page with a reference, or -1."""
    cached = (await cpu.mem(SwapCacheGet(slot))).frame
    if cached >= 0:
        cpu.port.emit(Coverage("swap_cache_hit"))
    return cached


async def swapin_readahead(cpu: Processor, mm: str, slot: int) -> int:
    """``swapin_readahead`` without read-ahead: the page with a reference; -1: no memory, or nobody
    needs it any more.

    ``read_swap_cache_async``: it is locked from the moment that others can find it until it has
    its content.  A swap device with ``SWP_SYNCHRONOUS_IO`` would pass the cache by.
    """
    while True:
        folio = (await cpu.mem(SwapCacheGet(slot))).frame
        if folio >= 0:
            return folio
        folio = await page_alloc.alloc_pages(cpu, mm, FrameAlloc("anon"))
        if folio < 0:
            return -1
        found = (await cpu.mem(SwapCacheAdd(slot, folio))).frame
        if found == folio:
            await cpu.mem(SwapRead(slot, folio))
            await folio_unlock(cpu, folio)
            return folio
        await put_page(cpu, folio)
        if found < 0:
            return -1
