"""kernel/exit.c and kernel/fork.c: the end of a thread, and of a process."""

from __future__ import annotations

from mmurace.nodes.kernel import mmap, mmu_notifier
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.secondary import secondaries
from mmurace.protocol.limits import ULONG_MAX
from mmurace.protocol.messages.book3s64 import Mmdrop
from mmurace.protocol.messages.memory import CpumaskSet


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


async def exit_group(cpu: Processor, mm: str) -> int:
    """``do_exit``: ``exit_mm``, ``exit_files``, and the last reference that the process had."""
    await exit_mm(cpu, mm)
    if _counts_references(cpu):
        await cpu.mem(Mmdrop(mm))
    return 0


def _counts_references(cpu: Processor) -> bool:
    """Where a PID goes with the last reference to its mm."""
    return any(one.memory and one.parts(cpu.world) for one in secondaries())


async def exit_mm(cpu: Processor, mm: str) -> None:
    """``mmput`` of the last user, then ``exit_files``: drivers close what the process had open.

    ``exit_mmap`` begins with ``mmu_notifier_release``.

    cpu0 (exits)                        a secondary, told by its driver
                                        holds entries, works
    release; off the list               [Required: it is stopped and has lost them]
    unmap, free
    close its files
    """
    await mmu_notifier.mmu_notifier_release(cpu, mm)
    await mmap.exit_mmap(cpu, mm)
    for secondary in secondaries():
        for part in secondary.parts(cpu.world):
            if secondary.exit_files is not None:
                await secondary.exit_files(cpu, mm, part)
