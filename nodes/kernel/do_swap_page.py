"""mm/memory.c: ``do_swap_page``, a page comes back from swap."""

from __future__ import annotations

from mmurace.nodes.kernel import do_wp_page, swap_state, swapfile
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import ENOMEM
from mmurace.nodes.kernel.locking import folio_lock, folio_unlock, spin_lock, spin_unlock
from mmurace.nodes.kernel.page_ref import put_page
from mmurace.nodes.kernel.pgtable import ptep_get, set_pte_at
from mmurace.nodes.kernel.vm_fault import VmFault
from mmurace.protocol import pte as ptes
from mmurace.protocol.messages.memory import RmapAdd
from mmurace.protocol.messages.swap import FolioFreeSwap, FolioRefCount, PageSwapEntry, SwapFree


async def do_swap_page(cpu: Processor, fault: VmFault) -> int:
    """``do_swap_page``: 0 (retry the access) or -errno; under mmap_lock for read.

    The page is in the swap cache while it is mapped, with a reference of the cache, and whoever
    else has an entry of its slot maps the same page; who stores gets a copy of it, unless it is
    his alone.  The reference of the look-up becomes that of the mapping.
    """
    slot = ptes.frame_of(fault.pte)
    folio = await swap_state.swap_cache_get_folio(cpu, slot)
    if folio < 0:
        folio = await swap_state.swapin_readahead(cpu, fault.mm, slot)
    if folio < 0:
        return await _nothing_read(cpu, fault)
    await folio_lock(cpu, folio)
    if (await cpu.mem(PageSwapEntry(folio))).value != slot:
        return await _out_page(cpu, folio)  # it left the swap cache, or is another one's by now
    await spin_lock(cpu, fault.table)
    if await ptep_get(cpu, fault.table, fault.address) != fault.pte:
        await spin_unlock(cpu, fault.table)
        return await _out_page(cpu, folio)
    await _map(cpu, fault, folio, slot)
    await folio_unlock(cpu, folio)
    if fault.write and not fault.pte & ptes.WRITE:
        return await do_wp_page.do_wp_page(cpu, fault)
    await spin_unlock(cpu, fault.table)
    return 0


async def _nothing_read(cpu: Processor, fault: VmFault) -> int:
    """No memory, or another thread was faster and the slot is gone."""
    await spin_lock(cpu, fault.table)
    same = await ptep_get(cpu, fault.table, fault.address) == fault.pte
    await spin_unlock(cpu, fault.table)
    return -ENOMEM if same else 0


async def _out_page(cpu: Processor, folio: int) -> int:
    """``out_page``: the access is tried again."""
    await folio_unlock(cpu, folio)
    await put_page(cpu, folio)
    return 0


async def _map(cpu: Processor, fault: VmFault, folio: int, slot: int) -> None:
    """The middle of ``do_swap_page``, under both locks: ``fault.pte`` is the new entry then.

    A read maps the page clean: until somebody stores, the slot has its content.  Up to v5.17 a
    store asks ``reuse_swap_page``, before the entry counts as a mapping; from v5.18 (c145e0b47c77)
    the number of references, once the entry leads to the slot no more.
    """
    how = cpu.world.kernel.mm.cow_reuse
    if how in ("reuse_swap_page", "page_count"):
        alone = fault.write and await swapfile.reuse_swap_page(cpu, folio)
        await cpu.mem(SwapFree(slot))
    else:
        await cpu.mem(SwapFree(slot))
        if await should_try_to_free_swap(cpu, fault, folio):
            await cpu.mem(FolioFreeSwap(folio))
        alone = how == "anon_exclusive" and bool(fault.pte & ptes.EXCLUSIVE)
        if not alone:
            found = await cpu.mem(FolioRefCount(folio))
            alone = found.value == 1 and not found.ksm
    await cpu.mem(RmapAdd(folio, fault.mm, fault.address, exclusive=alone))
    rights = ptes.PRESENT if fault.vma.read or fault.vma.write else ptes.PROTNONE
    flags = rights | ptes.ACCESSED | (fault.write_flags if alone else 0)
    fault.pte = ptes.make(folio, flags)
    await set_pte_at(cpu, fault.table, fault.address, fault.pte)


async def should_try_to_free_swap(cpu: Processor, fault: VmFault, folio: int) -> bool:
    """``should_try_to_free_swap`` (v5.18): a store, and the references are the cache's and ours.

    Swap is never full, and nothing is locked in memory.
    """
    return fault.write and (await cpu.mem(FolioRefCount(folio))).value == 2
