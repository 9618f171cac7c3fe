"""mm/migrate_device.c: pages of a range go to a device's memory, or back (mm/migrate.c to v5.17).

A driver calls ``migrate_vma_setup``, copies what is marked, and calls ``migrate_vma_pages`` and
``migrate_vma_finalize``, all under mmap_lock for read.  In between the pages are locked, and only
migration entries lead to them:

    cpu0 (migrate_vma_*)                any other agent
    start (MIGRATE, owner)              a shadow drops its entries; the owner may pass it over
    clear pte, migration entry; flush   [Required: under the PTL, or the next who has it believes
                                        that nobody holds what was there]
    end
    copy                                [Required: nobody stores to the old page from here on]
    device-private entry
    free the old page

Small pages of anonymous memory only: those of files, and those in the swap cache, stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmurace.nodes.kernel import memory, migrate, mmu_notifier, pgtable, rmap, tlb
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.locking import folio_trylock, folio_unlock, spin_lock, spin_unlock
from mmurace.nodes.kernel.mmu_notifier_range import MmuNotifierRange
from mmurace.nodes.kernel.page_ref import get_page, put_page
from mmurace.nodes.kernel.pagewalk import walk_page_range
from mmurace.nodes.kernel.pgtable import ptep_get, ptep_get_and_clear, set_pte_at
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.device_memory import PagePgmap
from mmurace.protocol.messages.memory import PageAnon, RmapAdd, Vma
from mmurace.protocol.messages.swap import (
    FolioFlags,
    FolioIsolateLru,
    FolioMigrateMapping,
    FolioPutbackLru,
    FolioRefCount,
)
from mmurace.protocol.records import Coverage, FlushDeferred

HOLE = -1
"""In the place of a page: nothing is mapped, or the zero page."""


@dataclass(slots=True)
class Mpfn:
    """An entry of ``src``: ``MIGRATE_PFN_MIGRATE`` while it is still to be migrated."""

    page: int
    migrate: bool = True
    device: bool = False
    """``is_zone_device_page``."""


@dataclass(slots=True)
class MigrateVma:
    """``struct migrate_vma``: [start, end) of a VMA, what is there, and what takes its place."""

    mm: str
    vma: Vma
    start: int
    end: int
    owner: str
    """``pgmap_owner``: the device, by its node."""
    select: Literal["system", "device_private"]
    """``MIGRATE_VMA_SELECT_...``."""
    fault_page: int = HOLE
    """The page of a processor's fault, to which that has a reference (v6.1)."""
    src: dict[int, Mpfn] = field(default_factory=dict)
    """By address; what is not there is not migrated."""
    dst: dict[int, int] = field(default_factory=dict)
    """Address -> the page that the driver has for it, locked."""

    def migrating(self) -> list[tuple[int, Mpfn]]:
        """Addresses and pages that are still to be migrated."""
        return [(at, mpfn) for at, mpfn in self.src.items() if mpfn.migrate]


# ---- migrate_vma_setup -----------------------------------------------------------------------


async def migrate_vma_setup(cpu: Processor, args: MigrateVma) -> None:
    """``migrate_vma_setup``: what can be migrated is locked and unmapped when it returns."""
    await migrate_vma_collect(cpu, args)
    if args.src:
        await migrate_vma_unmap(cpu, args)


async def migrate_vma_collect(cpu: Processor, args: MigrateVma) -> None:
    """``migrate_vma_collect``: one bracket, in which entries become migration entries.

    The owner is told whose doing it is from v5.9 on (998427b3ad2c); the event is CLEAR before.
    """
    if not args.vma.file:  # migrate_vma_collect_hole
        args.src = {at: Mpfn(HOLE) for at in range(args.start, args.end, PAGE_SIZE)}

    async def pmd_entry(table: int, address: int, end: int) -> None:
        await migrate_vma_collect_pmd(cpu, args, table, address, end)

    range_ = migrate_range(cpu, args, args.start)
    await mmu_notifier.invalidate_range_start(cpu, range_)
    await walk_page_range(cpu, args.mm, args.start, args.end, pmd_entry)
    await mmu_notifier.invalidate_range_end(cpu, range_)


