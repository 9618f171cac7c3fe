"""drivers/misc/ocxl/context.c and link.c: a process attaches to a link, faults there, and leaves.

What tags a translation may belong to another process next, so the order in which it is taken back
is what keeps the two apart:

    cpu0 (detach, mm0)                  link                        cpu1 (attach, mm1)
    terminate the PASID                 no access under it any more
    clear the process element
    drop its copy in the link           [Required: or the PASID leads to mm0 still]
    unregister; invalidate the PID;
    drop the count                      [Required: or entries of mm0 stay under the PID]
    mmdrop: the PID is free
                                                                    gets the PASID and the PID
"""

from __future__ import annotations

from nodes.kernel import memory, mmap, mmu_notifier
from nodes.kernel.context import Processor
from nodes.kernel.errno import EBUSY, EINVAL
from nodes.kernel.mmu_context import mm_context_add_copro, mm_context_remove_copro
from nodes.kernel.ocxl import pnv_ocxl_tlb_invalidate, registers_notifier
from nodes.world import MEMORY
from protocol.messages import ocxl as o
from protocol.messages.memory import (
    AnonVmaLock,
    AnonVmaUnlock,
    MmapLock,
    MmapUnlock,
    NotifierDelete,
)


async def ocxl_context_attach(cpu: Processor, mm: str, link: str) -> int:
    """``ocxl_context_alloc`` and ``ocxl_context_attach``: the PASID, or -EBUSY (v4.16).

    The accelerator is given work when the call has returned, and not before.
    """
    pid = (await cpu.mem(o.ContextIdAlloc(mm))).value
    pasid = (await cpu.mem(o.PasidAlloc(link, mm))).value
    if not pasid:
        return -EBUSY
    await ocxl_link_add_pe(cpu, link, pasid, pid, mm)
    await cpu.sleep(link, o.AfuStart(mm, pasid))
    return pasid


async def ocxl_link_add_pe(cpu: Processor, link: str, pasid: int, pid: int, mm: str) -> None:
    """``ocxl_link_add_pe``: the process element, the count, from v5.11 the notifier."""
    kernel = cpu.world.kernel
    await cpu.sleep(MEMORY, o.SpaLock(link))
    await cpu.mem(o.SpaStore(link, pasid, pid))
    if kernel.ocxl_counts_copro:
        await mm_context_add_copro(cpu, mm)
    if registers_notifier(kernel):
        await mmu_notifier_register(cpu, mm, link)
    await cpu.mem(o.PeTreeInsert(link, pasid, mm))
    await cpu.mem(o.Mmgrab(mm))
    await cpu.mem(o.SpaUnlock(link))


async def mmu_notifier_register(cpu: Processor, mm: str, link: str) -> None:
    """``mmu_notifier_register``: under mmap_lock and ``mm_take_all_locks``, so in no bracket.

    Of the rmap locks only that of anonymous memory is taken.
    """
    await cpu.sleep(MEMORY, MmapLock(mm, True))
    await cpu.sleep(MEMORY, AnonVmaLock(mm, True))
    await cpu.mem(o.NotifierAdd(mm, "ocxl", link))
    await cpu.mem(AnonVmaUnlock(mm))
    await cpu.mem(MmapUnlock(mm))


async def ocxl_context_detach(cpu: Processor, mm: str, link: str) -> int:
    """``ocxl_context_detach`` and ``ocxl_context_free``: 0, or -EINVAL without a context."""
    pasid = (await cpu.mem(o.PasidFind(link, mm))).value
    if not pasid:
        return -EINVAL
    await cpu.sleep(link, o.TerminatePasid(pasid))
    await ocxl_link_remove_pe(cpu, link, pasid)
    await cpu.mem(o.PasidFree(link, pasid))
    return 0


async def ocxl_link_remove_pe(cpu: Processor, link: str, pasid: int) -> None:
    """``ocxl_link_remove_pe`` (all releases; the notifier's part from v5.11)."""
    kernel = cpu.world.kernel
    await cpu.sleep(MEMORY, o.SpaLock(link))
    await cpu.mem(o.SpaStore(link, pasid, 0))
    if kernel.ocxl_clears_pe_cache:
        await cpu.port.call(link, o.SpaClearCache(pasid))
    mm = (await cpu.mem(o.PeTreeDelete(link, pasid))).mm
    if registers_notifier(kernel):
        await mmu_notifier.mmu_notifier_unregister(cpu, "ocxl", link, mm)
        if kernel.ocxl_invalidates_pid:
            await _invalidate_pid(cpu, link, mm)
    if kernel.ocxl_counts_copro:
        await mm_context_remove_copro(cpu, mm)
    await cpu.mem(o.Mmdrop(mm))
    await cpu.mem(o.SpaUnlock(link))


async def _invalidate_pid(cpu: Processor, link: str, mm: str) -> None:
    pid = (await cpu.mem(o.ContextIdLoad(mm))).value
    await cpu.mem(o.AtsdLock(link))
    await pnv_ocxl_tlb_invalidate(cpu, link, pid, 0)
    await cpu.mem(o.AtsdUnlock(link))


async def xsl_fault_handler_bh(cpu: Processor, fault: o.XslFault) -> bool:
    """``xsl_fault_handler`` and ``..._bh``: whether the link shall try again (RESTART).

    A PASID that is gone from the tree is an ADDRESS_ERROR.
    """
    mm = (await cpu.mem(o.PeTreeLookup(fault.link, fault.pasid))).mm
    if not mm:
        return False
    return await memory.handle_mm_fault(cpu, mm, fault.address, fault.write) == 0


async def exit_group(cpu: Processor, mm: str) -> int:
    """``do_exit``: ``exit_mm``, ``exit_files``, and the last reference that the process had."""
    await exit_mm(cpu, mm)
    if cpu.world.links:
        await cpu.mem(o.Mmdrop(mm))
    return 0


async def exit_mm(cpu: Processor, mm: str) -> None:
    """``mmput`` of the last user, then the files: the contexts of links are closed after it all.

    ``exit_mmap`` begins with ``mmu_notifier_release``.

    cpu0 (exits)                        link, told by its registers
                                        holds entries, works
    release; off the list               [Required: it is stopped and has lost them]
    unmap, free
    close the context
    """
    links = [link.name for link in cpu.world.links]
    if registers_notifier(cpu.world.kernel):
        for link in links:
            await _mmu_notifier_release(cpu, mm, link)
    await mmap.exit_mmap(cpu, mm)
    for link in links:
        await ocxl_context_detach(cpu, mm, link)


async def _mmu_notifier_release(cpu: Processor, mm: str, link: str) -> None:
    """``mn_hlist_release`` (all releases), for the subscription of a link."""
    pasid = (await cpu.mem(o.PasidFind(link, mm))).value
    if not pasid:
        return
    if cpu.world.kernel.ocxl_notifier_releases:
        await cpu.sleep(link, o.TerminatePasid(pasid))
        await _invalidate_pid(cpu, link, mm)
    await cpu.mem(NotifierDelete(mm, link))
    await mmu_notifier.synchronize_srcu(cpu)
