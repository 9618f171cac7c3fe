"""mm/memory.c ``do_swap_page``: a page comes back from swap."""

from __future__ import annotations

from mmurace.nodes.kernel import gup, page_alloc
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import ENOMEM
from mmurace.nodes.world import MEMORY
from mmurace.protocol import pte as ptes
from mmurace.protocol.messages.memory import (
    FolioLock,
    FolioUnlock,
    FrameAlloc,
    FrameCopy,
    PteLoad,
    PteSet,
    PtlLock,
    PtlUnlock,
    RmapAdd,
    Vma,
)
from mmurace.protocol.messages.swap import (
    SwapCacheDelete,
    SwapCacheGet,
    SwapCount,
    SwapFree,
    SwapRead,
)
from mmurace.protocol.records import Coverage


async def do_swap_page(
    cpu: Processor, mm: str, vma: Vma, address: int, place: tuple[int, int], pte: int
) -> int:
    """``do_swap_page``: 0 (retry the access) or -errno; under mmap_lock for read.

    ``place`` is the leaf table and index.  A page that is still in the swap cache is mapped again
    if no other entry leads to it; else the entry gets a copy.
    """
    slot = ptes.frame_of(pte)
    cached = (await cpu.mem(SwapCacheGet(slot))).frame
    if cached >= 0:
        cpu.port.emit(Coverage("swap_cache_hit"))
        await cpu.sleep(MEMORY, FolioLock(cached))
        taken = await _set(cpu, mm, vma, (address, *place), pte, cached, True)
        if not taken:
            result = await _copy_in(cpu, mm, vma, (address, *place), pte, cached)
        await cpu.mem(FolioUnlock(cached))
        await gup.put_page(cpu, cached)
        return 0 if taken else result
    return await _copy_in(cpu, mm, vma, (address, *place), pte, -1)


async def _copy_in(
    cpu: Processor, mm: str, vma: Vma, where: tuple[int, int, int], pte: int, cached: int
) -> int:
    """A new page with the content of the slot, or of the page that the swap cache has of it."""
    fresh = await page_alloc.alloc_pages(cpu, mm, FrameAlloc("anon"))
    if fresh < 0:
        return -ENOMEM
    if cached >= 0:
        await cpu.mem(FrameCopy(cached, fresh))
    else:
        await cpu.mem(SwapRead(ptes.frame_of(pte), fresh))
    await _set(cpu, mm, vma, where, pte, fresh, False)
    await gup.put_page(cpu, fresh)
    return 0


async def _set(
    cpu: Processor, mm: str, vma: Vma, where: tuple[int, int, int], pte: int, frame: int,
    alone: bool,
) -> bool:  # fmt: skip
    """Map ``frame`` for reading; a write faults once more.  False: others lead to the slot.

    Under the PTL nobody can copy the entry, so an entry that is ``alone`` stays so.  Nothing is
    done if another thread was faster.
    """
    address, table, index = where
    slot = ptes.frame_of(pte)
    await cpu.mem(PtlLock(table))
    same = (await cpu.mem(PteLoad(table, index))).pte == pte
    shared = same and alone and (await cpu.mem(SwapCount(slot))).value > 1
    if same and not shared:
        await gup.get_page(cpu, frame)
        await cpu.mem(RmapAdd(frame, mm, address))
        rights = ptes.PRESENT if vma.read or vma.write else ptes.PROTNONE
        await cpu.mem(PteSet(table, index, ptes.make(frame, rights | ptes.ACCESSED | ptes.DIRTY)))
        await cpu.mem(SwapFree(slot))
        if alone:
            await cpu.mem(SwapCacheDelete(slot))
    await cpu.mem(PtlUnlock(table))
    return not shared
