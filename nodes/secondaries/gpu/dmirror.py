"""lib/test_hmm.c: ``dmirror``, a device that faults pages in and forgets them when told."""

from __future__ import annotations

from mmurace.nodes.kernel import page_alloc
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EBUSY, EFAULT, ENOMEM
from mmurace.nodes.kernel.hmm import HmmRange, hmm_range_fault
from mmurace.nodes.kernel.interval_notifier import (
    mmu_interval_read_begin,
    mmu_interval_read_retry,
    mmu_interval_set_seq,
)
from mmurace.nodes.kernel.locking import mmap_read_lock, mmap_read_unlock
from mmurace.nodes.kernel.mmu_notifier_range import MmuNotifierRange
from mmurace.nodes.kernel.page_ref import put_page
from mmurace.nodes.secondaries.gpu.locking import driver_lock, driver_unlock, lock_for
from mmurace.nodes.secondaries.gpu.messages import DeviceMap, DeviceUnmap, GpuFault
from mmurace.nodes.secondaries.gpu.variant import GpuSwitches
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import FAULT_ATTEMPTS_MAX
from mmurace.protocol.messages.memory import FrameAlloc
from mmurace.protocol.messages.swap import FolioMarkDirty
from mmurace.protocol.records import FaultRetry


async def dmirror_range_fault(cpu: Processor, fault: GpuFault) -> int:
    """``dmirror_range_fault``: a snapshot of the range, installed if it is still right; or -errno.

    cpu0 (invalidate)                   cpu1 (here)
                                        read_begin; hmm_range_fault -> f
    callback: lock; set_seq; drop;
    unlock
    clear the entry; free f
                                        lock
                                        [Required: read_retry under the lock says no]
                                        install f
                                        unlock
    """
    for _ in range(FAULT_ATTEMPTS_MAX):
        range_ = await snapshot(cpu, fault)
        if isinstance(range_, int):
            if range_ != -EBUSY:
                return range_
        else:
            result = await _map_if_valid(cpu, range_)
            if result != -EBUSY:
                return result
        why = "mmu_interval_read_retry"
        cpu.port.emit(FaultRetry(fault.mm, fault.start, fault.write, why, cpu.port.operation))
    return -EBUSY


async def _map_if_valid(cpu: Processor, range_: HmmRange) -> int:
    """Install a snapshot, with a page for the table; -EBUSY: it is old.

    cpu1 (here)                         cpu1 (further down in the same call)
    driver lock
    alloc_page(GFP_KERNEL): there is none
                                        reclaim unmaps a page of the range
                                        invalidate_range_start: callback
                                        driver lock  [Required: not held by who waits here]

    Callbacks are annotated for that: ``__mmu_notifier_invalidate_range_start_map`` is taken by who
    calls them, and by who reclaims (``fs_reclaim_acquire``, mm/page_alloc.c).
    """
    when = GpuSwitches.of(cpu.world.kernel).gpu_alloc
    page = await _page_for_table(cpu, range_.mm) if when == "before_lock" else -1
    result = -EBUSY
    if await locked_and_valid(cpu, range_):
        page = await _page_for_table(cpu, range_.mm) if when == "under_lock" else page
        short = page < 0 and when != "atomic"
        result = -ENOMEM if short else await dmirror_do_fault(cpu, range_)
        await driver_unlock(cpu, range_.node)
    if page >= 0:
        await put_page(cpu, page)
    return result


async def _page_for_table(cpu: Processor, mm: str) -> int:
    """``alloc_page(GFP_KERNEL)``: a frame, or -1."""
    return await page_alloc.alloc_pages(cpu, mm, FrameAlloc("kernel"), thisnode=True)


async def snapshot(cpu: Processor, fault: GpuFault) -> HmmRange | int:
    """The sequence, then the entries, under mmap_lock; -EBUSY: again.

    What is in the device's own memory stays there (``dev_private_owner``).
    """
    seq = await mmu_interval_read_begin(cpu, fault.gpu, fault.mm)
    range_ = HmmRange(fault.mm, fault.gpu, fault.start, fault.end, seq, True, fault.write)
    if GpuSwitches.of(cpu.world.kernel).gpu_entries == "faulted_in":
        range_.dev_private_owner = fault.gpu
    await mmap_read_lock(cpu, fault.mm)
    result = await hmm_range_fault(cpu, range_)
    await mmap_read_unlock(cpu, fault.mm)
    return result or range_


async def locked_and_valid(cpu: Processor, range_: HmmRange) -> bool:
    """Take the driver's lock; False, and it is free again, if the snapshot is old."""
    check = GpuSwitches.of(cpu.world.kernel).gpu_retry_check
    seq = range_.notifier_seq
    if check == "before_lock" and await mmu_interval_read_retry(cpu, range_.node, range_.mm, seq):
        return False
    await driver_lock(cpu, range_.node)
    if check == "under_lock" and await mmu_interval_read_retry(cpu, range_.node, range_.mm, seq):
        await driver_unlock(cpu, range_.node)
        return False
    return True


async def dmirror_do_fault(cpu: Processor, range_: HmmRange, job: str = "") -> int:
    """``dmirror_do_fault``: the snapshot becomes entries of the device; under its lock.

    -EFAULT: a page in its own memory may not be written; who asked for that may.

    The device stores through a writable entry without a word, so its pages count as dirty from here
    on; drivers say so when they drop them (``amdgpu_hmm`` of v5.5, i915).
    """
    for address, pfn in range_.pfns.items():
        if range_.write and not pfn.writable:
            return -EFAULT
        rights = ptes.PRESENT | (pfn.pte & ptes.WRITE)
        if pfn.writable and not pfn.pte & ptes.DIRTY:
            await cpu.mem(FolioMarkDirty(ptes.frame_of(pfn.pte)))
        entry = ptes.make(ptes.frame_of(pfn.pte), rights)
        await cpu.port.call(range_.node, DeviceMap(range_.mm, address, entry, pfn.walk, job))
    return 0


def passes_over(cpu: Processor, gpu: str, range_: MmuNotifierRange) -> bool:
    """Whether the callback returns at once: something that is, maybe, the device's own doing."""
    switches = GpuSwitches.of(cpu.world.kernel)
    skips = {
        MmuNotifierEvent.MIGRATE: switches.gpu_migrate_skips,
        MmuNotifierEvent.EXCLUSIVE: switches.gpu_exclusive_skips,
    }.get(range_.event, "none")
    return skips == "any" or (skips == "own" and range_.owner == gpu)


async def dmirror_interval_invalidate(
    cpu: Processor, gpu: str, range_: MmuNotifierRange, seq: int
) -> bool:
    """``dmirror_interval_invalidate``: under the driver's lock, the sequence, then the entries."""
    if passes_over(cpu, gpu, range_):
        return True
    if not await lock_for(cpu, gpu, range_):
        return False
    if GpuSwitches.of(cpu.world.kernel).gpu_set_seq:
        await mmu_interval_set_seq(cpu, gpu, range_.mm, seq)
    drop = DeviceUnmap(range_.mm, range_.start, range_.end)
    if GpuSwitches.of(cpu.world.kernel).gpu_unmap_waits:
        await cpu.port.call(gpu, drop)
    else:
        cpu.port.tell(gpu, drop)
    await driver_unlock(cpu, gpu)
    return True
