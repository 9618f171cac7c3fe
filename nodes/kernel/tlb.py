"""arch/x86/mm/tlb.c, arch/arm64/include/asm/tlbflush.h: TLB flushes (ppc: ``radix_tlb``).

From v6.6 each of them also flushes the secondary TLBs, because whatever the architecture needs
for its own TLB, a unit that walks the same table needs at the same moment.
"""

from __future__ import annotations

from mmurace.nodes.kernel import mmu_notifier, radix_tlb
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondary import Part
from mmurace.protocol.limits import PAGE_SIZE, ULONG_MAX
from mmurace.protocol.messages.memory import CpumaskLoad
from mmurace.protocol.messages.processor import FlushTlbIpi, SyncIpi, Tlbi
from mmurace.protocol.ranges import page_align, page_of


def flush_tlb_range_limit_excess(cpu: Processor, start: int, end: int) -> bool:
    """``__flush_tlb_range_limit_excess``: so large a range is flushed as the whole mm.

    That is the function of an arm64 later than v6.6.  x86 ``get_flush_tlb_info``
    (``flush_tlb_mm_range`` before v6.15) asks whether it has more pages than
    ``tlb_single_page_flush_ceiling``; arm64 ``__flush_tlb_range`` whether it has MAX_TLBI_OPS
    (MAX_DVM_OPS from v6.7) or, on processors with range operations, MAX_TLBI_RANGE_PAGES of them,
    or, to v4.19, is larger than MAX_TLB_RANGE.
    """
    return page_align(end) - page_of(start) > cpu.world.kernel.arch.flush_ceiling * PAGE_SIZE


async def flush_tlb_range(
    cpu: Processor, mm: str, start: int, end: int, tables: bool = False
) -> None:
    """``flush_tlb_range``: complete on every processor when it returns.

    ``tables``: some that map the range are to be freed (``freed_tables``).

    x86 ``flush_tlb_mm_range``: IPIs to the processors in ``mm_cpumask``; an IPI is acknowledged
    after the flush.  arm64 ``__flush_tlb_range``: broadcast TLBI, then DSB.

    Above the ceiling arm64 calls ``flush_tlb_mm``, and x86 goes on with 0 and TLB_FLUSH_ALL, which
    is what the secondaries are told, too (6bbd42e2df8f, v6.6); from v6.15 they are told the range
    that was asked for (4a02ed8e1cc3).
    """
    arch = cpu.world.kernel.arch
    if flush_tlb_range_limit_excess(cpu, start, end):
        if arch.ceiling_told == "all":
            await flush_tlb_mm(cpu, mm)
        else:
            await _flush_cpus(cpu, mm, 0, ULONG_MAX)
            await _flush_secondaries(cpu, mm, start, end)
        return
    advanced = arch.broadcast_tlbi and arch.arm64_range_start == "advanced"
    told = end if advanced else start
    early = arch.secondary_before_dsb == "page_and_range"
    await _flush(cpu, mm, (start, end), told, early, tables)


async def _flush(
    cpu: Processor, mm: str, range_: tuple[int, int], told: int, before_dsb: bool, tables: bool
) -> None:
    """The CPUs and, from v6.6, the secondaries; these after the DSB, or between it and the TLBI.

    ``told`` is the start that the secondaries hear of.

    cpu0 (``flush_tlb_page``, arm64)    unit with BTM           device, through its ATC
    TLBI                                (on its way)
    secondaries                                                 drops its entry
                                                                asks the unit again
    DSB                                 drops its entry         [Required: it got a new one]
    """
    start, end = range_
    if before_dsb:
        posted = await tlbi(cpu, mm, start, end, tables)
        await _flush_secondaries(cpu, mm, told, end)
        await dsb(cpu, posted, mm, start, end, tables)
    else:
        await _flush_cpus(cpu, mm, start, end, tables)
        await _flush_secondaries(cpu, mm, told, end)


async def _flush_secondaries(cpu: Processor, mm: str, start: int, end: int) -> None:
    if cpu.world.kernel.arch.arch_secondary_flush:
        await mmu_notifier.arch_invalidate_secondary_tlbs(cpu, mm, start, end)


async def _flush_cpus(cpu: Processor, mm: str, start: int, end: int, tables: bool = False) -> None:
    if cpu.world.kernel.arch.tlbie_scope != "all":
        await radix_tlb.radix__flush_tlb_range(cpu, mm, start, end, tables)
    elif cpu.world.kernel.arch.broadcast_tlbi:
        await dsb(cpu, await tlbi(cpu, mm, start, end, tables), mm, start, end, tables)
    else:
        await flush_tlb_multi(cpu, mm, start, end, tables)


async def flush_tlb_page(cpu: Processor, mm: str, address: int) -> None:
    """``flush_tlb_page``; arm64 calls the secondaries in its ``flush_tlb_page_nosync`` (v6.6).

    ``radix__flush_tlb_page_psize`` calls nobody: the hook is in the flushes of ranges and mms.
    """
    kernel = cpu.world.kernel
    if kernel.arch.arch_secondary_flush and not kernel.arch.flush_page_notifies:
        await _flush_cpus(cpu, mm, address, address + PAGE_SIZE)
        return
    early = kernel.arch.secondary_before_dsb != "no"
    await _flush(cpu, mm, (address, address + PAGE_SIZE), address, early, tables=False)


