"""mm/migrate.c: ``migration_entry_wait``, which include/linux/swapops.h shows to page faults."""

from __future__ import annotations

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.locking import spin_lock
from mmurace.nodes.kernel.page_ref import put_page, try_get_page
from mmurace.nodes.kernel.pgtable import pte_unmap_unlock, ptep_get
from mmurace.nodes.world import MEMORY
from mmurace.protocol import pte as ptes
from mmurace.protocol.messages.memory import FolioAddWaiter, FolioWait
from mmurace.protocol.records import Coverage


async def migration_entry_wait(cpu: Processor, table: int, address: int) -> int:
    """``migration_entry_wait``: sleep until the migrating folio is unlocked; then retry.

    Under mmap_lock (for read, all releases), so whoever wants it for write waits as well.  The PTL
    is held until the thread is in the queue:

    cpu0 (fault)                        cpu1 (migrate)
    PTL; pte: migration of f
    in the queue of f                   waits for the PTL
    unlock                              pte: the new page; unlock f: wakes cpu0
                                        put f   [Required: nobody waits for f from here on, for
                                        its frame may be locked by another owner]

    To v5.16 a reference to the page does that, taken under the PTL, and migration of a page that
    somebody waits for fails; to v4.20 until the thread wakes, from v5.0 (9a1ea439b16b) until it is
    in the queue.  None from v5.17 on (ffa65753c431).
    """
    holds = cpu.world.kernel.mm.migration_wait_ref
    await spin_lock(cpu, table)
    pte = await ptep_get(cpu, table, address)
    folio, waiter = ptes.frame_of(pte), ""
    found = ptes.is_migration(pte)
    if found and holds == "none":
        waiter = (await cpu.mem(FolioAddWaiter(folio))).waiter
    elif found:
        found = await try_get_page(cpu, folio)
    await pte_unmap_unlock(cpu, table)
    if found:
        cpu.port.emit(Coverage("migration_entry_wait"))
        await migration_entry_wait_on_locked(cpu, folio, waiter)
    return 0


async def migration_entry_wait_on_locked(cpu: Processor, folio: int, waiter: str) -> None:
    """``migration_entry_wait_on_locked`` (mm/filemap.c, v5.17): the sleep, with the reference of
    its release.
    """
    holds = cpu.world.kernel.mm.migration_wait_ref
    if holds != "none":
        waiter = (await cpu.mem(FolioAddWaiter(folio))).waiter
    if holds == "until_queued":
        await put_page(cpu, folio)
    if waiter:
        await cpu.sleep(MEMORY, FolioWait(folio, waiter))
    if holds == "while_asleep":
        await put_page(cpu, folio)
