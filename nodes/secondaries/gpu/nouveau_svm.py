"""drivers/gpu/drm/nouveau/nouveau_svm.c: a driver with a notifier of the whole mm, and intervals
for as long as it serves a fault (v5.5).

The notifier drops what the device has; the interval only tells the fault that an invalidation came.
"""

from __future__ import annotations

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EFAULT
from mmurace.nodes.kernel.interval_notifier import (
    mmu_interval_notifier_insert,
    mmu_interval_notifier_remove,
    mmu_interval_set_seq,
)
from mmurace.nodes.kernel.mmu_notifier_range import MmuNotifierRange
from mmurace.nodes.secondaries.gpu.dmirror import dmirror_range_fault
from mmurace.nodes.secondaries.gpu.locking import driver_lock, driver_unlock, lock_for
from mmurace.nodes.secondaries.gpu.messages import DeviceUnmap, GpuFault
from mmurace.protocol.errors import PeerLost


async def nouveau_range_fault(cpu: Processor, fault: GpuFault) -> int:
    """``nouveau_range_fault``: 0 or -errno, as ``dmirror_range_fault``, in an interval of its own.

    cpu0 (invalidate)                   cpu1 (here)
                                        insert; read_begin; hmm_range_fault -> f
    interval: the sequence is odd
    notifier: lock; drop; unlock
    clear the entry; free f
                                        lock
                                        [Required: read_retry says no, though nothing was mapped
                                        that the notifier could have dropped]
    """
    length = fault.end - fault.start
    await mmu_interval_notifier_insert(cpu, "gpu", fault.gpu, fault.mm, fault.start, length)
    try:
        result = await dmirror_range_fault(cpu, fault)
    except PeerLost:  # the device is gone, and its interval goes
        result = -EFAULT
    await mmu_interval_notifier_remove(cpu, fault.gpu, fault.mm)
    return result


async def nouveau_svm_range_invalidate(
    cpu: Processor, gpu: str, range_: MmuNotifierRange, seq: int
) -> bool:
    """``nouveau_svm_range_invalidate``: the sequence, under the driver's lock."""
    if not await lock_for(cpu, gpu, range_):
        return False
    await mmu_interval_set_seq(cpu, gpu, range_.mm, seq)
    await driver_unlock(cpu, gpu)
    return True


async def nouveau_svmm_invalidate_range_start(
    cpu: Processor, gpu: str, mm: str, start: int, end: int
) -> None:
    """``nouveau_svmm_invalidate_range_start``: what the device has of the range goes."""
    await driver_lock(cpu, gpu)
    await cpu.port.call(gpu, DeviceUnmap(mm, start, end))
    await driver_unlock(cpu, gpu)


async def refuse(_cpu: Processor, _gpu: str, _mm: str, _start: int, _end: int) -> bool:
    """The same where it must not sleep: -EAGAIN, always."""
    return False
