"""mm/memory.c: faults on file mappings, from ``do_fault`` down."""

from __future__ import annotations

from mmurace.nodes.kernel import filemap, page_alloc
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import ENOMEM
from mmurace.nodes.kernel.locking import folio_lock, folio_unlock, spin_lock, spin_unlock
from mmurace.nodes.kernel.page_ref import get_page, put_page
from mmurace.nodes.kernel.pgtable import ptep_get, set_pte_at
from mmurace.nodes.kernel.vm_fault import VmFault
from mmurace.nodes.kernel.vma_lock import vmf_anon_prepare
from mmurace.protocol import pte as ptes
from mmurace.protocol.messages.filemap import FolioMapping
from mmurace.protocol.messages.memory import (
    FrameAlloc,
    FrameCopy,
    RmapAdd,
)
from mmurace.protocol.messages.swap import FolioMarkDirty

FILE_FLAGS = ptes.PRESENT | ptes.ACCESSED


async def do_fault(cpu: Processor, fault: VmFault) -> int:
    """``do_fault``: 0 (retry the access) or -errno; under mmap_lock or the VMA's, for read.

    The page is locked when the entry is set, so a truncation that has unmapped the file
    either finds the entry or makes this fault look the page up again.
    """
    if fault.write and not fault.vma.shared:
        return await do_cow_fault(cpu, fault)
    frame = await filemap.filemap_fault(cpu, fault.mm, fault.vma.file, fault.file_offset)
    if frame < 0:
        return frame
    if fault.write:
        return await do_shared_fault(cpu, fault, frame)
    result = await finish_fault(cpu, fault, ptes.make(frame, FILE_FLAGS))
    await folio_unlock(cpu, frame)
    await put_page(cpu, frame)
    return result


async def do_shared_fault(cpu: Processor, fault: VmFault, frame: int) -> int:
    """``do_shared_fault`` of a locked page: unlocked, and locked again by ``do_page_mkwrite``.

    It may be written, truncated or mapped by another thread between the two.
    """
    await folio_unlock(cpu, frame)
    result = 0
    if await do_page_mkwrite(cpu, fault.vma.file, frame):
        dirty = FILE_FLAGS | ptes.WRITE | ptes.DIRTY
        result = await finish_fault(cpu, fault, ptes.make(frame, dirty))
        await folio_unlock(cpu, frame)
    await put_page(cpu, frame)
    return result


async def do_cow_fault(cpu: Processor, fault: VmFault) -> int:
    """``do_cow_fault``: the first access to a private mapping is a write: a copy.

    Its frame is allocated before the page is looked up, so that nothing is locked meanwhile.
    """
    if retry := await vmf_anon_prepare(cpu, fault):
        return retry
    frame = await page_alloc.alloc_pages(cpu, fault.mm, FrameAlloc("anon"))
    if frame < 0:
        return -ENOMEM
    result = source = await filemap.filemap_fault(cpu, fault.mm, fault.vma.file, fault.file_offset)
    if source >= 0:
        await cpu.mem(FrameCopy(source, frame))
        flags = FILE_FLAGS | ptes.WRITE | ptes.DIRTY
        result = await finish_fault(cpu, fault, ptes.make(frame, flags), True)
        await folio_unlock(cpu, source)
        await put_page(cpu, source)
    await put_page(cpu, frame)
    return result


async def finish_fault(cpu: Processor, fault: VmFault, pte: int, anon: bool = False) -> int:
    """``finish_fault``: map the page unless another thread has done it; the map takes a ref.

    ``anon``: a new anonymous page (``folio_add_new_anon_rmap``).
    """
    frame = ptes.frame_of(pte)
    await spin_lock(cpu, fault.table)
    if await ptep_get(cpu, fault.table, fault.address) == ptes.NONE:
        await get_page(cpu, frame)
        await cpu.mem(RmapAdd(frame, fault.mm, fault.address, exclusive=anon))
        await set_pte_at(cpu, fault.table, fault.address, pte)
    await spin_unlock(cpu, fault.table)
    return 0


async def do_page_mkwrite(cpu: Processor, file: str, frame: int) -> bool:
    """``do_page_mkwrite``, with ``filemap_page_mkwrite``: locked and dirty; False: truncated.

    The caller has a reference.  Locked, it is not written back between this and the change of the
    entry.
    """
    await folio_lock(cpu, frame)
    if (await cpu.mem(FolioMapping(frame))).file != file:
        await folio_unlock(cpu, frame)
        return False
    await cpu.mem(FolioMarkDirty(frame))
    return True
