"""include/linux/mutex.h: the lock of a driver, which its callback takes as well."""

from __future__ import annotations

from collections.abc import Awaitable

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.mmu_notifier_range import MmuNotifierRange
from mmurace.nodes.secondaries.gpu.messages import DriverLock, DriverTrylock, DriverUnlock
from mmurace.nodes.secondaries.gpu.variant import GpuSwitches
from mmurace.protocol.messages.base import Ack


def driver_lock(cpu: Processor, gpu: str) -> Awaitable[Ack]:
    """``mutex_lock``; sleeps."""
    return cpu.sleep(gpu, DriverLock())


async def driver_trylock(cpu: Processor, gpu: str) -> bool:
    """``mutex_trylock``: False if somebody has it."""
    return (await cpu.port.call(gpu, DriverTrylock())).value


async def lock_for(cpu: Processor, gpu: str, range_: MmuNotifierRange) -> bool:
    """What ``dmirror_interval_invalidate`` does: False if the lock is taken and it must not wait.

    cpu0 (OOM reaper)                   cpu1 (a fault of the device)
                                        driver lock; waits for memory
    callback: trylock                   [Required: not lock, for there is no memory before the
    gives up; the VMA is left           reaper is done]
    """
    tries = GpuSwitches.of(cpu.world.kernel).gpu_nonblock == "trylock"
    if not range_.blockable and tries:
        return await driver_trylock(cpu, gpu)
    await driver_lock(cpu, gpu)
    return True


def driver_unlock(cpu: Processor, gpu: str) -> Awaitable[Ack]:
    """``mutex_unlock``."""
    return cpu.port.call(gpu, DriverUnlock())
