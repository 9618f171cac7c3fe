"""mm/memory.c: ``do_wp_page``, a store to a page that is mapped and must not be written yet."""

from __future__ import annotations

from mmurace.nodes.kernel import (
    do_fault,
    mmu_notifier,
    page_alloc,
    pgtable,
    swapfile,
)
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import ENOMEM
from mmurace.nodes.kernel.locking import (
    folio_lock,
    folio_trylock,
    folio_unlock,
    spin_lock,
    spin_unlock,
)
from mmurace.nodes.kernel.mmu_notifier import MmuNotifierRange
from mmurace.nodes.kernel.page_ref import get_page, put_page
from mmurace.nodes.kernel.pgtable import ptep_get, set_pte_at
from mmurace.nodes.kernel.vm_fault import ANON_FLAGS, VmFault
from mmurace.nodes.kernel.vma_lock import vmf_anon_prepare
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.memory import (
    FrameAlloc,
    FrameCopy,
    PageAnon,
    PageAnonExclusive,
    PagePut,
    RmapAdd,
    RmapRemove,
    RmapWalk,
    SetPageAnonExclusive,
)
from mmurace.protocol.messages.swap import (
    FolioFreeSwap,
    FolioRefCount,
    PageSwapEntry,
)


async def do_wp_page(cpu: Processor, fault: VmFault) -> int:
    """``do_wp_page``: write to the page of the file, reuse a page that is ours alone, or copy.

    The PTL is held, and the entry is ``fault.pte`` but for what walkers may set; released here.
    """
    folio, counted = ptes.frame_of(fault.pte), not fault.pte & ptes.SPECIAL
    anon = counted and (not fault.vma.file or (await cpu.mem(PageAnon(folio))).value)
    if anon:
        reuse = await _may_reuse(cpu, fault, folio)
        if reuse is None:
            await spin_unlock(cpu, fault.table)
            return 0
        if reuse:
            await wp_page_reuse(cpu, fault)
            await spin_unlock(cpu, fault.table)
            await bracket_after_upgrade(cpu, fault)
            return 0
    if counted:
        await get_page(cpu, folio)
    await spin_unlock(cpu, fault.table)
    shared = counted and not anon and fault.vma.shared
    return await (wp_page_shared if shared else wp_page_copy)(cpu, fault)


# ---- is it ours alone? -----------------------------------------------------------------------


async def _may_reuse(cpu: Processor, fault: VmFault, folio: int) -> bool | None:
    """Whether an anonymous page is this process's alone; None: its entry has changed meanwhile.

    cpu0 (write fault)                  cpu1                        cpu2 (the other process)
    finds the page shared: will copy
    copies it                                                       unmaps it
                                        mapped once: reuse, store
                                        (swapped out, read in: the entry is what it was)
    finds its entry as it was           [Required: cpu0 has a reference, which from
    maps the copy: the store is lost    v5.9 on forbids the reuse]

    Who counts as another user depends on the release (``Kernel.cow_reuse``).
    """
    how = cpu.world.kernel.mm.cow_reuse
    if how == "reuse_swap_page":
        return await _reuse_swap_page(cpu, fault, folio)
    if how == "anon_exclusive" and (await cpu.mem(PageAnonExclusive(folio))).value:
        return True
    if how == "page_count":
        return await _mapped_and_referenced_once(cpu, folio)
    reuse = await wp_can_reuse_anon_folio(cpu, folio)
    if reuse and how == "anon_exclusive":
        await cpu.mem(SetPageAnonExclusive(folio))
    return reuse


async def _reuse_swap_page(cpu: Processor, fault: VmFault, folio: int) -> bool | None:
    """``do_wp_page`` to v5.8: with the page locked, if need be after a wait without the PTL."""
    if not await folio_trylock(cpu, folio):
        await get_page(cpu, folio)
        await spin_unlock(cpu, fault.table)
        await folio_lock(cpu, folio)
        await spin_lock(cpu, fault.table)
        same = await ptep_get(cpu, fault.table, fault.address) == fault.pte
        if not same:
            await folio_unlock(cpu, folio)
        await put_page(cpu, folio)
        if not same:
            return None
    reuse = await swapfile.reuse_swap_page(cpu, folio)
    await folio_unlock(cpu, folio)
    return reuse


async def _mapped_and_referenced_once(cpu: Processor, folio: int) -> bool:
    """``do_wp_page`` from v5.9 to v5.17 (09854ba94c6a): any reference more leads to a copy.

    That of the swap cache, too.
    """
    if (await cpu.mem(FolioRefCount(folio))).value != 1:
        return False
    if not await folio_trylock(cpu, folio):
        return False
    mapped = await cpu.mem(RmapWalk(folio))
    alone = len(mapped.places) == 1 and not mapped.ksm
    alone = alone and (await cpu.mem(FolioRefCount(folio))).value == 1
    await folio_unlock(cpu, folio)
    return alone


