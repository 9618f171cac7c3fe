"""mm/filemap.c: the page cache, and faults that are served from it."""

from __future__ import annotations

from mmurace.nodes.kernel import gup, page_alloc
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EFAULT, ENOMEM
from mmurace.nodes.world import MEMORY
from mmurace.protocol.limits import PAGE_SHIFT
from mmurace.protocol.messages.filemap import (
    FileSizeLoad,
    ImmapInsert,
    ImmapLock,
    ImmapRemove,
    ImmapUnlock,
    PageCacheAdd,
    PageCacheLoad,
    ReadFolio,
)
from mmurace.protocol.messages.filemap import FileVma as Mapping
from mmurace.protocol.messages.memory import FolioLock, FolioUnlock, FrameAlloc, PageGet, Vma
from mmurace.protocol.records import Coverage


async def filemap_get_folio(cpu: Processor, file: str, index: int) -> int:
    """``filemap_get_folio``: the frame of a page with a reference, or -1.

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
        if not (await cpu.mem(PageGet(frame))).value:
            continue
        if (await cpu.mem(PageCacheLoad(file, index))).frame == frame:
            return frame
        await gup.put_page(cpu, frame)


async def filemap_add_folio(cpu: Processor, mm: str, file: str, index: int) -> int:
    """``page_cache_ra_unbounded`` for one page: read it in; with a reference, or -1: no memory.

    It is locked from the moment that others can find it until it has its content.
    """
    frame = await page_alloc.alloc_pages(cpu, mm, FrameAlloc("file"))
    if frame < 0:
        return -1
    await gup.get_page(cpu, frame)  # one for the cache, one for the caller
    if (await cpu.mem(PageCacheAdd(file, index, frame))).frame == frame:
        await cpu.mem(ReadFolio(file, index, frame))
        await cpu.mem(FolioUnlock(frame))
        return frame
    await gup.put_page(cpu, frame)
    await gup.put_page(cpu, frame)
    return await filemap_get_folio(cpu, file, index)


async def filemap_fault(cpu: Processor, mm: str, file: str, offset: int) -> int:
    """``filemap_fault``: the page at ``offset``, locked and with a reference; or -errno.

    A page that was truncated or reclaimed while its lock was waited for is looked up again; beyond
    the end of the file the fault is a SIGBUS.
    """
    index = offset >> PAGE_SHIFT
    while offset < (await cpu.mem(FileSizeLoad(file))).value:
        frame = await filemap_get_folio(cpu, file, index)
        if frame < 0:
            frame = await filemap_add_folio(cpu, mm, file, index)
        if frame < 0:
            return -ENOMEM
        await cpu.sleep(MEMORY, FolioLock(frame))
        still = (await cpu.mem(PageCacheLoad(file, index))).frame == frame
        if still and offset < (await cpu.mem(FileSizeLoad(file))).value:
            return frame
        cpu.port.emit(Coverage("filemap_fault_truncated"))
        await unlock_and_put(cpu, frame)
    return -EFAULT


async def unlock_and_put(cpu: Processor, frame: int) -> None:
    """``folio_unlock`` and ``folio_put``."""
    await cpu.mem(FolioUnlock(frame))
    await gup.put_page(cpu, frame)


async def vma_link_file(cpu: Processor, mm: str, vma: Vma) -> None:
    """mm/mmap.c ``__vma_link_file``: the rmap finds the VMA from here on."""
    if vma.file:
        await cpu.sleep(MEMORY, ImmapLock(vma.file, True))
        mapping = Mapping(mm, vma.start, vma.end, vma.offset, vma.shared)
        await cpu.mem(ImmapInsert(vma.file, mapping))
        await cpu.mem(ImmapUnlock(vma.file))


async def unlink_file_vma(cpu: Processor, mm: str, vma: Vma, start: int, end: int) -> None:
    """mm/mmap.c ``unlink_file_vma`` for [start, end): no rmap walk finds it any more."""
    if vma.file:
        await cpu.sleep(MEMORY, ImmapLock(vma.file, True))
        await cpu.mem(ImmapRemove(vma.file, mm, start, end))
        await cpu.mem(ImmapUnlock(vma.file))
