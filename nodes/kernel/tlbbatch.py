"""mm/rmap.c, arch/x86/mm/tlb.c, arch/arm64/include/asm/tlbflush.h: batched flushes of reclaim.

Reclaim clears many entries and flushes once.  Until then the entries are none and the TLBs are not:
others must not conclude from an empty entry that nothing is cached.

``set_tlb_ubc_flush_pending`` pairs with ``flush_tlb_batched_pending`` by way of the PTL: the mark
is there before the lock under which the entry was cleared is released, so whoever finds the entry
cleared, under the same lock, finds the mark.  ``try_to_unmap_flush`` comes before the pages are
freed, and pairs with whoever gets their frames next.

    cpu0 (reclaim)                      cpu1 (mprotect to read-only)
                                        (TLB holds the page, writable)
    clear pte; note it; mark the mm
                                        pte is not present: nothing to flush
                                        [Required: the mark says that there is]
                                        return; a write must fault from here on
    flush all that was noted
    free the pages
"""

from __future__ import annotations

from typing import Final

from mmurace.nodes.kernel import mmu_notifier, pgtable, tlb
from mmurace.nodes.kernel.context import Processor
from mmurace.protocol import pte as ptes
from mmurace.protocol.limits import PAGE_SIZE, ULONG_MAX
from mmurace.protocol.messages.memory import CpumaskLoad
from mmurace.protocol.messages.processor import FlushTlbIpi
from mmurace.protocol.messages.swap import TlbBatchedCmpxchg, TlbBatchedLoad, TlbBatchedStore
from mmurace.protocol.records import Coverage, FlushDeferred

PENDING_MASK: Final = 0x7FFF
"""``TLB_FLUSH_BATCH_PENDING_MASK``: bits 0 to 14."""
FLUSHED_SHIFT: Final = 16
"""``TLB_FLUSH_BATCH_FLUSHED_SHIFT``: bits 16 to 30."""
PENDING_LARGE: Final = PENDING_MASK // 2
"""``TLB_FLUSH_BATCH_PENDING_LARGE``."""


class TlbUbc:
    """``struct tlbflush_unmap_batch``: what this thread has cleared and not flushed."""

    __slots__ = ("current", "mms", "posted", "targets", "writable")

    def __init__(self, current: str) -> None:
        self.current = current
        """``current->mm``; empty for a kernel thread."""
        self.mms: list[str] = []
        self.targets: list[tuple[str, str]] = []
        """x86: (processor, mm) that must be interrupted."""
        self.posted: list[str] = []
        """arm64: TLBIs on their way, which only a DSB here completes."""
        self.writable = False


async def should_defer_flush(cpu: Processor, mm: str) -> bool:
    """``should_defer_flush``: x86 defers if another processor has to be interrupted."""
    mode = cpu.world.kernel.arch.batch_mode
    if mode == "ipi_deferred":
        mask = (await cpu.mem(CpumaskLoad(mm))).cpus
        return any(name != cpu.name for name in mask)
    return mode == "tlbi_nosync"


async def set_tlb_ubc_flush_pending(
    cpu: Processor, ubc: TlbUbc, mm: str, address: int, pte: int
) -> None:
    """``set_tlb_ubc_flush_pending``, under the PTL, after the entry was cleared.

    The kernel's ``writable`` is ``pte_dirty``: through a copy that is writable and clean a store
    looks for the entry first.  Here every writable entry counts, or a store beside an unfinished
    MADV_FREE, which has cleaned the entry and not flushed it, would be lost in swap; nobody is
    promised anything for such a store.

    An entry that no TLB can hold is not noted (4d4b6d66db63, v6.4), as ``ptep_clear_flush`` does
    not flush for it.
    """
    kernel = cpu.world.kernel
    if kernel.mm.batch_skips_inaccessible and not await pgtable.pte_accessible(cpu, mm, pte):
        return
    await arch_tlbbatch_add_pending(cpu, ubc, mm, address)
    if mm not in ubc.mms:
        ubc.mms.append(mm)
    ubc.writable |= bool(pte & (ptes.WRITE | ptes.DIRTY))
    cpu.port.emit(Coverage("flush_deferred"))
    cpu.port.emit(FlushDeferred(mm, address, cpu.port.operation))
    if kernel.mm.batched_marker == "bool":
        await cpu.mem(TlbBatchedStore(mm, 1))
    elif kernel.mm.batched_marker == "generation":
        await _count_pending(cpu, mm)


