"""mm/migrate.c and the migration half of mm/rmap.c: move a page to another frame."""

from __future__ import annotations

from mmurace.nodes.kernel import gup, page_alloc, pgtable, rmap, tlbbatch
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EAGAIN, EINVAL, ENOMEM
from mmurace.nodes.kernel.mmu_notifier import MmuNotifierRange
from mmurace.nodes.kernel.tlbbatch import TlbUbc
from mmurace.nodes.world import MEMORY
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.memory import (
    AnonVmaLock,
    AnonVmaUnlock,
    FolioLock,
    FolioUnlock,
    FrameAlloc,
    FrameCopy,
    MmapLock,
    MmapUnlock,
    PageFreeze,
    PteLoad,
    PteSet,
    PtlLock,
    PtlUnlock,
    RmapAdd,
    RmapRemove,
    RmapWalk,
    VmaFind,
)
from mmurace.protocol.ranges import page_align
from mmurace.protocol.records import Coverage

_KEPT = ptes.WRITE | ptes.ACCESSED | ptes.DIRTY
"""What a migration entry remembers of the entry it replaces."""


async def move_pages(cpu: Processor, mm: str, address: int, length: int) -> int:
    """``move_pages``: migrate what is mapped in the range; how many pages moved, or -errno."""
    if address % PAGE_SIZE or length <= 0 or address + length > cpu.world.address_end():
        return -EINVAL
    moved = 0
    for at in range(address, address + page_align(length), PAGE_SIZE):
        result = await migrate_page(cpu, mm, at)
        if result == -ENOMEM:
            return result
        moved += result == 0
    return moved


async def migrate_page(cpu: Processor, mm: str, address: int) -> int:
    """Isolate the page at ``address`` and migrate it: 0, or -errno if it stays where it is."""
    await cpu.sleep(MEMORY, MmapLock(mm, False))
    page = await gup.get_user_page_fast(cpu, mm, address, False)
    await cpu.mem(MmapUnlock(mm))
    if page is None or page.pte & ptes.SPECIAL:
        if page is not None:
            await gup.put_page(cpu, page.frame)
        return -EINVAL
    result = await unmap_and_move(cpu, mm, page.frame)
    await gup.put_page(cpu, page.frame)
    return result


async def unmap_and_move(cpu: Processor, mm: str, old: int) -> int:
    """``migrate_folio_unmap`` and ``migrate_folio_move``; the caller holds one reference.

    ``mm`` is that of the thread, which may have to reclaim.

    cpu0 (migrate)                      any other agent
    clear pte, migration entry
    flush, here or one by one before    [Required: nobody writes the old frame from here on]
    copy old -> new
    map the new frame
    """
    new = await page_alloc.alloc_pages(cpu, mm, FrameAlloc("anon"), thisnode=True)
    if new < 0:
        return -ENOMEM
    await cpu.sleep(MEMORY, FolioLock(old))
    ubc = TlbUbc(mm)
    replaced = await try_to_migrate(cpu, ubc, old)
    await tlbbatch.try_to_unmap_flush(cpu, ubc)
    moved = (await cpu.mem(PageFreeze(old, 1))).value and replaced
    if moved:
        await cpu.mem(FrameCopy(old, new, True))
    else:
        cpu.port.emit(Coverage("migrate_busy"))
    await remove_migration_ptes(cpu, old, new if moved else old)
    await cpu.mem(FolioUnlock(old))
    # The copy's own reference goes; each mapping of it took one.
    await gup.put_page(cpu, new)
    return 0 if moved else -EAGAIN


async def try_to_migrate(cpu: Processor, ubc: TlbUbc, old: int) -> bool:
    """``try_to_migrate``: a migration entry in place of every mapping, under the rmap lock.

    Whether there was any.  The rmap goes on listing them, so that whoever moves or copies such
    an entry (mremap, fork) leads ``remove_migration_ptes`` to it.
    """
    replaced = False
    mappings = (await cpu.mem(RmapWalk(old))).places
    for mm, address in mappings:
        await cpu.sleep(MEMORY, AnonVmaLock(mm, False))
        replaced |= await try_to_migrate_one(cpu, ubc, (mm, address), old)
        await cpu.mem(AnonVmaUnlock(mm))
    return replaced


async def try_to_migrate_one(
    cpu: Processor, ubc: TlbUbc, place: tuple[str, int], old: int
) -> bool:  # fmt: skip
    """``try_to_migrate_one``: whether an entry was replaced; not if the mapping has gone."""
    mm, address = place
    range_ = MmuNotifierRange(mm, address, address + PAGE_SIZE, MmuNotifierEvent.CLEAR)
    await rmap.invalidate_range_start(cpu, range_)
    found = await rmap.page_vma_mapped_walk(cpu, mm, address, old)
    if found is not None:
        table, _ = found
        if cpu.world.kernel.mm.migration_batches:
            entry = await rmap.clear_or_defer(cpu, ubc, place, table)
        else:
            entry = await pgtable.ptep_clear_flush(cpu, mm, address, table)
        migration = ptes.make(old, ptes.MIGRATION | (entry & _KEPT))
        await cpu.mem(PteSet(table, pgtable.pte_index(cpu, address), migration))
        await gup.put_page(cpu, old)
        await rmap.pte_unmap_unlock(cpu, range_, table)
    await rmap.invalidate_range_end(cpu, range_)
    return found is not None


async def remove_migration_ptes(cpu: Processor, old: int, to: int) -> None:
    """``remove_migration_ptes``: map ``to`` wherever a migration entry of ``old`` is.

    An entry that mremap moves meanwhile, or that fork copies, is met again behind: the kernel's
    walk is over VMAs, and a copy comes after its original in it.
    """
    found = True
    while found:
        found = False
        for mm, address in (await cpu.mem(RmapWalk(old))).places:
            await cpu.sleep(MEMORY, AnonVmaLock(mm, False))
            found |= await remove_migration_pte(cpu, mm, address, old, to)
            await cpu.mem(AnonVmaUnlock(mm))


async def remove_migration_pte(cpu: Processor, mm: str, address: int, old: int, to: int) -> bool:
    """``remove_migration_pte``: whether the walk must be done again: found, or gone elsewhere."""
    table = await pgtable.find_leaf_table(cpu, mm, address)
    if table < 0:
        return True
    await cpu.mem(PtlLock(table))
    index = pgtable.pte_index(cpu, address)
    pte = (await cpu.mem(PteLoad(table, index))).pte
    waits = ptes.is_migration(pte) and ptes.frame_of(pte) == old
    if waits:
        await gup.get_page(cpu, to)
        if to != old:
            await cpu.mem(RmapRemove(old, mm, address))
            await cpu.mem(RmapAdd(to, mm, address))
        rights = await _page_prot(cpu, mm, address)
        await cpu.mem(PteSet(table, index, ptes.make(to, rights | (pte & _KEPT))))
    await cpu.mem(PtlUnlock(table))
    return waits or not ptes.pte_present(pte)


async def _page_prot(cpu: Processor, mm: str, address: int) -> int:
    """``vma->vm_page_prot`` as ``remove_migration_pte`` reads it: without mmap_lock.

    An mprotect that runs at the same time takes the PTL afterwards and corrects the entry.
    """
    vmas = (await cpu.mem(VmaFind(mm, address, address + PAGE_SIZE))).vmas
    readable = not vmas or vmas[0].read or vmas[0].write
    return ptes.PRESENT if readable else ptes.PROTNONE
