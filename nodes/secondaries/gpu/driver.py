"""lib/test_hmm.c, drivers/gpu/drm/amd/amdgpu/amdgpu_hmm.c: what drivers of GPUs are asked for."""

from __future__ import annotations

from contextlib import suppress

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EBUSY, EFAULT, EINVAL, ENODEV
from mmurace.nodes.kernel.interval_notifier import (
    mmu_interval_notifier_insert,
    mmu_interval_notifier_remove,
)
from mmurace.nodes.kernel.mmu_notifier_range import MmuNotifierRange
from mmurace.nodes.secondaries.gpu import amdgpu_hmm, dmirror, exclusive
from mmurace.nodes.secondaries.gpu.locking import driver_lock, driver_unlock
from mmurace.nodes.secondaries.gpu.messages import (
    FaultDone,
    GpuFault,
    GpuMirror,
    GpuUnmirror,
    MirrorClose,
    MirrorDone,
    MirrorOpen,
)
from mmurace.nodes.secondaries.gpu.variant import GpuSwitches
from mmurace.protocol.errors import PeerLost
from mmurace.protocol.records import Unregistered


async def invalidate(cpu: Processor, gpu: str, range_: MmuNotifierRange, seq: int) -> bool:
    """``mmu_interval_notifier_ops.invalidate`` of the driver that the kernel has."""
    if GpuSwitches.of(cpu.world.kernel).gpu_entries == "of_jobs":
        return await amdgpu_hmm.amdgpu_hmm_invalidate_gfx(cpu, gpu, range_, seq)
    return await dmirror.dmirror_interval_invalidate(cpu, gpu, range_, seq)


async def gpu_fault(cpu: Processor, fault: GpuFault) -> FaultDone:
    """Map a range for a job; a device that is gone needs nothing.

    The thread is none of the process that may have been killed meanwhile; it leaves nothing behind.
    """
    if fault.atomic:
        return await _atomic_fault(cpu, fault)
    of_jobs = GpuSwitches.of(cpu.world.kernel).gpu_entries == "of_jobs"
    serve = amdgpu_hmm.amdgpu_cs_submit if of_jobs else dmirror.dmirror_range_fault
    try:
        return FaultDone(await serve(cpu, fault))
    except PeerLost:
        return FaultDone(-EFAULT)


async def _atomic_fault(cpu: Processor, fault: GpuFault) -> FaultDone:
    try:
        return FaultDone(await exclusive.atomic_range_fault(cpu, fault))
    except PeerLost:
        return FaultDone(-EFAULT)


async def open_mirror(cpu: Processor, operation: GpuMirror) -> int:
    """``dmirror_fops_open``: 0, -EBUSY if the mm is mirrored already, -ENODEV: the GPU is gone.

    cpu0 (here)                         cpu1 (a job, another close)
    the file, not installed yet
    mmu_interval_notifier_insert
    return: the file descriptor         [Required: not before it]
    """
    mm, gpu, start = operation.mm, operation.gpu, operation.address
    try:
        opened = await cpu.port.call(gpu, MirrorOpen(mm, start, start + operation.length))
        if not opened.value:
            return -EBUSY
        await mmu_interval_notifier_insert(cpu, "gpu", gpu, mm, start, operation.length)
        await cpu.port.call(gpu, MirrorDone(mm, closed=False))
    except PeerLost:
        return -ENODEV
    return 0


async def close_mirror(cpu: Processor, operation: GpuUnmirror) -> int:
    """``dmirror_fops_release``: 0, or -EINVAL if the mm is not mirrored.

    The jobs of the mirror are done (their file was closed), and what the device holds goes before
    nobody tells it any more.  ``Unregistered``: the mirror is freed.
    """
    mm, gpu = operation.mm, operation.gpu
    with suppress(PeerLost):  # it was pulled out
        if not (await cpu.sleep(gpu, MirrorClose(mm))).value:
            return -EINVAL
    how = GpuSwitches.of(cpu.world.kernel).gpu_close
    if how == "frees_first":
        cpu.port.emit(Unregistered(gpu, mm))
    if how == "under_lock":
        removed = await _remove_under_lock(cpu, gpu, mm)
    else:
        removed = await mmu_interval_notifier_remove(cpu, gpu, mm)
    if how != "frees_first" and removed:
        cpu.port.emit(Unregistered(gpu, mm))
    with suppress(PeerLost):
        await cpu.port.call(gpu, MirrorDone(mm, closed=True))
    return 0 if removed else -EINVAL


async def _remove_under_lock(cpu: Processor, gpu: str, mm: str) -> bool:
    with suppress(PeerLost):
        await driver_lock(cpu, gpu)
    removed = await mmu_interval_notifier_remove(cpu, gpu, mm)
    with suppress(PeerLost):
        await driver_unlock(cpu, gpu)
    return removed
