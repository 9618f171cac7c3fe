"""mm/migrate.c: move a page to another frame (``try_to_migrate`` is in ``rmap``)."""

from __future__ import annotations

from mmurace.nodes.kernel import page_alloc, rmap, tlbbatch
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EAGAIN, EBUSY, EFAULT, EINVAL, ENOENT, ENOMEM
from mmurace.nodes.kernel.follow_page import follow_page
from mmurace.nodes.kernel.locking import (
    folio_lock,
    folio_trylock,
    folio_unlock,
    mmap_read_lock,
    mmap_read_unlock,
)
from mmurace.nodes.kernel.page_ref import get_page, put_page
from mmurace.nodes.kernel.pagewalk import first_entry
from mmurace.nodes.kernel.pgtable import (
    PMD,
    pte_offset_map_lock,
    pte_unmap_unlock,
    ptep_get,
    set_pte_at,
)
from mmurace.nodes.kernel.tlbbatch import TlbUbc
from mmurace.protocol import pte as ptes
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.filemap import FolioMapping
from mmurace.protocol.messages.memory import (
    FrameAlloc,
    FrameCopy,
    RmapAdd,
    RmapRemove,
    SetPageAnonExclusive,
    VmaFind,
)
from mmurace.protocol.messages.swap import (
    FolioIsolateLru,
    FolioMigrateMapping,
    FolioPutbackLru,
)
from mmurace.protocol.ranges import page_align
from mmurace.protocol.records import Coverage


async def move_pages(cpu: Processor, mm: str, address: int, length: int) -> int:
    """``move_pages``: migrate what is mapped in the range; how many pages moved, or -errno.

    A caller lists pages one by one (``do_pages_move``), and nobody lists a hole of many tables.  So
    of a range that long only what has entries is looked at, as ``migrate_pages`` does
    (mm/mempolicy.c: ``queue_pages_range``, by ``walk_page_range``, which passes over holes).
    """
    if address % PAGE_SIZE or length <= 0 or address + length > cpu.world.address_end():
        return -EINVAL
    moved, at, end = 0, address, address + page_align(length)
    while at < end:
        result = await _migrate_one_page(cpu, mm, at)
        if result == -ENOMEM:
            return result
        moved += result == 0
        at += PAGE_SIZE
        if result in (-EFAULT, -ENOENT) and end - at > 1 << cpu.world.shift(PMD):
            at = await _next_entry(cpu, mm, at, end)
    return moved


async def _next_entry(cpu: Processor, mm: str, start: int, end: int) -> int:
    """The first address from ``start`` on with an entry; ``end`` if there is none."""
    await mmap_read_lock(cpu, mm)
    found = await first_entry(cpu, mm, start, end)
    await mmap_read_unlock(cpu, mm)
    return found


async def _migrate_one_page(cpu: Processor, mm: str, address: int) -> int:
    """One page of ``do_pages_move``: 0, or -errno if it stays where it is.

    Whoever reclaims passes it over meanwhile (``folio_isolate_lru``).
    """
    folio = await add_page_for_migration(cpu, mm, address)
    if folio < 0:
        return folio
    result = await unmap_and_move(cpu, mm, folio)
    if result:
        await cpu.mem(FolioPutbackLru(folio))
    await put_page(cpu, folio)
    return result


async def add_page_for_migration(cpu: Processor, mm: str, address: int) -> int:
    """``add_page_for_migration``: the page at ``address``, off the LRU list, with one reference.

    Under mmap_lock, so only in a VMA.  -EFAULT: no VMA, or the zero page; -ENOENT: nothing there;
    -EBUSY: reclaim or another migration has it.
    """
    await mmap_read_lock(cpu, mm)
    folio, isolated = -EFAULT, False
    if (await cpu.mem(VmaFind(mm, address, address + PAGE_SIZE))).vmas:
        folio = await follow_page(cpu, mm, address)
    if folio >= 0:
        isolated = (await cpu.mem(FolioIsolateLru(folio))).value
        await put_page(cpu, folio)  # the list's own is enough
    await mmap_read_unlock(cpu, mm)
    return folio if isolated or folio < 0 else -EBUSY


async def migrate_misplaced_page(cpu: Processor, mm: str, folio: int) -> bool:
    """``migrate_misplaced_page`` (``migrate_misplaced_folio``, v6.7): whether the page has moved.

    The caller's reference goes.  Under mmap_lock, so it waits for no page that is locked
    (``MIGRATE_ASYNC``).
    """
    isolated = (await cpu.mem(FolioIsolateLru(folio))).value
    await put_page(cpu, folio)  # ``numamigrate_isolate_page``: the list's own is enough
    if not isolated:
        return False
    result = await unmap_and_move(cpu, mm, folio, wait=False)
    if result:
        await cpu.mem(FolioPutbackLru(folio))
    await put_page(cpu, folio)
    return not result


