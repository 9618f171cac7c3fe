"""include/linux/mmap_lock.h and mm/mmap_lock.c: locks of VMAs (5e31275cc997, v6.4).

A fault holds its VMA and not mmap_lock.  Who changes VMAs has mmap_lock for write, and holds each
of them for write, too, until mmap_lock is given back: no fault is on its way in them meanwhile.

cpu0 (mprotect, munmap, fork, ...)      cpu1 (page fault)
mmap_lock for write
                                        lock_vma_under_rcu: its VMA, for read
vma_start_write: waits for cpu1         the entry is set by the old rights
                                        vma_end_read
change the VMA and its entries          lock_vma_under_rcu: refused; waits for mmap_lock
give mmap_lock back: all VMAs free      [Required: sees the new VMA]

``vma_start_write`` pairs with ``vma_end_read``, and ``mmap_write_unlock`` with
``lock_vma_under_rcu``.  The kernel finds the VMA, takes it and looks whether it is still the one;
here that is one access, so mistakes within it do not show.
"""

from __future__ import annotations

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.locking import mmap_read_unlock
from mmurace.nodes.kernel.vm_fault import VM_FAULT_RETRY, VmFault
from mmurace.nodes.world import MEMORY
from mmurace.protocol.messages.memory import Vma
from mmurace.protocol.messages.vma_lock import (
    MmapReadTrylock,
    VmaEndRead,
    VmaStartRead,
    VmaStartWrite,
)


async def lock_vma_under_rcu(
    cpu: Processor, mm: str, address: int, fault: bool = True
) -> Vma | None:
    """``lock_vma_under_rcu``: the VMA of an address, for read; None: take mmap_lock instead.

    For a ``fault`` it takes only VMAs whose faults can do without mmap_lock: anonymous ones (to
    v6.5), and of these such as have an ``anon_vma`` (2ac0af1b66e3, to v6.9; a373baed5a9d, v6.10).
    """
    switches = cpu.world.kernel.mm
    wanted = VmaStartRead(
        mm,
        address,
        anon_vma=fault and switches.anon_vma_prepare == "mmap_lock",
        anonymous=fault and switches.fault_vma_lock == "anon",
    )
    found = (await cpu.mem(wanted)).vmas
    return found[0] if found else None


async def vma_end_read(cpu: Processor, mm: str, vma: Vma) -> None:
    """``vma_end_read``."""
    await cpu.mem(VmaEndRead(mm, vma.start, vma.end))


async def vma_start_write(cpu: Processor, mm: str, start: int, end: int) -> None:
    """``vma_start_write`` of all VMAs in [start, end), and of one that will be there."""
    if cpu.world.kernel.mm.fault_vma_lock != "none" and start < end:
        await cpu.sleep(MEMORY, VmaStartWrite(mm, start, end))


async def vmf_anon_prepare(cpu: Processor, fault: VmFault) -> int:
    """``vmf_anon_prepare`` (v6.7): the VMA gets an ``anon_vma`` if it has none; 0, or try again.

    Neighbours may share theirs, so other VMAs are looked at, under mmap_lock: the fault is tried
    again with it, or (737019cf6ac5, v6.10) it is taken here if nobody has to be waited for.
    Whoever waited with a VMA held could wait for a thread that waits for that VMA.
    """
    if not fault.vma_lock or fault.vma.anon_vma:
        return 0
    if cpu.world.kernel.mm.anon_vma_prepare == "mmap_lock":
        return VM_FAULT_RETRY
    if not (await cpu.mem(MmapReadTrylock(fault.mm))).value:
        return VM_FAULT_RETRY
    await mmap_read_unlock(cpu, fault.mm)
    return 0
