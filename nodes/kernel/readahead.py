"""mm/readahead.c: pages of a file are read into the page cache, one at a time."""

from __future__ import annotations

from mmurace.nodes.kernel import page_alloc
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EEXIST, ENOMEM
from mmurace.nodes.kernel.locking import folio_unlock
from mmurace.nodes.kernel.page_ref import get_page, put_page
from mmurace.protocol.messages.filemap import PageCacheAdd, ReadFolio
from mmurace.protocol.messages.memory import FrameAlloc


async def page_cache_ra_unbounded(cpu: Processor, mm: str, file: str, index: int) -> int:
    """``page_cache_ra_unbounded`` of one page: the page with a reference, -ENOMEM or -EEXIST.

    ``filemap_add_folio`` adds it locked, and -EEXIST says that another has been faster;
    ``read_pages`` unlocks it when it has its content.  In the kernel a page that cannot be had here
    is asked for once more, with a killer behind it, by ``filemap_fault`` (``FGP_CREAT``).
    """
    frame = await page_alloc.alloc_pages(cpu, mm, FrameAlloc("file"))
    if frame < 0:
        return -ENOMEM
    await get_page(cpu, frame)  # one for the cache, one for the caller
    if (await cpu.mem(PageCacheAdd(file, index, frame))).frame == frame:  # filemap_add_folio
        await cpu.mem(ReadFolio(file, index, frame))
        await folio_unlock(cpu, frame)
        return frame
    await put_page(cpu, frame)
    await put_page(cpu, frame)
    return -EEXIST
