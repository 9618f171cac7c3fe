"""kernel/exit.c: the end of a thread."""

from __future__ import annotations

from nodes.kernel.context import Processor
from protocol.limits import ULONG_MAX
from protocol.messages.memory import CpumaskSet


async def do_exit(cpu: Processor) -> None:
    """``do_exit``, ``exit_mm`` (all releases): the processor leaves the mms of its thread.

    cpu0 (dies)                         cpu1 (zap)
    drops its translations
    clears its bit in mm_cpumask        reads mm_cpumask: no IPI for cpu0
                                        [Required: nothing is cached at cpu0 then]
    """
    mms, cpu.active_mms = cpu.active_mms, []
    for mm in mms:
        await cpu.flush_tlb_local(mm, 0, ULONG_MAX)
        await cpu.mem(CpumaskSet(mm, cpu.name, False))
