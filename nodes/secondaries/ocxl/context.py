"""drivers/misc/ocxl/context.c, drivers/misc/ocxl/link.c: a process attaches, faults, leaves.

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

from mmurace.nodes.kernel import memory, mmu_notifier
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EBUSY, EINVAL
from mmurace.nodes.kernel.mmu_context import mm_context_add_copro, mm_context_remove_copro
from mmurace.nodes.secondaries.ocxl import messages as o
from mmurace.nodes.secondaries.ocxl.link import invalidate_pid
from mmurace.nodes.secondaries.ocxl.locking import lock_spa, unlock_spa
from mmurace.nodes.secondaries.ocxl.part import Link, registers_notifier
from mmurace.nodes.secondaries.ocxl.variant import OcxlSwitches
from mmurace.protocol.messages.book3s64 import ContextIdAlloc, Mmdrop, Mmgrab
from mmurace.protocol.messages.memory import Flag


async def ocxl_context_attach(cpu: Processor, operation: o.OcxlAttach) -> int:
    """``ocxl_context_alloc`` and ``ocxl_context_attach``: the PASID, or -EBUSY (v4.16).

    The accelerator is given work when the call has returned, and not before.
    """
    mm, link = operation.mm, operation.link
    pid = (await cpu.mem(ContextIdAlloc(mm))).value
    pasid = (await cpu.mem(o.PasidAlloc(link, mm))).value
    if not pasid:
        return -EBUSY
    await ocxl_link_add_pe(cpu, link, pasid, pid, mm)
    await cpu.sleep(link, o.AfuStart(mm, pasid))
    return pasid


async def ocxl_link_add_pe(cpu: Processor, link: str, pasid: int, pid: int, mm: str) -> None:
    """``ocxl_link_add_pe``: the process element, the count, from v5.11 the notifier."""
    kernel = cpu.world.kernel
    await lock_spa(cpu, link)
    await cpu.mem(o.SpaStore(link, pasid, pid))
    if OcxlSwitches.of(kernel).ocxl_counts_copro:
        await mm_context_add_copro(cpu, mm)
    if registers_notifier(kernel):
        await mmu_notifier.mmu_notifier_register(cpu, "ocxl", link, mm)
    await cpu.mem(o.PeTreeInsert(link, pasid, mm))
    await cpu.mem(Mmgrab(mm))
    await unlock_spa(cpu, link)


async def ocxl_context_detach(cpu: Processor, operation: o.OcxlDetach) -> int:
    """``ocxl_context_detach`` and ``ocxl_context_free``: 0, or -EINVAL without a context.

    Of two that close it, one finds it ATTACHED, and one CLOSED, and returns at once (``status`` and
    ``status_mutex``, drivers/misc/ocxl/context.c, all releases).  One that is still being attached
    is not open yet: whoever attaches it holds its file, and ``status_mutex``.
    """
    return await _detach(cpu, operation.mm, operation.link)


async def _detach(cpu: Processor, mm: str, link: str) -> int:
    pasid = (await cpu.mem(o.ContextClose(link, mm))).value
    if not pasid:
        return -EINVAL
    await cpu.sleep(link, o.TerminatePasid(pasid))
    await ocxl_link_remove_pe(cpu, link, pasid)
    await cpu.mem(o.PasidFree(link, pasid))
    return 0


async def ocxl_link_remove_pe(cpu: Processor, link: str, pasid: int) -> None:
    """``ocxl_link_remove_pe`` (all releases; the notifier's part from v5.11)."""
    kernel = cpu.world.kernel
    await lock_spa(cpu, link)
    await cpu.mem(o.SpaStore(link, pasid, 0))
    if OcxlSwitches.of(kernel).ocxl_clears_pe_cache:
        await cpu.port.call(link, o.SpaClearCache(pasid))
    mm = (await cpu.mem(o.PeTreeDelete(link, pasid))).mm
    if registers_notifier(kernel):
        await mmu_notifier.mmu_notifier_unregister(cpu, "ocxl", link, mm)
        if OcxlSwitches.of(kernel).ocxl_invalidates_pid:
            await invalidate_pid(cpu, link, mm)
    if OcxlSwitches.of(kernel).ocxl_counts_copro:
        await mm_context_remove_copro(cpu, mm)
    await cpu.mem(Mmdrop(mm))
    await unlock_spa(cpu, link)


async def xsl_fault_handler_bh(cpu: Processor, fault: o.XslFault) -> Flag:
    """``xsl_fault_handler`` and ``..._bh``: whether the link shall try again (RESTART).

    A PASID that is gone from the tree is an ADDRESS_ERROR.
    """
    mm = (await cpu.mem(o.PeTreeLookup(fault.link, fault.pasid))).mm
    if not mm:
        return Flag(False)
    return Flag(await memory.handle_mm_fault(cpu, mm, fault.address, fault.write) == 0)


async def exit_files(cpu: Processor, mm: str, link: Link) -> None:
    """``afu_release``: the process closes its context of a link, if it has one."""
    await _detach(cpu, mm, link.name)
