"""mm/memory.c: entries that lead to a page of a device (``do_swap_page``, ``zap_pte_range``)."""

from __future__ import annotations

from mmurace.nodes.kernel import mmu_notifier
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EAGAIN
from mmurace.nodes.kernel.locking import (
    folio_lock,
    folio_trylock,
    folio_unlock,
    spin_lock,
    spin_unlock,
)
from mmurace.nodes.kernel.mmu_notifier_range import MmuNotifierRange
from mmurace.nodes.kernel.page_ref import get_page, put_page, try_get_page
from mmurace.nodes.kernel.pgtable import ptep_get, set_pte_at
from mmurace.nodes.kernel.vm_fault import VmFault
from mmurace.nodes.secondary import of
from mmurace.nodes.world import MEMORY
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.device_memory import FolioWaitIdle, PagePgmap
from mmurace.protocol.messages.memory import (
    RmapAdd,
    RmapRemove,
    Vma,
)
from mmurace.protocol.records import Coverage


async def zap_device_entry(cpu: Processor, mm: str, address: int, old: int) -> None:
    """``zap_nonpresent_ptes``: a processor had no copy of it, so nothing is left to flush."""
    if ptes.is_device_private(old):
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
        # the kernel faults again meanwhile; from a69d1ab971a6 on, newer than what is here, it waits
        await cpu.sleep(MEMORY, FolioWaitIdle(page))
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
    node = (await cpu.mem(PagePgmap(page, ops=True))).owner
    part = cpu.world.part_of(node)
    handler = of(part).migrate_to_ram if part is not None else None
    if handler is None:
        cpu.port.emit(Coverage("device_page_gone"))
        return 0
    return await handler(cpu, node, fault)


# ---- device-exclusive entries ----------------------------------------------------------------


async def remove_device_exclusive_entry(cpu: Processor, fault: VmFault) -> int:
    """``remove_device_exclusive_entry`` (v5.14): the page is everybody's again; 0.

    cpu0 (fault)                        device
                                        has an entry of the page
    page locked                         [Required: whoever made the page exclusive has made the
                                        device's entry by now]
    start (EXCLUSIVE, no owner)         its entry goes
    PTL; an ordinary entry              [Required: not before that]
    unlock; page unlocked; end

    From v6.3 with a reference (7c7b962938dd); before, what is locked may be another one's page.
    """
    page, mm, address = fault.page, fault.mm, fault.address
    referenced = cpu.world.kernel.mm.exclusive_fault_ref
    if referenced and not await try_get_page(cpu, page):
        return 0
    await folio_lock(cpu, page)
    event = MmuNotifierEvent.EXCLUSIVE
    range_ = MmuNotifierRange(mm, address, address + PAGE_SIZE, event)
    await mmu_notifier.invalidate_range_start(cpu, range_)
    await spin_lock(cpu, fault.table)
    pte = await ptep_get(cpu, fault.table, address)
    if pte == fault.pte:
        await restore_exclusive_pte(cpu, mm, fault.vma, address, fault.table, pte)
    await spin_unlock(cpu, fault.table)
    await folio_unlock(cpu, page)
    if referenced:
        await put_page(cpu, page)
    await mmu_notifier.invalidate_range_end(cpu, range_)
    return 0


async def restore_exclusive_pte(
    cpu: Processor, mm: str, vma: Vma, address: int, table: int, pte: int
) -> None:
    """``restore_exclusive_pte``: the entry as it was, dirty if it may be written; under the PTL.

    There was nothing that anybody could hold, so nothing is flushed.
    """
    page = ptes.frame_of(pte)
    await cpu.mem(RmapAdd(page, mm, address))
    rights = ptes.PRESENT if vma.read or vma.write else ptes.PROTNONE
    if pte & ptes.WRITE and vma.write:
        rights |= ptes.WRITE | ptes.DIRTY
    keeps = pte & (ptes.ACCESSED | ptes.DIRTY)
    await set_pte_at(cpu, table, address, ptes.make(page, rights | keeps))


async def try_restore_exclusive_pte(
    cpu: Processor, mm: str, vma: Vma, address: int, table: int, pte: int
) -> bool:
    """``try_restore_exclusive_pte``: of fork, in its bracket; False if somebody has it locked."""
    page = ptes.frame_of(pte)
    if not await folio_trylock(cpu, page):
        return False
    await restore_exclusive_pte(cpu, mm, vma, address, table, pte)
    await folio_unlock(cpu, page)
    return True
