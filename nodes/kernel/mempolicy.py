"""kernel/sched/fair.c, mm/mempolicy.c: NUMA balancing.

Now and then a thread makes entries of its mm inaccessible (``PROTNONE``), without any change of
rights: who uses the page next faults, and if he runs on another node, the page is moved there
(``do_numa_page``).
"""

from __future__ import annotations

from mmurace.nodes.kernel import mmu_gather, mprotect
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EINVAL
from mmurace.nodes.kernel.locking import mmap_read_lock, mmap_read_unlock
from mmurace.protocol.limits import PAGE_SIZE, ULONG_MAX
from mmurace.protocol.messages.memory import Vma, VmaFind
from mmurace.protocol.ranges import page_align


async def task_numa_work(cpu: Processor, mm: str, address: int, length: int) -> int:
    """``task_numa_work`` for a range: 0 or -EINVAL; under mmap_lock for read.

    It passes VMAs over that nobody may access (``vma_is_accessible``) and files that are mapped
    read-only.  The kernel chooses the range itself, and only tries to get mmap_lock.
    """
    end = address + page_align(length)
    if address % PAGE_SIZE or length <= 0 or end > cpu.world.address_end():
        return -EINVAL
    await mmap_read_lock(cpu, mm)
    for vma in (await cpu.mem(VmaFind(mm, address, end))).vmas:
        if vma.write or (vma.read and not vma.file):
            part = vma.part(max(vma.start, address), min(vma.end, end))
            await change_prot_numa(cpu, mm, part)
    await mmap_read_unlock(cpu, mm)
    return 0


async def change_prot_numa(cpu: Processor, mm: str, vma: Vma) -> None:
    """``change_prot_numa``: as ``mprotect``, but that the rights of the VMA stay what they are.

    cpu0 (scan)                         cpu1                            cpu2
                                        (TLB: the page, writable)
    pte: PROTNONE
                                                                        hint fault: clear pte; copy
                                        store                           [Required: after a flush,
    flush                                                               cpu0's or its own]
    """
    if not cpu.world.kernel.mm.change_protection_gathers:
        await mprotect.change_protection(cpu, mm, None, vma, numa=True)
        return
    gather = await mmu_gather.tlb_gather_mmu(cpu, mm, 0, ULONG_MAX)
    await mprotect.change_protection(cpu, mm, gather, vma, numa=True)
    await mmu_gather.tlb_finish_mmu(cpu, gather)