def migrate_range(cpu: Processor, args: MigrateVma, start: int) -> MmuNotifierRange:
    """``mmu_notifier_range_init_owner``, up to v5.8 ``mmu_notifier_range_init``."""
    if not cpu.world.kernel.mm.migrate_says_owner:
        return MmuNotifierRange(args.mm, start, args.end, MmuNotifierEvent.CLEAR)
    return MmuNotifierRange(args.mm, start, args.end, MmuNotifierEvent.MIGRATE, args.owner)


async def migrate_vma_collect_pmd(
    cpu: Processor, args: MigrateVma, table: int, address: int, end: int
) -> None:
    """``migrate_vma_collect_pmd``: the entries of one leaf table.

    cpu0 (migrate_vma_setup)            cpu1 (madvise)
    PTL; clear pte; migration entry
    unlock
                                        PTL; takes the migration entry out
                                        nothing to flush; returns
    flush                               [Required: before the unlock (60bae7370896, v6.0), or stores
                                        get through for which madvise has said that they do not]
    """
    unmapped, start = list[int](), address
    await spin_lock(cpu, table)
    for at in range(address, end, PAGE_SIZE):
        if await _collect_pte(cpu, args, table, at):
            unmapped.append(at)
    late = cpu.world.kernel.mm.migrate_collect_flush == "after_ptl"
    if unmapped and not late:
        await tlb.flush_tlb_range(cpu, args.mm, start, end)
    for at in unmapped if late else ():
        cpu.port.emit(FlushDeferred(args.mm, at, cpu.port.operation))
    await spin_unlock(cpu, table)
    if unmapped and late:
        await tlb.flush_tlb_range(cpu, args.mm, start, end)


async def _collect_pte(cpu: Processor, args: MigrateVma, table: int, at: int) -> bool:
    """One entry, under the PTL: whether a present one was taken out."""
    pte = await ptep_get(cpu, table, at)
    zero = ptes.pte_present(pte) and bool(pte & ptes.SPECIAL)
    if pte == ptes.NONE or (zero and args.select == "system"):
        return False
    args.src.pop(at, None)
    page = ptes.frame_of(pte)
    if not await _selected(cpu, args, pte):
        return False
    await get_page(cpu, page)
    if not await folio_trylock(cpu, page):
        await put_page(cpu, page)
        return False
    if not await _to_migration_entry(cpu, args.mm, table, at, page):
        await folio_unlock(cpu, page)
        await put_page(cpu, page)
        return False
    args.src[at] = Mpfn(page, device=ptes.is_device_private(pte))
    await put_page(cpu, page)  # that of the entry; the page is held by the other one
    return ptes.pte_present(pte)


async def _selected(cpu: Processor, args: MigrateVma, pte: int) -> bool:
    """Whether a page of this kind is asked for."""
    page = ptes.frame_of(pte)
    if args.select == "device_private":
        if not ptes.is_device_private(pte):
            return False
        return (await cpu.mem(PagePgmap(page))).owner == args.owner
    return ptes.pte_present(pte) and (await cpu.mem(PageAnon(page))).value


async def _to_migration_entry(cpu: Processor, mm: str, table: int, at: int, page: int) -> bool:
    """A migration entry in the place of the entry; False: the page may be pinned and must stay.

    An exclusive page is flushed before it is looked at (6c287605fd56, v5.19).  Dirty stays with the
    entry here; the kernel marks the page (fd35ca3d12cc, v6.0, which forgot that before).
    """
    exclusive = await rmap.is_exclusive(cpu, page)
    if exclusive:
        pte = await pgtable.ptep_clear_flush(cpu, mm, at, table)
        if not await rmap.page_try_share_anon_rmap(cpu, page):
            await set_pte_at(cpu, table, at, pte)
            return False
    else:
        pte = await ptep_get_and_clear(cpu, table, at)
    keeps = (pte & rmap.MIGRATION_KEEPS) | (ptes.EXCLUSIVE if exclusive else 0)
    await set_pte_at(cpu, table, at, ptes.make(page, ptes.MIGRATION | keeps))
    return True


async def migrate_vma_unmap(cpu: Processor, args: MigrateVma) -> None:
    """``migrate_vma_unmap`` (``migrate_device_unmap``, v6.1): out of all other entries, too.

    What is in use, pinned, or not on the LRU list goes back where it was.
    """
    for at, mpfn in args.migrating():
        if mpfn.page != HOLE and not await _unmap_page(cpu, args, mpfn):
            await migrate.remove_migration_ptes(cpu, mpfn.page, mpfn.page, "", mpfn.device)
            del args.src[at]
            await folio_unlock(cpu, mpfn.page)
            await put_page(cpu, mpfn.page)
            cpu.port.emit(Coverage("migrate_vma_restored"))