async def flush_tlb_page_nosync(cpu: Processor, mm: str, address: int) -> None:
    """``flush_tlb_page_nosync`` (arm64): the TLBI, and from v6.6 the secondaries; no DSB."""
    await tlbi(cpu, mm, address, address + PAGE_SIZE)
    await _flush_secondaries(cpu, mm, address, address + PAGE_SIZE)


async def local_flush_tlb_page(cpu: Processor, mm: str, address: int) -> None:
    """``local_flush_tlb_page`` (arm64, cb1fa2e99955): TLBI and DSB of this processor alone.

    The secondaries are called all the same: nobody repairs a spurious fault for them.
    """
    await cpu.flush_tlb_local(mm, address, address + PAGE_SIZE)
    await _flush_secondaries(cpu, mm, address, address + PAGE_SIZE)


async def flush_tlb_mm(cpu: Processor, mm: str) -> None:
    """``flush_tlb_mm``: everything of the mm, encoded (0, ULONG_MAX)."""
    await _flush_cpus(cpu, mm, 0, ULONG_MAX)
    if cpu.world.kernel.arch.flush_mm_notifies:
        await mmu_notifier.arch_invalidate_secondary_tlbs(cpu, mm, 0, ULONG_MAX)


async def flush_tlb_multi(
    cpu: Processor, mm: str, start: int, end: int, tables: bool = False
) -> None:
    """``flush_tlb_multi``: an IPI to whom ``mm_cpumask`` names; done when all have answered.

    The load of the mask, behind the change of the entry, pairs with ``switch_mm``, which sets the
    bit before its first walk: who is not in the mask walks later, and finds the new entry.
    """
    mask = (await cpu.mem(CpumaskLoad(mm))).cpus
    others = [name for name in mask if name != cpu.name]
    posted = [cpu.port.post(name, FlushTlbIpi(mm, start, end, tables)) for name in others]
    if cpu.name in mask:
        await cpu.flush_tlb_local(mm, start, end, tables)
    if posted:
        await cpu.port.settle(posted)


async def dsb(
    cpu: Processor, posted: list[str], mm: str, start: int, end: int, tables: bool = False
) -> None:
    """``dsb(ish)``: every observer has completed the TLBI that was posted.

    Where that may leave stores behind, TLBI and DSB follow again (``__tlbi`` with
    ARM64_WORKAROUND_REPEAT_TLBI); the secondaries have been told before.
    """
    await cpu.port.settle(posted)
    if cpu.world.kernel.arch.tlbi_repeated:
        await cpu.port.settle(await tlbi(cpu, mm, start, end, tables))


async def tlbi(cpu: Processor, mm: str, start: int, end: int, tables: bool = False) -> list[str]:
    """``__tlbi``, broadcast (arm64): what a DSB has to wait for."""
    world = cpu.world
    observers = [name for name in world.processors() if name != cpu.name]
    observers += [part.name for part in world.parts if _hears(part, mm, world.kernel)]
    posted = [cpu.port.post(name, Tlbi(mm, start, end, tables)) for name in observers]
    await cpu.flush_tlb_local(mm, start, end, tables)
    return posted


def _hears(part: Part, mm: str, kernel: Kernel) -> bool:
    """Whether a secondary takes part in the broadcasts that are about an mm."""
    return not part.told(kernel) and mm in part.subscribed(kernel)


async def flush_tlb_fix_spurious_fault(cpu: Processor, mm: str, address: int) -> None:
    """``flush_tlb_fix_spurious_fault``: nothing on x86.

    On arm64 ``flush_tlb_page`` to v5.9; nothing from v5.10 (6a1bdb173184), as upgrades are
    broadcast; where they are not (cb1fa2e99955), this processor only, and no secondary.
    """
    if cpu.world.kernel.arch.spurious_fault_flushes:
        await flush_tlb_page(cpu, mm, address)
    elif cpu.world.kernel.arch.upgrade_tlbi_scope == "local":
        await cpu.flush_tlb_local(mm, address, address + PAGE_SIZE)


async def tlb_remove_table_sync_one(cpu: Processor) -> None:
    """``tlb_remove_table_sync_one``, or a grace period: no lockless walk is in progress.

    The IPI that it waits for pairs with ``local_irq_save`` of fast GUP: who has loaded the pmd
    before it was cleared answers when its walk is over, and who answered finds the pmd cleared.

    vcpu0 (fast GUP, interrupts off)    cpu0 (munmap)
    load pmd: table t
                                        clear pmd; flush
    load pte in t                       [Required: t is still a table]
                                        free t

    Both wait for every processor that has its interrupts off.  Where tables are freed as pages are
    (the bare x86 of v4.19 to v6.14) the IPIs of the flush have waited for each processor that may
    walk this mm: only threads of the mm do, so it is in ``mm_cpumask``.
    """
    if cpu.world.kernel.arch.rcu_table_free:
        others = [name for name in cpu.world.processors() if name != cpu.name]
        await cpu.port.gather((name, SyncIpi()) for name in others)
