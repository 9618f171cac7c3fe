"""mm/mmap.c: mmap, munmap, brk."""

from __future__ import annotations

from mmurace.nodes.kernel import memory, mmu_gather
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EINVAL, ENOMEM
from mmurace.nodes.kernel.locking import (
    i_mmap_lock_write,
    i_mmap_unlock_write,
    mmap_read_unlock,
    mmap_write_downgrade,
    mmap_write_lock,
    mmap_write_unlock,
)
from mmurace.nodes.kernel.vma_lock import vma_start_write
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.filemap import FileVma, ImmapInsert, ImmapRemove
from mmurace.protocol.messages.memory import (
    BrkLoad,
    BrkStore,
    Vma,
    VmaFind,
    VmaRange,
    VmaReplace,
)
from mmurace.protocol.ranges import page_align


async def mmap_region(cpu: Processor, mm: str, wanted: Vma) -> int:
    """``mmap(MAP_FIXED)`` of anonymous private memory or of a file: the address, or -errno.

    Whatever was mapped there is unmapped first, under the same mmap_lock (``mmap_region``).
    """
    address, length = wanted.start, wanted.end - wanted.start
    end = address + page_align(length)
    if address % PAGE_SIZE or length <= 0 or end > cpu.world.address_end():
        return -EINVAL
    if wanted.offset % PAGE_SIZE:
        return -EINVAL
    await mmap_write_lock(cpu, mm)
    await do_vmi_munmap(cpu, mm, address, end)
    await vma_link(cpu, mm, wanted.part(address, end))
    await mmap_write_unlock(cpu, mm)
    return address


async def vma_link(cpu: Processor, mm: str, vma: Vma) -> None:
    """``vma_link``: into the mm, and into the rmap of its file; mmap_lock held for write."""
    await vma_start_write(cpu, mm, vma.start, vma.end)
    await cpu.mem(VmaReplace(mm, vma.start, vma.end, (vma,)))
    await vma_link_file(cpu, mm, vma)


async def vma_link_file(cpu: Processor, mm: str, vma: Vma) -> None:
    """``__vma_link_file``: the rmap finds the VMA from here on."""
    if vma.file:
        await i_mmap_lock_write(cpu, vma.file)
        mapping = FileVma(mm, vma.start, vma.end, vma.offset, vma.shared)
        await cpu.mem(ImmapInsert(vma.file, mapping))
        await i_mmap_unlock_write(cpu, vma.file)


async def unlink_file_vma(cpu: Processor, mm: str, vma: Vma, start: int, end: int) -> None:
    """``unlink_file_vma`` for [start, end): no rmap walk finds it any more."""
    if vma.file:
        await i_mmap_lock_write(cpu, vma.file)
        await cpu.mem(ImmapRemove(vma.file, mm, start, end))
        await i_mmap_unlock_write(cpu, vma.file)


async def do_vmi_munmap(
    cpu: Processor, mm: str, start: int, end: int, unlock: bool = False
) -> None:  # fmt: skip
    """``do_vmi_munmap`` (once ``__do_munmap``): unmap what there is in [start, end).

    mmap_lock is held for write.  With ``unlock`` (``munmap``, and ``brk`` and ``mremap`` that make
    something shorter) it is downgraded when the VMAs are out, if the kernel does that (v4.20), and
    not held any more when this returns.
    """
    found = await cpu.mem(VmaFind(mm, start, end))
    downgrade = unlock and cpu.world.kernel.mm.munmap_downgrades
    if found.vmas:
        await do_vmi_align_munmap(cpu, mm, start, end, found, downgrade)
    if unlock:
        released = mmap_read_unlock if found.vmas and downgrade else mmap_write_unlock
        await released(cpu, mm)


async def vm_munmap(cpu: Processor, mm: str, address: int, length: int) -> int:
    """``munmap``: ``__vm_munmap``."""
    end = address + page_align(length)
    if address % PAGE_SIZE or length <= 0 or end > cpu.world.address_end():
        return -EINVAL
    await mmap_write_lock(cpu, mm)
    await do_vmi_munmap(cpu, mm, address, end, unlock=True)
    return 0


async def do_vmi_align_munmap(
    cpu: Processor, mm: str, start: int, end: int, found: VmaRange, downgrade: bool
) -> None:
    """``do_vmi_align_munmap``: the VMAs out, then ``unmap_region``: gather, unmap, free tables."""
    first, last = found.vmas[0], found.vmas[-1]
    floor = start if first.start < start else found.floor
    ceiling = end if last.end > end else found.ceiling
    await vma_start_write(cpu, mm, start, end)
    await cpu.mem(VmaReplace(mm, start, end, ()))
    if downgrade:
        await mmap_write_downgrade(cpu, mm)
    gather = await mmu_gather.tlb_gather_mmu(cpu, mm, start, end)
    await memory.unmap_vmas(cpu, gather, start, end, found.vmas)
    for vma in found.vmas:
        await unlink_file_vma(cpu, mm, vma, start, end)
    await memory.free_pgtables(cpu, gather, start, end, floor, ceiling)
    await mmu_gather.tlb_finish_mmu(cpu, gather)


async def exit_mmap(cpu: Processor, mm: str) -> int:
    """``exit_mmap``: unmap everything that the last thread leaves behind.

    Subscribers hear of it as of any unmap; ``mmu_notifier_release`` is not called.
    """
    await mmap_write_lock(cpu, mm)
    await do_vmi_munmap(cpu, mm, 0, cpu.world.address_end())
    await cpu.mem(BrkStore(mm, 0))
    await mmap_write_unlock(cpu, mm)
    return 0


async def sys_brk(cpu: Processor, mm: str, address: int) -> int:
    """``brk``: the end of the heap afterwards; 0 only asks, the first other value sets it.

    Who makes it shorter downgrades mmap_lock meanwhile (9bc8039e715d, v4.20).
    """
    await mmap_write_lock(cpu, mm)
    old = (await cpu.mem(BrkLoad(mm))).value
    new = page_align(address)
    result = old
    if 0 < new < old:
        await cpu.mem(BrkStore(mm, new))
        await do_vmi_munmap(cpu, mm, new, old, unlock=True)
        return new
    if address and (old == 0 or new == old):
        await cpu.mem(BrkStore(mm, new))
        result = new
    elif address:
        result = await do_brk_flags(cpu, mm, old, new)
    await mmap_write_unlock(cpu, mm)
    return result


async def do_brk_flags(cpu: Processor, mm: str, old: int, new: int) -> int:
    """``do_brk_flags``: refused where something else is mapped."""
    found = await cpu.mem(VmaFind(mm, old, new))
    if found.vmas or new > cpu.world.address_end():
        return -ENOMEM
    await vma_start_write(cpu, mm, old, new)
    await cpu.mem(VmaReplace(mm, old, new, (Vma(old, new, True, True),)))
    await cpu.mem(BrkStore(mm, new))
    return new
