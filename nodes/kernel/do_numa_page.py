"""mm/memory.c: ``do_numa_page``, a fault that NUMA balancing has asked for (``mempolicy``).

There are no nodes here: whoever takes such a fault is taken to be on another one than the page, so
each of these faults migrates (``numa_migrate_prep`` and ``mpol_misplaced`` are left out).
"""

from __future__ import annotations

from mmurace.nodes.kernel import migrate
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.locking import spin_lock, spin_unlock
from mmurace.nodes.kernel.page_ref import get_page
from mmurace.nodes.kernel.pgtable import ptep_get, ptep_get_and_clear, set_pte_at
from mmurace.nodes.kernel.vm_fault import VmFault
from mmurace.protocol import pte as ptes
from mmurace.protocol.records import Coverage


async def do_numa_page(cpu: Processor, fault: VmFault) -> int:
    """``do_numa_page``, a hint fault: 0; the PTL is held, and released here.

    From v5.13 (b99a342d4f11) the entry is made accessible only if the page stays where it is: the
    entry that migration clears is still inaccessible, so that it need not be flushed again.
    Before, it was accessible when the page was migrated, and was flushed then.
    """
    cpu.port.emit(Coverage("numa_hint_fault"))
    first = cpu.world.kernel.mm.numa_fault_maps == "before_migration"
    if first:
        await _make_present(cpu, fault)
    await get_page(cpu, fault.page)
    await spin_unlock(cpu, fault.table)
    moved = await migrate.migrate_misplaced_page(cpu, fault.mm, fault.page)
    if not moved and not first:
        await spin_lock(cpu, fault.table)
        if await ptep_get(cpu, fault.table, fault.address) == fault.pte:
            await _make_present(cpu, fault)
        await spin_unlock(cpu, fault.table)
    return 0


async def _make_present(cpu: Processor, fault: VmFault) -> None:
    """``out_map``: ``pte_modify`` to the rights of the VMA; under the PTL.

    The write right is as it was: remembered in the entry to v6.1 (``pte_savedwrite``), which is
    done here for all releases; from v6.2 ``can_change_pte_writable`` decides.
    """
    old = await ptep_get_and_clear(cpu, fault.table, fault.address)
    new = old & ~ptes.PROTNONE | ptes.PRESENT | ptes.ACCESSED
    await set_pte_at(cpu, fault.table, fault.address, new)