async def wp_can_reuse_anon_folio(cpu: Processor, folio: int) -> bool:
    """``wp_can_reuse_anon_folio`` (v6.7; the same in ``do_wp_page`` from v5.18, 53a05ad9f21d).

    The reference of the swap cache goes, if it can; no other may be there.  ``lru_add_drain`` is
    left out: there are no per-CPU lists.  A KSM page is never reused.

    cpu0 (reclaim)                      cpu1 (write fault in the other process)
    folio lock
    swap entry in place of one mapping
                                        mapped once      [Required: not reused, or what is stored
    write it to swap                    goes to swap, where the first process reads it]
    """
    found = await cpu.mem(FolioRefCount(folio))
    references = found.value
    if found.ksm:
        return False
    if references > 1 and references > 1 + await folio_test_swapcache(cpu, folio):
        return False
    if not await folio_trylock(cpu, folio):
        return False
    if await folio_test_swapcache(cpu, folio):
        await cpu.mem(FolioFreeSwap(folio))
    found = await cpu.mem(FolioRefCount(folio))
    await folio_unlock(cpu, folio)
    return found.value == 1 and not found.ksm


async def folio_test_swapcache(cpu: Processor, folio: int) -> bool:
    """``folio_test_swapcache``."""
    return (await cpu.mem(PageSwapEntry(folio))).value > 0


# ---- write -----------------------------------------------------------------------------------


async def wp_page_shared(cpu: Processor, fault: VmFault) -> int:
    """``wp_page_shared`` with ``finish_mkwrite_fault``: the caller took a reference.

    cpu0 (write fault)                  cpu1 (writeback)
    folio lock; page: dirty             waits for it
    PTL; pte: writable, dirty           [Required: not clean between the two]
    unlock                              pte: read-only, clean; writes the page
    """
    frame = ptes.frame_of(fault.pte)
    changed = False
    locked = await do_fault.do_page_mkwrite(cpu, fault.vma.file, frame)
    if locked:
        await spin_lock(cpu, fault.table)
        changed = await ptep_get(cpu, fault.table, fault.address) == fault.pte
        if changed:
            await wp_page_reuse(cpu, fault)
        await spin_unlock(cpu, fault.table)
        await folio_unlock(cpu, frame)
    await put_page(cpu, frame)
    if changed:
        await bracket_after_upgrade(cpu, fault)
    return 0


async def wp_page_reuse(cpu: Processor, fault: VmFault) -> None:
    """``wp_page_reuse``: the same frame, now writable; under the PTL."""
    new = fault.pte | ptes.ACCESSED | fault.write_flags
    await pgtable.ptep_set_access_flags(cpu, fault.mm, fault.address, fault.table, new, True)


async def bracket_after_upgrade(cpu: Processor, fault: VmFault) -> None:
    """A bracket back to back once the PTL is dropped: what a patch of May 2023 writes out.

    It was not merged.  The bracket does not surround the change, so nothing may be concluded from
    being inside it; a shared-table secondary is flushed by the ``invalidate_range`` of its end.
    """
    if not cpu.world.kernel.mm.upgrade_notify.startswith("generic_after_ptl"):
        return
    range_ = MmuNotifierRange(
        fault.mm, fault.address, fault.address + PAGE_SIZE, MmuNotifierEvent.PROTECTION_UPGRADE
    )
    await mmu_notifier.invalidate_range_start(cpu, range_)
    await mmu_notifier.invalidate_range_end(cpu, range_)


async def wp_page_copy(cpu: Processor, fault: VmFault) -> int:
    """``wp_page_copy``: a new frame in place of a shared one (the caller took a reference).

    cpu0 (COW)                          device, through its IOTLB
    clear pte; flush CPUs and secondaries
                                        [Required: no old translation from here on]
    publish the new frame               reads the new frame, never the old one after it
    """
    source = ptes.frame_of(fault.pte)
    counted = not fault.pte & ptes.SPECIAL
    if retry := await vmf_anon_prepare(cpu, fault):
        await put_page(cpu, source)
        return retry
    frame = await page_alloc.alloc_pages(cpu, fault.mm, FrameAlloc("anon"))
    if frame < 0:
        await put_page(cpu, source)
        return -ENOMEM
    if counted:
        await cpu.mem(FrameCopy(source, frame))
    range_ = MmuNotifierRange(
        fault.mm, fault.address, fault.address + PAGE_SIZE, MmuNotifierEvent.CLEAR
    )
    await mmu_notifier.invalidate_range_start(cpu, range_)
    await spin_lock(cpu, fault.table)
    raced = await ptep_get(cpu, fault.table, fault.address) != fault.pte
    if not raced:
        await pgtable.ptep_clear_flush_notify(cpu, fault.mm, fault.address, fault.table)
        await cpu.mem(RmapAdd(frame, fault.mm, fault.address, exclusive=True))
        await set_pte_at(
            cpu, fault.table, fault.address, ptes.make(frame, ANON_FLAGS | fault.write_flags)
        )
        if counted:  # only now: who finds the page mapped once may write to it
            await cpu.mem(RmapRemove(source, fault.mm, fault.address))
    await spin_unlock(cpu, fault.table)
    await mmu_notifier.invalidate_range_end(cpu, range_, cpu.world.kernel.mm.cow_range_only_end)
    await put_page(cpu, frame if raced else source)
    if counted:
        idle = not raced and cpu.world.kernel.mm.cow_frees_swap_cache
        await cpu.mem(PagePut(source, swap_cache=idle))
    return 0
