"""include/linux/mutex.h: the lock of a driver, which its callback takes as well."""

from __future__ import annotations

from collections.abc import Awaitable

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.secondaries.gpu.messages import DriverLock, DriverUnlock
from mmurace.protocol.messages.base import Ack


def driver_lock(cpu: Processor, gpu: str) -> Awaitable[Ack]:
    """``mutex_lock``; sleeps."""
    return cpu.sleep(gpu, DriverLock())


def driver_unlock(cpu: Processor, gpu: str) -> Awaitable[Ack]:
    """``mutex_unlock``."""
    return cpu.port.call(gpu, DriverUnlock())