async def unmap_and_move(cpu: Processor, mm: str, old: int, wait: bool = True) -> int:
    """``migrate_folio_unmap`` and ``migrate_folio_move``; the caller holds one reference.

    ``mm`` is that of the thread, which may have to reclaim; without ``wait`` it does not wait for a
    page that somebody else has locked.

    cpu0 (migrate)                      any other agent
    clear pte, migration entry
    flush, here or one by one before    [Required: nobody writes the old frame from here on]
    copy old -> new
    map the new frame

    Both pages are locked until every entry is back (``__unmap_and_move`` to v6.2, too):

    cpu0 (migrate)                      cpu1 (write fault in the child)
    lock the new page
    entry of the parent: new page       entry of the child: migration
                                        no: it waits
    entry of the child: new page
                                        the new page is mapped once in between   [Required: it
                                        is not reused, for the parent leads to it as well]
    unlock the new page, put it
    """
    new = await page_alloc.alloc_pages(cpu, mm, FrameAlloc("anon"), thisnode=True)
    if new < 0:
        return -ENOMEM
    if wait:
        await folio_lock(cpu, old)
    elif not await folio_trylock(cpu, old):
        await put_page(cpu, new)
        return -EAGAIN
    await folio_trylock(cpu, new)  # whoever finds it in the swap cache waits for its content
    file = (await cpu.mem(FolioMapping(old))).file
    ubc = TlbUbc(mm)
    replaced = await rmap.try_to_migrate(cpu, ubc, old, file)
    await tlbbatch.try_to_unmap_flush(cpu, ubc)
    moved = replaced and (await cpu.mem(FolioMigrateMapping(old, new))).value
    if moved:
        await cpu.mem(FrameCopy(old, new, True))
    else:
        cpu.port.emit(Coverage("migrate_busy"))
    await remove_migration_ptes(cpu, old, new if moved else old, file)
    await folio_unlock(cpu, new)
    # The copy's own reference goes; each mapping of it took one.
    await put_page(cpu, new)
    await folio_unlock(cpu, old)
    return 0 if moved else -EAGAIN


async def remove_migration_ptes(
    cpu: Processor, old: int, to: int, file: str, private: bool = False
) -> None:
    """``remove_migration_ptes``: map ``to`` wherever a migration entry of ``old`` is.

    ``private``: it is a page of a device.

    An entry that mremap moves meanwhile, or that fork copies, is met behind its original.
    """

    async def visit(place: rmap.Place) -> rmap.Outcome:
        return await remove_migration_pte(cpu, place, old, to, private)

    await rmap.rmap_walk(cpu, old, file, visit)


async def remove_migration_pte(
    cpu: Processor, place: rmap.Place, old: int, to: int, private: bool = False
) -> rmap.Outcome:  # fmt: skip
    """``remove_migration_pte``, with the PTL held for the look (``PVMW_SYNC``).

    To v5.13 a table may be on its way, without the rmap locks, and then neither place has it.
    """
    mm, address = place
    table = await pte_offset_map_lock(cpu, mm, address)
    if table < 0:
        return "again"
    pte = await ptep_get(cpu, table, address)
    if ptes.is_migration(pte) and ptes.frame_of(pte) == old:
        await get_page(cpu, to)
        exclusive = bool(pte & ptes.EXCLUSIVE)
        if to != old:
            await cpu.mem(RmapRemove(old, mm, address))
            await cpu.mem(RmapAdd(to, mm, address, exclusive))
        elif exclusive:
            await cpu.mem(SetPageAnonExclusive(to))
        rights = ptes.DEVICE_PRIVATE if private else await _page_prot(cpu, mm, address)
        await set_pte_at(cpu, table, address, ptes.make(to, rights | (pte & rmap.MIGRATION_KEEPS)))
    await pte_unmap_unlock(cpu, table)
    return "met"


async def _page_prot(cpu: Processor, mm: str, address: int) -> int:
    """``vma->vm_page_prot`` as ``remove_migration_pte`` reads it: without mmap_lock.

    An mprotect that runs at the same time takes the PTL afterwards and corrects the entry.
    """
    vmas = (await cpu.mem(VmaFind(mm, address, address + PAGE_SIZE))).vmas
    readable = not vmas or vmas[0].read or vmas[0].write
    return ptes.PRESENT if readable else ptes.PROTNONE
