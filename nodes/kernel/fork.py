"""kernel/fork.c: ``dup_mmap``, an mm for a child."""

from __future__ import annotations

from mmurace.nodes.kernel import mmap, tlb
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.copy_page_range import copy_page_range, vma_needs_copy
from mmurace.nodes.kernel.errno import EINVAL, ENOMEM
from mmurace.nodes.kernel.locking import mmap_write_lock, mmap_write_unlock
from mmurace.nodes.kernel.vma_lock import vma_start_write
from mmurace.protocol.messages.memory import (
    BrkLoad,
    BrkStore,
    VmaFind,
    VmaReplace,
)


async def dup_mmap(cpu: Processor, oldmm: str, mm: str) -> int:
    """``fork``: ``dup_mmap``; 0, -ENOMEM, or -EINVAL if ``mm`` is no new one.

    cpu0 (fork)                         cpu1, device: the parent's
    write-protect every private page    may still write through an old entry
    flush the parent's TLBs
    return                              [Required: no such entry from here on: the child
                                        would see what the parent writes]

    The kernel locks the parent's mm, and below it (``SINGLE_DEPTH_NESTING``) the child's, for which
    nobody can wait: it is new, and known to nobody (v6.6).  Here an mm is a name that may be in
    use, so that two forks can each be into what the other copies; both locks are taken in the
    order of the names, by which nobody waits for ever, and one of the two finds no new mm.
    """
    if mm == oldmm:
        return -EINVAL
    for name in sorted((oldmm, mm)):
        await mmap_write_lock(cpu, name)
    if (await cpu.mem(VmaFind(mm, 0, cpu.world.address_end()))).vmas:
        await mmap_write_unlock(cpu, mm)
        await mmap_write_unlock(cpu, oldmm)
        return -EINVAL
    result = await _dup_vmas(cpu, oldmm, mm)
    await mmap_write_unlock(cpu, mm)
    if cpu.world.kernel.mm.fork_cpu_flush:
        await tlb.flush_tlb_mm(cpu, oldmm)
    await mmap_write_unlock(cpu, oldmm)
    if result:
        await mmap.exit_mmap(cpu, mm)
    return result


async def _dup_vmas(cpu: Processor, oldmm: str, mm: str) -> int:
    """One VMA after the other: into the child, into the rmap of its file, and its entries."""
    await cpu.mem(BrkStore(mm, (await cpu.mem(BrkLoad(oldmm))).value))
    for vma in (await cpu.mem(VmaFind(oldmm, 0, cpu.world.address_end()))).vmas:
        if cpu.world.kernel.mm.fork_locks_vmas:
            await vma_start_write(cpu, oldmm, vma.start, vma.end)
        await cpu.mem(VmaReplace(mm, vma.start, vma.end, (vma,)))
        await mmap.vma_link_file(cpu, mm, vma)
        if vma_needs_copy(vma) and not await copy_page_range(cpu, oldmm, mm, vma):
            return -ENOMEM
    return 0
