"""arch/powerpc/include/asm/mmu_context.h: coprocessors that share an mm's page table."""

from __future__ import annotations

from mmurace.nodes.kernel import radix_tlb
from mmurace.nodes.kernel.context import Processor
from mmurace.protocol.messages.book3s64 import ActiveCpusAdd, CoprosAdd


async def mm_context_add_copro(cpu: Processor, mm: str) -> None:
    """``mm_context_add_copro``: the first one counts as a processor, so that flushes are global."""
    if (await cpu.mem(CoprosAdd(mm, 1))).value == 1:
        await cpu.mem(ActiveCpusAdd(mm, 1))


async def mm_context_remove_copro(cpu: Processor, mm: str) -> None:
    """``mm_context_remove_copro``: after the last one flushes may be local again.

    v4.18 lowers the count and then flushes; from v4.19 (cca19f0b684f) it is the other way round.

    cpu0 (the only thread; detaches)    link, which snoops
                                        holds the entries
    flush everything of the mm          [Required: globally, so the count is still up]
    copros--; active_cpus--
    """
    if cpu.world.kernel.arch.copro_removal == "count_then_flush":
        if (await cpu.mem(CoprosAdd(mm, -1))).value == 0:
            await radix_tlb.radix__flush_all_mm(cpu, mm)
            await cpu.mem(ActiveCpusAdd(mm, -1))
        return
    await radix_tlb.radix__flush_all_mm(cpu, mm)
    if (await cpu.mem(CoprosAdd(mm, -1))).value == 0:
        await cpu.mem(ActiveCpusAdd(mm, -1))
