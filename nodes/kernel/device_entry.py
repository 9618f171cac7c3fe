"""mm/memory.c: entries that lead to a page of a device (``do_swap_page``, ``zap_pte_range``)."""

from __future__ import annotations

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EAGAIN
from mmurace.nodes.kernel.locking import spin_lock, spin_unlock
from mmurace.nodes.kernel.page_ref import get_page, put_page
from mmurace.nodes.kernel.pgtable import ptep_get
from mmurace.nodes.kernel.vm_fault import VmFault
from mmurace.nodes.secondary import of
from mmurace.nodes.world import MEMORY
from mmurace.protocol import pte as ptes
from mmurace.protocol.messages.device_memory import PagePgmap
from mmurace.protocol.messages.memory import FolioAddWaiter, FolioWait, RmapRemove
from mmurace.protocol.records import Coverage


async def zap_device_entry(cpu: Processor, mm: str, address: int, old: int) -> None:
    """``zap_nonpresent_ptes``: a processor had no copy of it, so nothing is left to flush."""
    await cpu.mem(RmapRemove(ptes.frame_of(old), mm, address))
    await put_page(cpu, ptes.frame_of(old))


async def do_device_private_page(cpu: Processor, fault: VmFault) -> int:
    """``do_swap_page`` of a device-private entry: its driver brings the page back; 0 or -errno.

    cpu0 (fault)                        cpu1 (munmap)
    loads the entry
                                        clears it; frees the page
    page->pgmap->ops->migrate_to_ram    [Required: with a reference that was taken while the entry
                                        was there, under the PTL (16ce101db85d, v6.1)]
    """
    page = ptes.frame_of(fault.pte)
    referenced = cpu.world.kernel.mm.migrate_to_ram_ref
    if referenced and not await _get_page_of(cpu, fault, page):
        return 0
    result = await _migrate_to_ram(cpu, fault, page)
    if referenced:
        await put_page(cpu, page)
    if result == -EAGAIN:
        await _wait_on_locked(cpu, page)
        return 0
    return result


async def _get_page_of(cpu: Processor, fault: VmFault, page: int) -> bool:
    """A reference, if the entry is still there."""
    await spin_lock(cpu, fault.table)
    same = await ptep_get(cpu, fault.table, fault.address) == fault.pte
    if same:
        await get_page(cpu, page)
    await spin_unlock(cpu, fault.table)
    return same


async def _migrate_to_ram(cpu: Processor, fault: VmFault, page: int) -> int:
    """``page->pgmap->ops->migrate_to_ram``: 0, -EAGAIN if the page stays, or another -errno.

    Of a page that is free and has another owner by now there is no ``pgmap``; the kernel would take
    for one what it finds, here the fault is tried again.
    """
    node = (await cpu.mem(PagePgmap(page))).owner
    part = cpu.world.part_of(node)
    handler = of(part).migrate_to_ram if part is not None else None
    if handler is None:
        cpu.port.emit(Coverage("bad_page"))
        return 0
    return await handler(cpu, node, fault)


async def _wait_on_locked(cpu: Processor, page: int) -> None:
    """Whoever has the page locked lets it go; the kernel faults again meanwhile, again and again.

    From a69d1ab971a6 on, which is newer than what is known here, it sleeps, too.
    """
    waiter = (await cpu.mem(FolioAddWaiter(page))).waiter
    if waiter:
        await cpu.sleep(MEMORY, FolioWait(page, waiter))
