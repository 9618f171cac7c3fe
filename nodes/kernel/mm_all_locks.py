"""mm/mmap.c: every lock under which somebody may take an entry of an mm away."""

from __future__ import annotations

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.locking import (
    anon_vma_lock_write,
    anon_vma_unlock_write,
    i_mmap_lock_write,
    i_mmap_unlock_write,
)
from mmurace.nodes.kernel.vma_lock import vma_start_write
from mmurace.protocol.messages.memory import VmaFind


async def mm_take_all_locks(cpu: Processor, mm: str) -> tuple[str, ...]:
    """``mm_take_all_locks`` (7906d00cd1f6, v2.6.27): the files whose ``i_mmap_rwsem`` it took.

    mmap_lock is held for write.  Who takes an entry away holds that or a lock of the rmap, from the
    start of its bracket to the end:

    cpu0 (migrate, by the rmap)         cpu1 (mmu_notifier_register)
    anon_vma lock for read
    start; clear the entry; end
    unlock
                                        anon_vma lock for write  [Required: no bracket is open]
                                        on the list

    Files come in the order of their names, which does what ``mm_all_locks_mutex`` does there: two
    that take the locks of two mms never wait for each other.

    Faults hold a VMA and no mmap_lock from v6.4 on, so each VMA is held for write, too
    (eeff9a5d47f8, v6.5):

    cpu0 (page fault, copy on write)    cpu1 (mmu_notifier_register)
    VMA for read; start
                                        VMA for write            [Required: no bracket is open]
                                        on the list
    end: of a subscriber that saw no start
    """
    vmas = (await cpu.mem(VmaFind(mm, 0, cpu.world.address_end()))).vmas
    if cpu.world.kernel.mm.register_locks == "all":
        for vma in vmas:
            await vma_start_write(cpu, mm, vma.start, vma.end)
    files = tuple(sorted({vma.file for vma in vmas if vma.file}))
    for file in files:
        await i_mmap_lock_write(cpu, file)
    await anon_vma_lock_write(cpu, mm)
    return files


async def mm_drop_all_locks(cpu: Processor, mm: str, files: tuple[str, ...]) -> None:
    """``mm_drop_all_locks``."""
    await anon_vma_unlock_write(cpu, mm)
    for file in files:
        await i_mmap_unlock_write(cpu, file)
