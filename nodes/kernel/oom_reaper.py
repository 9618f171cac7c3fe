"""mm/oom_kill.c: the OOM reaper takes the memory of a process that was killed.

Its threads may still run, or sleep with locks held, and whoever holds one may wait for memory: so
the reaper waits for nobody's lock but mmap_lock.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmurace.nodes.kernel import memory, mmu_gather, mmu_notifier
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EAGAIN
from mmurace.nodes.kernel.locking import mmap_read_lock, mmap_read_unlock
from mmurace.nodes.kernel.mmu_notifier_range import MmuNotifierRange
from mmurace.nodes.kernel.oom_kill import out_of_memory
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import ULONG_MAX
from mmurace.protocol.messages.memory import NotifierList, Vma, VmaFind


async def oom_reap_task_mm(cpu: Processor, mm: str) -> int:
    """``oom_reap_task_mm``: 0, or -EAGAIN if a subscriber would have had to sleep.

    It tries mmap_lock up to ten times, some time apart; here it waits for it, for read.
    """
    await out_of_memory(cpu, mm)
    await mmap_read_lock(cpu, mm)
    done = await __oom_reap_task_mm(cpu, mm)
    await mmap_read_unlock(cpu, mm)
    return 0 if done else -EAGAIN


async def __oom_reap_task_mm(cpu: Processor, mm: str) -> bool:
    """``__oom_reap_task_mm``: one gather and one bracket for each VMA that is not shared (v4.19).

    False: some were left, for whose subscribers it would have had to wait (v4.19, 93065ac753e4).
    """
    found = (await cpu.mem(VmaFind(mm, 0, cpu.world.address_end()))).vmas
    vmas = [vma for vma in found if not vma.file or not vma.shared]
    if cpu.world.kernel.mm.oom_gather == "whole_mm":
        return await _reap_at_once(cpu, mm, vmas)
    return all([await _reap(cpu, mm, vma) for vma in vmas])


async def _reap_at_once(cpu: Processor, mm: str, vmas: Sequence[Vma]) -> bool:
    """``__oom_reap_task_mm`` to v4.14: one gather of the whole mm, as if nobody ran in it.

    A process with notifiers is left alone (4d4bbd8526a8, v4.14; before, nobody was told).
    """
    if (await cpu.mem(NotifierList(mm))).entries:
        return False
    gather = await mmu_gather.tlb_gather_mmu(cpu, mm, 0, ULONG_MAX)
    gather.fullmm = True
    gather.reset()
    for vma in vmas:
        await memory.unmap_page_range(cpu, gather, vma.start, vma.end, (vma,))
    await mmu_gather.tlb_finish_mmu(cpu, gather)
    return True


async def _reap(cpu: Processor, mm: str, vma: Vma) -> bool:
    range_ = MmuNotifierRange(mm, vma.start, vma.end, MmuNotifierEvent.UNMAP, blockable=False)
    gather = await mmu_gather.tlb_gather_mmu(cpu, mm, vma.start, vma.end)
    done = await mmu_notifier.invalidate_range_start_nonblock(cpu, range_)
    if done:
        await memory.unmap_page_range(cpu, gather, vma.start, vma.end, (vma,))
        await mmu_notifier.invalidate_range_end(cpu, range_)
    await mmu_gather.tlb_finish_mmu(cpu, gather)
    return done
