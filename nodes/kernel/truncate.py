"""mm/truncate.c: a file becomes shorter.

Its way to the mappings is the rmap of the file.  It takes no mmap_lock, so it runs beside an
mremap, a munmap or a fork of any process that maps the file.
"""

from __future__ import annotations

from mmurace.nodes.kernel import memory
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EINVAL
from mmurace.nodes.kernel.filemap import filemap_get_folio
from mmurace.nodes.kernel.locking import folio_lock, folio_unlock, inode_lock, inode_unlock
from mmurace.nodes.kernel.page_ref import put_page
from mmurace.protocol.limits import PAGE_SHIFT, PAGE_SIZE, ULONG_MAX
from mmurace.protocol.messages.filemap import (
    FileSizeLoad,
    FileSizeStore,
    PageCacheLoad,
    PageCacheNext,
    PageCacheRemove,
    TruncateBlocks,
)
from mmurace.protocol.messages.memory import RmapWalk


async def truncate_setsize(cpu: Processor, file: str, size: int) -> int:
    """``ftruncate``: ``do_truncate`` with ``truncate_setsize``, in whole pages; 0 or -errno.

    cpu0 (truncate)                     cpu1 (fault, writeback)
    inode lock
    i_size                              reads nothing and writes nothing beyond it from here on
    unmap; drop the pages
    drop the blocks                     [Required: no page is left that they could come back from]
    unlock                              the file may become longer again
    """
    if size % PAGE_SIZE or size < 0:
        return -EINVAL
    await inode_lock(cpu, file)
    old = (await cpu.mem(FileSizeLoad(file))).value
    await cpu.mem(FileSizeStore(file, size))
    if size < old:
        await truncate_pagecache(cpu, file, size)
        await cpu.mem(TruncateBlocks(file, size >> PAGE_SHIFT))
    await inode_unlock(cpu, file)
    return 0


async def truncate_pagecache(cpu: Processor, file: str, start: int) -> None:
    """``truncate_pagecache``: unmap, drop the pages, and unmap again.

    The second time is for private copies that were made of the last pages meanwhile.
    """
    await memory.unmap_mapping_range(cpu, file, start, ULONG_MAX)
    await truncate_inode_pages(cpu, file, start >> PAGE_SHIFT)
    await memory.unmap_mapping_range(cpu, file, start, ULONG_MAX)


async def truncate_inode_pages(cpu: Processor, file: str, index: int) -> None:
    """``truncate_inode_pages_range``: take the pages from ``index`` on out of the cache."""
    while True:
        index = (await cpu.mem(PageCacheNext(file, index))).value
        if index < 0:
            return
        await truncate_inode_folio(cpu, file, index)
        index += 1


async def truncate_inode_folio(cpu: Processor, file: str, index: int) -> None:
    """``truncate_inode_folio``: under the folio lock, so that no fault maps the page again."""
    frame = await filemap_get_folio(cpu, file, index)
    if frame < 0:
        return
    await folio_lock(cpu, frame)
    if (await cpu.mem(PageCacheLoad(file, index))).frame == frame:
        if (await cpu.mem(RmapWalk(frame))).places:
            offset = index << PAGE_SHIFT
            await memory.unmap_mapping_range(cpu, file, offset, offset + PAGE_SIZE)
        await cpu.mem(PageCacheRemove(file, index))
        await put_page(cpu, frame)
    await folio_unlock(cpu, frame)
    await put_page(cpu, frame)
