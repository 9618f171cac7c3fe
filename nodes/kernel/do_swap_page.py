"""mm/memory.c ``do_swap_page``: a page comes back from swap."""

from __future__ import annotations

from nodes.kernel import gup
from nodes.kernel.context import Processor
from nodes.kernel.errno import ENOMEM
from nodes.world import MEMORY
from protocol import pte as ptes
from protocol.limits import PAGE_SIZE
from protocol.messages.memory import (
    FolioLock,
    FolioUnlock,
    FrameAlloc,
    FrameCopy,
    PteLoad,
    PteSet,
    PtlLock,
    PtlUnlock,
    RmapAdd,
    VmaFind,
)
from protocol.messages.swap import SwapCacheDelete, SwapCacheGet, SwapCount, SwapFree, SwapRead
from protocol.records import Coverage


async def do_swap_page(
    cpu: Processor, mm: str, address: int, place: tuple[int, int], pte: int
) -> int:
    """``do_swap_page``: 0 (retry the access) or -errno; under mmap_lock for read.

    ``place`` is the leaf table and index.  A page that is still in the swap cache is mapped again
    if this is the only entry that leads to it; else the entry gets a copy.
    """
    slot = ptes.frame_of(pte)
    frame = (await cpu.mem(SwapCacheGet(slot))).frame
    if frame >= 0:
        cpu.port.emit(Coverage("swap_cache_hit"))
        await cpu.sleep(MEMORY, FolioLock(frame))
        result = await _map_cached(cpu, mm, address, place, pte, frame)
        await cpu.mem(FolioUnlock(frame))
        await gup.put_page(cpu, frame)
        return result
    fresh = (await cpu.mem(FrameAlloc("anon"))).frame
    if fresh < 0:
        return -ENOMEM
    await cpu.mem(SwapRead(slot, fresh))
    await _set(cpu, mm, address, place, pte, fresh)
    await gup.put_page(cpu, fresh)
    return 0


async def _map_cached(
    cpu: Processor, mm: str, address: int, place: tuple[int, int], pte: int, frame: int
) -> int:
    """The page of the swap cache, or a copy of it; its folio lock is held."""
    slot = ptes.frame_of(pte)
    if (await cpu.mem(SwapCount(slot))).value == 1:
        if await _set(cpu, mm, address, place, pte, frame):
            await cpu.mem(SwapCacheDelete(slot))
        return 0
    copy = (await cpu.mem(FrameAlloc("anon"))).frame
    if copy < 0:
        return -ENOMEM
    await cpu.mem(FrameCopy(frame, copy))
    await _set(cpu, mm, address, place, pte, copy)
    await gup.put_page(cpu, copy)
    return 0


async def _set(
    cpu: Processor, mm: str, address: int, place: tuple[int, int], pte: int, frame: int
) -> bool:
    """Map ``frame`` for reading if the entry has not changed; a write faults once more."""
    table, index = place
    await cpu.mem(PtlLock(table))
    same = (await cpu.mem(PteLoad(table, index))).pte == pte
    if same:
        await gup.get_page(cpu, frame)
        await cpu.mem(RmapAdd(frame, mm, address))
        vmas = (await cpu.mem(VmaFind(mm, address, address + PAGE_SIZE))).vmas
        readable = not vmas or vmas[0].read or vmas[0].write
        rights = ptes.PRESENT if readable else ptes.PROTNONE
        await cpu.mem(PteSet(table, index, ptes.make(frame, rights | ptes.ACCESSED | ptes.DIRTY)))
    await cpu.mem(PtlUnlock(table))
    if same:
        await cpu.mem(SwapFree(ptes.frame_of(pte)))
    return same
