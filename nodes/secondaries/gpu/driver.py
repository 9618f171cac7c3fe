"""lib/test_hmm.c, drivers/gpu/drm/amd/amdgpu/amdgpu_hmm.c, drivers/gpu/drm/nouveau/nouveau_svm.c:
what drivers of GPUs are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EBUSY, EFAULT, EINVAL, ENODEV
from mmurace.nodes.kernel.interval_notifier import (
    mm_of_subscription,
    mmu_interval_notifier_insert,
    mmu_interval_notifier_remove,
)
from mmurace.nodes.kernel.mmu_notifier import mmu_notifier_register, mmu_notifier_unregister
from mmurace.nodes.kernel.mmu_notifier_range import MmuNotifierRange
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondaries.gpu import amdgpu_hmm, dmirror, exclusive, nouveau_svm
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
from mmurace.nodes.secondary import Callback
from mmurace.protocol.errors import PeerLost
from mmurace.protocol.limits import ULONG_MAX
from mmurace.protocol.records import Unregistered


def registers_notifier(kernel: Kernel) -> bool:
    """Whether a mirror is a notifier of the whole mm, and intervals come with faults."""
    return GpuSwitches.of(kernel).gpu_mirror == "notifier"


def notifier_ops(kernel: Kernel) -> Mapping[str, Callback]:
    """``nouveau_mn_ops``; other drivers have intervals alone."""
    if not registers_notifier(kernel):
        return {}
    return {
        "invalidate_range_start": nouveau_svm.nouveau_svmm_invalidate_range_start,
        "invalidate_range_start_nonblock": nouveau_svm.refuse,
    }


async def invalidate(cpu: Processor, gpu: str, range_: MmuNotifierRange, seq: int) -> bool:
    """``mmu_interval_notifier_ops.invalidate`` of the driver that the kernel has."""
    if registers_notifier(cpu.world.kernel):
        return await nouveau_svm.nouveau_svm_range_invalidate(cpu, gpu, range_, seq)
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
    if registers_notifier(cpu.world.kernel):
        serve = nouveau_svm.nouveau_range_fault
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
    """``dmirror_fops_open``, ``nouveau_svmm_init``: 0, or -errno.

    -EBUSY: the mm is mirrored already; -EOVERFLOW: no such range; -ENODEV: the GPU is gone.

    cpu0 (here)                         cpu1 (a job, another close)
    the file, not installed yet
    mmu_interval_notifier_insert
    return: the file descriptor         [Required: not before it]
    """
    mm, gpu, start = operation.mm, operation.gpu, operation.address
    end, inserted = min(start + operation.length, ULONG_MAX), 0
    try:
        opened = await cpu.port.call(gpu, MirrorOpen(mm, start, end))
        if not opened.value:
            return -EBUSY
        if registers_notifier(cpu.world.kernel):
            await mmu_notifier_register(cpu, "gpu", gpu, mm)
        else:
            length = operation.length
            inserted = await mmu_interval_notifier_insert(cpu, "gpu", gpu, mm, start, length)
        if inserted:
            await _give_up(cpu, mm, gpu, mm_of_subscription(cpu.world.kernel, inserted))
        await cpu.port.call(gpu, MirrorDone(mm, closed=bool(inserted)))
    except PeerLost:
        return -ENODEV
    return inserted


async def _give_up(cpu: Processor, mm: str, gpu: str, mm_is_set: bool) -> None:
    """A mirror without its interval is freed (``radeon_mn_unregister``, if the driver has one)."""
    looks = GpuSwitches.of(cpu.world.kernel).gpu_insert_fails == "removes_if_mm"
    if looks and mm_is_set:
        await mmu_interval_notifier_remove(cpu, gpu, mm)


async def close_mirror(cpu: Processor, operation: GpuUnmirror) -> int:
    """``dmirror_fops_release``: 0, or -EINVAL if the mm is not mirrored.

    The jobs of the mirror are done (their file was closed), and what the device holds goes before
    nobody tells it any more.  ``Unregistered``: the mirror is freed.
    """
    mm, gpu = operation.mm, operation.gpu
    gone = True
    with suppress(PeerLost):  # it was pulled out
        if not (await cpu.sleep(gpu, MirrorClose(mm))).value:
            return -EINVAL
        gone = False
    if registers_notifier(cpu.world.kernel):
        return await _unregister(cpu, gpu, mm, gone)
    how = GpuSwitches.of(cpu.world.kernel).gpu_close
    if how == "frees_first":
        cpu.port.emit(Unregistered(gpu, mm))
    if how == "under_lock":
        removed = await _remove_under_lock(cpu, gpu, mm)
    else:
        removed = await mmu_interval_notifier_remove(cpu, gpu, mm, perhaps=True)
    if how != "frees_first" and removed:
        cpu.port.emit(Unregistered(gpu, mm))
    with suppress(PeerLost):
        await cpu.port.call(gpu, MirrorDone(mm, closed=True))
    return 0 if removed else -EINVAL


async def _unregister(cpu: Processor, gpu: str, mm: str, gone: bool) -> int:
    """``nouveau_svmm_fini``; of a GPU that is gone a fault may be served still, and it stays."""
    if not gone:
        await mmu_notifier_unregister(cpu, "gpu", gpu, mm)
        with suppress(PeerLost):
            await cpu.port.call(gpu, MirrorDone(mm, closed=True))
    return 0


async def _remove_under_lock(cpu: Processor, gpu: str, mm: str) -> bool:
    with suppress(PeerLost):
        await driver_lock(cpu, gpu)
    removed = await mmu_interval_notifier_remove(cpu, gpu, mm, perhaps=True)
    with suppress(PeerLost):
        await driver_unlock(cpu, gpu)
    return removed
