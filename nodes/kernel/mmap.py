"""mm/mmap.c: mmap, munmap, brk."""

from __future__ import annotations

from mmurace.nodes.kernel import filemap, memory, mmu_gather
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EINVAL, ENOMEM
from mmurace.nodes.world import MEMORY
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.memory import (
    BrkLoad,
    BrkStore,
    MmapDowngrade,
    MmapLock,
    MmapUnlock,
    Vma,
    VmaFind,
    VmaRange,
    VmaReplace,
)
from mmurace.protocol.ranges import page_align


def bad_range(cpu: Processor, address: int, length: int) -> bool:
    """Not page-aligned, empty, or beyond what the page table maps."""
    end = address + page_align(length)
    return bool(address % PAGE_SIZE) or length <= 0 or end > cpu.world.address_end()


async def mmap_region(cpu: Processor, mm: str, wanted: Vma) -> int:
    """``mmap(MAP_FIXED)`` of anonymous private memory or of a file: the address, or -errno.

    Whatever was mapped there is unmapped first, under the same mmap_lock (``mmap_region``).
    """
    address, length = wanted.start, wanted.end - wanted.start
    if bad_range(cpu, address, length) or wanted.offset % PAGE_SIZE:
        return -EINVAL
    end = address + page_align(length)
    await cpu.sleep(MEMORY, MmapLock(mm, True))
    await do_munmap_locked(cpu, mm, address, end)
    await vma_link(cpu, mm, wanted.part(address, end))
    await cpu.mem(MmapUnlock(mm))
    return address


async def vma_link(cpu: Processor, mm: str, vma: Vma) -> None:
    """``vma_link``: into the mm, and into the rmap of its file; mmap_lock held for write."""
    await cpu.mem(VmaReplace(mm, vma.start, vma.end, (vma,)))
    await filemap.vma_link_file(cpu, mm, vma)


async def do_munmap_locked(
    cpu: Processor, mm: str, start: int, end: int, downgrade: bool = False
) -> None:  # fmt: skip
    """``do_vmi_munmap``: unmap what there is in [start, end); mmap_lock held for write.

    With ``downgrade`` (``munmap``, and ``brk`` and ``mremap`` that make something shorter) it is
    held for read when this returns, if the kernel does that (v4.20).
    """
    found = await cpu.mem(VmaFind(mm, start, end))
    if found.vmas:
        downgrade = downgrade and cpu.world.kernel.mm.munmap_downgrades
        await _unmap_region(cpu, mm, start, end, found, downgrade)


async def do_munmap(cpu: Processor, mm: str, address: int, length: int) -> int:
    """``munmap``: ``__do_munmap``; downgrades mmap_lock to read once the VMAs are out."""
    if bad_range(cpu, address, length):
        return -EINVAL
    await cpu.sleep(MEMORY, MmapLock(mm, True))
    await do_munmap_locked(cpu, mm, address, address + page_align(length), downgrade=True)
    await cpu.mem(MmapUnlock(mm))
    return 0


async def _unmap_region(
    cpu: Processor, mm: str, start: int, end: int, found: VmaRange, downgrade: bool
) -> None:
    """Take the VMAs out, then ``unmap_region``: gather, unmap, free the tables, finish."""
    first, last = found.vmas[0], found.vmas[-1]
    floor = start if first.start < start else found.floor
    ceiling = end if last.end > end else found.ceiling
    await cpu.mem(VmaReplace(mm, start, end, ()))
    if downgrade:
        await cpu.mem(MmapDowngrade(mm))
    gather = await mmu_gather.tlb_gather_mmu(cpu, mm, start, end)
    await memory.unmap_vmas(cpu, gather, start, end, found.vmas)
    for vma in found.vmas:
        await filemap.unlink_file_vma(cpu, mm, vma, start, end)
    await memory.free_pgtables(cpu, gather, start, end, floor, ceiling)
    await mmu_gather.tlb_finish_mmu(cpu, gather)


async def exit_mmap(cpu: Processor, mm: str) -> int:
    """``exit_mmap``: unmap everything that the last thread leaves behind.

    Subscribers hear of it as of any unmap; ``mmu_notifier_release`` is not called.
    """
    await cpu.sleep(MEMORY, MmapLock(mm, True))
    await do_munmap_locked(cpu, mm, 0, cpu.world.address_end())
    await cpu.mem(BrkStore(mm, 0))
    await cpu.mem(MmapUnlock(mm))
    return 0


async def do_brk(cpu: Processor, mm: str, address: int) -> int:
    """``brk``: the end of the heap afterwards; 0 only asks, the first other value sets it."""
    await cpu.sleep(MEMORY, MmapLock(mm, True))
    old = (await cpu.mem(BrkLoad(mm))).value
    new = page_align(address)
    result = old
    if address and old == 0:
        await cpu.mem(BrkStore(mm, new))
        result = new
    elif address > old:
        result = await _expand(cpu, mm, old, new)
    elif address:
        result = await _shrink(cpu, mm, new, old)
    await cpu.mem(MmapUnlock(mm))
    return result


async def _expand(cpu: Processor, mm: str, old: int, new: int) -> int:
    """``do_brk_flags``: refused where something else is mapped."""
    found = await cpu.mem(VmaFind(mm, old, new))
    if found.vmas or new > cpu.world.address_end():
        return -ENOMEM
    await cpu.mem(VmaReplace(mm, old, new, (Vma(old, new, True, True),)))
    await cpu.mem(BrkStore(mm, new))
    return new


async def _shrink(cpu: Processor, mm: str, new: int, old: int) -> int:
    """``do_brk_munmap``: unmap [new, old); mmap_lock is downgraded (9bc8039e715d, v4.20)."""
    await cpu.mem(BrkStore(mm, new))
    if new < old:
        await do_munmap_locked(cpu, mm, new, old, downgrade=True)
    return new