async def _count_pending(cpu: Processor, mm: str) -> None:
    """``atomic_inc(&mm->tlb_flush_batched)``: one more pending (5ee2fa2f0636, v5.17)."""
    old = (await cpu.mem(TlbBatchedLoad(mm))).value
    while True:
        found = (await cpu.mem(TlbBatchedCmpxchg(mm, old, _one_more_pending(old)))).value
        if found == old:
            return
        old = found


def _one_more_pending(batch: int) -> int:
    """One more pending; if there are many, one, of which none is flushed.

    So the count of those pending never comes round to that of those flushed, which would say that
    nothing is pending.
    """
    return 1 if batch & PENDING_MASK > PENDING_LARGE else batch + 1


async def arch_tlbbatch_add_pending(cpu: Processor, ubc: TlbUbc, mm: str, address: int) -> None:
    """``arch_tlbbatch_add_pending``: x86 notes whom to interrupt; arm64 sends its TLBI.

    From v6.6 both call the secondaries here, x86 for the whole mm.
    """
    kernel = cpu.world.kernel
    if kernel.arch.batch_mode == "tlbi_nosync":
        ubc.posted += await tlb.tlbi(cpu, mm, address, address + PAGE_SIZE)
        start, end = address, address + PAGE_SIZE
    else:
        mask = (await cpu.mem(CpumaskLoad(mm))).cpus
        ubc.targets += [(name, mm) for name in mask if (name, mm) not in ubc.targets]
        start, end = 0, ULONG_MAX
    if kernel.arch.arch_secondary_flush and kernel.arch.batch_notify_at == "add_pending":
        await mmu_notifier.arch_invalidate_secondary_tlbs(cpu, mm, start, end)


async def try_to_unmap_flush(cpu: Processor, ubc: TlbUbc) -> None:
    """``try_to_unmap_flush``: everything that was deferred is flushed when it returns."""
    if not ubc.mms:
        return
    await arch_tlbbatch_flush(cpu, ubc)
    ubc.mms, ubc.writable = [], False


async def try_to_unmap_flush_dirty(cpu: Processor, ubc: TlbUbc) -> None:
    """``try_to_unmap_flush_dirty``: before a page is written, nobody writes to it any more."""
    if ubc.writable:
        await try_to_unmap_flush(cpu, ubc)


async def arch_tlbbatch_flush(cpu: Processor, ubc: TlbUbc) -> None:
    """``arch_tlbbatch_flush``: x86 interrupts the noted processors; arm64 waits (DSB)."""
    targets, ubc.targets = ubc.targets, []
    posted, ubc.posted = ubc.posted, []
    for name, mm in targets:
        if name == cpu.name:
            await cpu.flush_tlb_local(mm, 0, ULONG_MAX)
        else:
            posted.append(cpu.port.post(name, FlushTlbIpi(mm, 0, ULONG_MAX)))
    if posted:
        await cpu.port.settle(posted)
    kernel = cpu.world.kernel
    if kernel.arch.arch_secondary_flush and kernel.arch.batch_notify_at == "flush":
        for mm in _notified(ubc, kernel.arch.batch_notify_mm):
            await mmu_notifier.arch_invalidate_secondary_tlbs(cpu, mm, 0, ULONG_MAX)


def _notified(ubc: TlbUbc, whose: str) -> list[str]:
    """Whose secondaries a flush at the end of the batch calls."""
    if whose == "owner":
        return list(ubc.mms)
    return [ubc.current] if ubc.current else []


async def flush_tlb_batched_pending(cpu: Processor, mm: str) -> None:
    """``flush_tlb_batched_pending``, under a PTL: whoever looks at entries flushes first.

    The load of both generations pairs with the cmpxchg behind the flush: only what was pending when
    the flush began counts as flushed, and what became pending meanwhile, under another PTL, stays.

    cpu0 (mprotect)                     cpu1 (reclaim, under another PTL)
    load: 1 pending, 0 flushed
    flush
                                        clears an entry: 2 pending
    cmpxchg: 1 pending, 1 flushed       [Required: fails, or cpu1's flush counts as done]
    """
    kernel = cpu.world.kernel
    if kernel.mm.batched_marker == "none":
        return
    batch = (await cpu.mem(TlbBatchedLoad(mm))).value
    if batch & PENDING_MASK == batch >> FLUSHED_SHIFT:
        return
    cpu.port.emit(Coverage("batched_pending_flushed"))
    if kernel.arch.batched_pending_flush == "flush_tlb_mm":
        await tlb.flush_tlb_mm(cpu, mm)
    if kernel.mm.batched_marker == "bool":
        await cpu.mem(TlbBatchedStore(mm, 0))
    else:
        pending = batch & PENDING_MASK
        await cpu.mem(TlbBatchedCmpxchg(mm, batch, pending | pending << FLUSHED_SHIFT))
