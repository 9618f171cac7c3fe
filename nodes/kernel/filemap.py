"""mm/filemap.c: the page cache, and faults that are served from it."""

from __future__ import annotations

from mmurace.nodes.kernel import readahead
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EEXIST, EFAULT, ENOMEM
from mmurace.nodes.kernel.locking import folio_lock, folio_unlock
from mmurace.nodes.kernel.page_ref import put_page, try_get_page
from mmurace.protocol.limits import PAGE_SHIFT
from mmurace.protocol.messages.filemap import (
    FileSizeLoad,
    PageCacheLoad,
)
from mmurace.protocol.records import Coverage


async def filemap_get_folio(cpu: Processor, file: str, index: int) -> int:
    """``filemap_get_folio``: the frame of a page with a reference, or -1.

    ``try_get_page`` and the second load pair with ``filemap_remove_folio`` and the ``put_page``
    behind it; with reclaim, with ``page_ref_freeze``, which fails if the reference came first.

    cpu0 (lookup)                       cpu1 (truncate)
    load i_pages: frame f
                                        take f out; drop the cache's reference
    try_get(f)
    load i_pages again                  [Required: it is no longer f, so put and try again]
    """
    while True:
        frame = (await cpu.mem(PageCacheLoad(file, index))).frame
        if frame < 0:
            return -1
        if not await try_get_page(cpu, frame):
            continue
        if (await cpu.mem(PageCacheLoad(file, index))).frame == frame:
            return frame
        await put_page(cpu, frame)


async def do_sync_mmap_readahead(cpu: Processor, mm: str, file: str, index: int) -> int:
    """``do_sync_mmap_readahead``: the page with a reference, read in; -ENOMEM; -1: look again."""
    frame = await readahead.page_cache_ra_unbounded(cpu, mm, file, index)
    return await filemap_get_folio(cpu, file, index) if frame == -EEXIST else frame


async def filemap_fault(cpu: Processor, mm: str, file: str, offset: int) -> int:
    """``filemap_fault``: the page at ``offset``, locked and with a reference; or -errno.

    A page that was truncated or reclaimed while its lock was waited for is looked up again; beyond
    the end of the file the fault is a SIGBUS.
    """
    index = offset >> PAGE_SHIFT
    while offset < (await cpu.mem(FileSizeLoad(file))).value:
        frame = await filemap_get_folio(cpu, file, index)
        if frame < 0:
            frame = await do_sync_mmap_readahead(cpu, mm, file, index)
        if frame == -ENOMEM:
            return -ENOMEM
        if frame < 0:
            continue  # retry_find: what another has read in is gone again
        await folio_lock(cpu, frame)
        still = (await cpu.mem(PageCacheLoad(file, index))).frame == frame
        if still and offset < (await cpu.mem(FileSizeLoad(file))).value:
            return frame
        cpu.port.emit(Coverage("filemap_fault_truncated"))
        await folio_unlock(cpu, frame)
        await put_page(cpu, frame)
    return -EFAULT