async def _unmap_page(cpu: Processor, args: MigrateVma, mpfn: Mpfn) -> bool:
    """One page: isolated and unmapped everywhere, with one reference; or it must stay, with one."""
    page = mpfn.page
    if not mpfn.device:
        if not (await cpu.mem(FolioIsolateLru(page))).value:
            return False
        await put_page(cpu, page)
    expected = 1 + (page == args.fault_page)
    expected += (await cpu.mem(FolioFlags(page))).swapcache
    if (await cpu.mem(FolioRefCount(page))).value > expected:  # folio_mapped
        await rmap.try_to_migrate(cpu, None, page, "")
    if (await cpu.mem(FolioRefCount(page))).value == expected:  # migrate_vma_check_page
        return True
    if not mpfn.device:
        await cpu.mem(FolioPutbackLru(page))
    return False


# ---- migrate_vma_pages -----------------------------------------------------------------------


async def migrate_vma_pages(cpu: Processor, args: MigrateVma) -> None:
    """``migrate_vma_pages``: the new page is what the old one was; where none was, it is mapped.

    From the first such place to the end in a bracket of its own.
    """
    range_ = None
    for at, mpfn in args.migrating():
        if at not in args.dst:
            mpfn.migrate = False
        elif mpfn.page == HOLE:
            if range_ is None:
                range_ = migrate_range(cpu, args, at)
                await mmu_notifier.invalidate_range_start(cpu, range_)
            mpfn.migrate = await migrate_vma_insert_page(cpu, args, at)
        else:
            mpfn.migrate = await _migrate_folio(cpu, args, mpfn.page, args.dst[at])
    if range_ is not None:
        await mmu_notifier.invalidate_range_end(cpu, range_, only_end=True)


async def _migrate_folio(cpu: Processor, args: MigrateVma, old: int, new: int) -> bool:
    """``migrate_folio``; a page of the swap cache does not go to a device."""
    if args.select == "system" and (await cpu.mem(FolioFlags(old))).swapcache:
        return False
    extra = int(old == args.fault_page)
    return (await cpu.mem(FolioMigrateMapping(old, new, extra))).value


async def migrate_vma_insert_page(cpu: Processor, args: MigrateVma, at: int) -> bool:
    """``migrate_vma_insert_page``: a device-private entry where nothing was, or the zero page."""
    page = args.dst[at]
    table = await memory.pte_alloc_map(cpu, args.mm, at)
    if table < 0:
        return False
    await spin_lock(cpu, table)
    pte = await ptep_get(cpu, table, at)
    zero = ptes.pte_present(pte) and bool(pte & ptes.SPECIAL)
    if pte == ptes.NONE or zero:
        await cpu.mem(RmapAdd(page, args.mm, at, exclusive=True))
        await get_page(cpu, page)
        if zero:
            await pgtable.ptep_clear_flush_notify(cpu, args.mm, at, table)
        flags = ptes.DEVICE_PRIVATE | (ptes.WRITE if args.vma.write else 0)
        await set_pte_at(cpu, table, at, ptes.make(page, flags))
    await spin_unlock(cpu, table)
    return pte == ptes.NONE or zero


# ---- migrate_vma_finalize --------------------------------------------------------------------


async def migrate_vma_finalize(cpu: Processor, args: MigrateVma) -> int:
    """``migrate_vma_finalize``: entries lead to the new pages, or again to the old ones.

    How many went.
    """
    for at, mpfn in args.src.items():
        new = args.dst.get(at, HOLE)
        if mpfn.page != HOLE:
            to = new if mpfn.migrate else mpfn.page
            private = mpfn.device != mpfn.migrate  # of what it is mapped to now
            await migrate.remove_migration_ptes(cpu, mpfn.page, to, "", private)
            await folio_unlock(cpu, mpfn.page)
            if not mpfn.device and not mpfn.migrate:
                await cpu.mem(FolioPutbackLru(mpfn.page))
            await put_page(cpu, mpfn.page)
        if new != HOLE:
            await folio_unlock(cpu, new)
            await put_page(cpu, new)
    return len(args.migrating())
