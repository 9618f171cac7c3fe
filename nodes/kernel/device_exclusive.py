"""mm/rmap.c: ``make_device_exclusive_range``, a page for one device alone (b756a3b5e7ea, v5.14).

So that a device can do atomic accesses to system memory, nobody else may have a translation of it:

    cpu0 (driver)                       cpu1 (a thread of the process)
    page locked
    start (EXCLUSIVE, owner)            other devices drop their entries
    clear pte; flush; exclusive entry
    end
    driver lock; the device's entry
    unlock; page unlocked
                                        fault: page locked; start (EXCLUSIVE, nobody)
                                          the device's entry goes   [Required: before ...]
                                        the entry is as it was      [... this]
                                        page unlocked; end

The lock of the page keeps the two apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmurace.nodes.kernel import gup, mmu_notifier, pgtable, rmap
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EBUSY
from mmurace.nodes.kernel.locking import folio_trylock, folio_unlock
from mmurace.nodes.kernel.mmu_notifier_range import MmuNotifierRange
from mmurace.nodes.kernel.page_ref import put_page
from mmurace.nodes.kernel.pgtable import pte_unmap_unlock, set_pte_at
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.memory import PageAnon, RmapRemove


@dataclass(slots=True)
class MakeExclusive:
    """``struct make_exclusive_args``: what is asked for, and what came of it."""

    mm: str
    address: int
    owner: str
    page: int = -1
    source: str = ""
    """The name of the access that made the entry; empty: somebody else has the page locked."""


async def make_device_exclusive(
    cpu: Processor, mm: str, address: int, owner: str
) -> MakeExclusive | int:
    """``make_device_exclusive_range`` of a page, under mmap_lock for read: or -errno.

    With a ``source`` the page is locked and has a reference, and the caller gives both back when
    its device has the entry.  ``owner``: who may pass the event over, as it is his own doing;
    empty: nobody.  -EBUSY: it is mapped elsewhere, or is a page of a file.
    """
    page = await gup.get_user_page_remote(cpu, mm, address)
    if page < 0:
        return page
    args = MakeExclusive(mm, address, owner, page)
    if not await folio_trylock(cpu, page):
        await put_page(cpu, page)
        return args
    if await folio_make_device_exclusive(cpu, args):
        return args
    await give_back(cpu, page)
    return -EBUSY


async def give_back(cpu: Processor, page: int) -> None:
    """``folio_unlock`` and ``folio_put``: from here on a fault may take the page back."""
    await folio_unlock(cpu, page)
    await put_page(cpu, page)


async def folio_make_device_exclusive(cpu: Processor, args: MakeExclusive) -> bool:
    """``folio_make_device_exclusive``: every entry of a locked anonymous page; whether all went."""
    if not (await cpu.mem(PageAnon(args.page))).value:
        return False

    async def visit(place: rmap.Place) -> rmap.Outcome:
        return "met" if await page_make_device_exclusive_one(cpu, args, place) else "stop"

    await rmap.rmap_walk(cpu, args.page, "", visit)
    return bool(args.source) and not await rmap.folio_mapped(cpu, args.page)


async def page_make_device_exclusive_one(
    cpu: Processor, args: MakeExclusive, place: rmap.Place
) -> bool:
    """``page_make_device_exclusive_one``: False if it is mapped otherwise.

    The reference of the entry stays; the page is not mapped any more (to v6.14).
    """
    mm, address = place
    event = MmuNotifierEvent.EXCLUSIVE
    range_ = MmuNotifierRange(mm, address, address + PAGE_SIZE, event, args.owner)
    await mmu_notifier.invalidate_range_start(cpu, range_)
    found = await rmap.page_vma_mapped_walk(cpu, mm, address, args.page)
    if found is not None:
        table, _ = found
        pte = await pgtable.ptep_clear_flush(cpu, mm, address, table)
        if place == (args.mm, args.address) and pte & ptes.WRITE:
            args.source = cpu.port.upcoming
        flags = ptes.DEVICE_EXCLUSIVE | (pte & rmap.MIGRATION_KEEPS)
        await set_pte_at(cpu, table, address, ptes.make(args.page, flags))
        await cpu.mem(RmapRemove(args.page, mm, address))
        await pte_unmap_unlock(cpu, table)
    await mmu_notifier.invalidate_range_end(cpu, range_)
    return found is not None
