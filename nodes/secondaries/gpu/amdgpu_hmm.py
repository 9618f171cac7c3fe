"""drivers/gpu/drm/amd/amdgpu/amdgpu_hmm.c, drivers/gpu/drm/amd/amdgpu/amdgpu_cs.c: jobs, fences."""

from __future__ import annotations

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EBUSY
from mmurace.nodes.kernel.interval_notifier import mmu_interval_set_seq
from mmurace.nodes.kernel.mmu_notifier_range import MmuNotifierRange
from mmurace.nodes.secondaries.gpu.dmirror import dmirror_do_fault, locked_and_valid, snapshot
from mmurace.nodes.secondaries.gpu.locking import driver_lock, driver_unlock
from mmurace.nodes.secondaries.gpu.messages import FenceSignal, FenceWait, GpuFault
from mmurace.nodes.secondaries.gpu.variant import GpuSwitches
from mmurace.protocol.limits import FAULT_ATTEMPTS_MAX
from mmurace.protocol.messages.base import Ack
from mmurace.protocol.records import FaultRetry


async def amdgpu_cs_submit(cpu: Processor, fault: GpuFault) -> int:
    """``amdgpu_cs_submit``: the job's pages and its fence, under ``notifier_lock``; or -errno.

    cpu0 (invalidate)                   cpu1 (here)                     gpu
                                        snapshot -> f
                                        notifier_lock; still valid
                                        entries of the job, its fence
                                        unlock
    callback: lock; set_seq                                             job: stores to f
    wait for fences                                                     fence
    unlock
    clear the entry; free f             [Required: not before the fence]

    The process is told to try again (-EAGAIN) and does.
    """
    for _ in range(FAULT_ATTEMPTS_MAX):
        range_ = await snapshot(cpu, fault)
        if isinstance(range_, int):
            if range_ != -EBUSY:
                return range_
        elif await locked_and_valid(cpu, range_):
            result = await dmirror_do_fault(cpu, range_, cpu.port.operation)
            await driver_unlock(cpu, fault.gpu)
            return result
        why = "mmu_interval_read_retry"
        cpu.port.emit(FaultRetry(fault.mm, fault.start, fault.write, why, cpu.port.operation))
    return -EBUSY


async def signal_fence(cpu: Processor, message: FenceSignal) -> Ack:
    """A worker that takes the driver's lock before a fence is signalled, which no release has.

    cpu0 (invalidate)                   cpu1 (worker)
    callback: lock
    waits for the fence                 waits for the lock  [Required: nothing between a job and its
                                        fence waits for what the callback has]
    """
    await driver_lock(cpu, message.gpu)
    await driver_unlock(cpu, message.gpu)
    return Ack()


async def amdgpu_hmm_invalidate_gfx(
    cpu: Processor, gpu: str, range_: MmuNotifierRange, seq: int
) -> bool:
    """``amdgpu_hmm_invalidate_gfx``: the sequence, and then all jobs that use the range end.

    Jobs to come look at the sequence under the same lock.
    """
    if not range_.blockable and GpuSwitches.of(cpu.world.kernel).gpu_nonblock == "trylock":
        return False
    await driver_lock(cpu, gpu)
    if GpuSwitches.of(cpu.world.kernel).gpu_set_seq:
        await mmu_interval_set_seq(cpu, gpu, range_.mm, seq)
    if GpuSwitches.of(cpu.world.kernel).gpu_fence_wait:
        await cpu.sleep(gpu, FenceWait(range_.mm, range_.start, range_.end))
    await driver_unlock(cpu, gpu)
    return True
