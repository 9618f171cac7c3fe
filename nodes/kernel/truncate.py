"""mm/truncate.c, with ``unmap_mapping_range`` of mm/memory.c: a file becomes shorter.

Its way to the mappings is the rmap of the file.  It takes no mmap_lock, so it runs beside an
mremap, a munmap or a fork of any process that maps the file.
"""

from __future__ import annotations

from mmurace.nodes.kernel import gup, memory
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EINVAL
from mmurace.nodes.kernel.filemap import filemap_get_folio, unlock_and_put
from mmurace.nodes.world import MEMORY
from mmurace.protocol.limits import PAGE_SHIFT, PAGE_SIZE, ULONG_MAX
from mmurace.protocol.messages.filemap import (
    FileSizeLoad,
    FileSizeStore,
    ImmapLock,
    ImmapUnlock,
    ImmapWalk,
    InodeLock,
    InodeUnlock,
    PageCacheLoad,
    PageCacheNext,
    PageCacheRemove,
    TruncateBlocks,
)
from mmurace.protocol.messages.memory import FolioLock, RmapWalk


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
    await cpu.sleep(MEMORY, InodeLock(file))
    old = (await cpu.mem(FileSizeLoad(file))).value
    await cpu.mem(FileSizeStore(file, size))
    if size < old:
        await truncate_pagecache(cpu, file, size)
        await cpu.mem(TruncateBlocks(file, size >> PAGE_SHIFT))
    await cpu.mem(InodeUnlock(file))
    return 0


async def truncate_pagecache(cpu: Processor, file: str, start: int) -> None:
    """``truncate_pagecache``: unmap, drop the pages, and unmap again.

    The second time is for private copies that were made of the last pages meanwhile.
    """
    await unmap_mapping_range(cpu, file, start, ULONG_MAX)
    await truncate_inode_pages(cpu, file, start >> PAGE_SHIFT)
    await unmap_mapping_range(cpu, file, start, ULONG_MAX)


async def unmap_mapping_range(cpu: Processor, file: str, start: int, end: int) -> None:
    """``unmap_mapping_range``: zap bytes [start, end) of the file wherever they are mapped.

    cpu1 (truncate)                     cpu0 (mremap, fork, munmap of the same pages)
    i_mmap_lock                         mmap_lock
    PTL of each table                   PTL of each table, and nothing else in common
    """
    alone = cpu.world.kernel.mm.unmap_mapping_lock == "exclusive"
    await cpu.sleep(MEMORY, ImmapLock(file, alone))
    for vma in (await cpu.mem(ImmapWalk(file, start, end))).vmas:
        await memory.zap_page_range_single(cpu, vma.mm, vma)
    await cpu.mem(ImmapUnlock(file))


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
    await cpu.sleep(MEMORY, FolioLock(frame))
    if (await cpu.mem(PageCacheLoad(file, index))).frame == frame:
        if (await cpu.mem(RmapWalk(frame))).places:
            offset = index << PAGE_SHIFT
            await unmap_mapping_range(cpu, file, offset, offset + PAGE_SIZE)
        await cpu.mem(PageCacheRemove(file, index))
        await gup.put_page(cpu, frame)
    await unlock_and_put(cpu, frame)
