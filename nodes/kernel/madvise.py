"""mm/madvise.c: the advice that takes pages away."""

from __future__ import annotations

from nodes.kernel import memory
from nodes.kernel.context import Processor
from nodes.kernel.errno import EINVAL, ENOMEM
from nodes.world import MEMORY
from protocol.limits import PAGE_SIZE
from protocol.messages.memory import MmapLock, MmapUnlock, VmaFind
from protocol.ranges import page_align


async def madvise_dontneed(cpu: Processor, mm: str, address: int, length: int) -> int:
    """``madvise(MADV_DONTNEED)``: ``madvise_dontneed_single_vma`` under mmap_lock for read."""
    end = address + page_align(length)
    if address % PAGE_SIZE or length <= 0 or end > cpu.world.address_end():
        return -EINVAL
    await cpu.sleep(MEMORY, MmapLock(mm, False))
    found = await cpu.mem(VmaFind(mm, address, end))
    covered = 0
    for vma in found.vmas:
        start, stop = max(vma.start, address), min(vma.end, end)
        covered += stop - start
        await memory.zap_page_range_single(cpu, mm, start, stop)
    await cpu.mem(MmapUnlock(mm))
    return 0 if covered == end - address else -ENOMEM
