"""lib/test_hmm.c: a page that a device has for itself, for atomic accesses."""

from __future__ import annotations

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.device_exclusive import MakeExclusive, give_back, make_device_exclusive
from mmurace.nodes.kernel.errno import EBUSY, EINVAL
from mmurace.nodes.kernel.locking import folio_wait_locked, mmap_read_lock, mmap_read_unlock
from mmurace.nodes.secondaries.gpu.locking import driver_lock, driver_unlock
from mmurace.nodes.secondaries.gpu.messages import DeviceMap, GpuFault
from mmurace.nodes.secondaries.gpu.variant import GpuSwitches
from mmurace.protocol import pte as ptes
from mmurace.protocol.limits import FAULT_ATTEMPTS_MAX
from mmurace.protocol.records import FaultRetry


async def atomic_range_fault(cpu: Processor, fault: GpuFault) -> int:
    """The page, for this device alone; or -errno.

    If somebody else has it locked, it is tried again once he has not, as user space would do.
    """
    if not cpu.world.kernel.mm.device_exclusive:
        return -EINVAL
    for _ in range(FAULT_ATTEMPTS_MAX):
        made = await dmirror_exclusive(cpu, fault)
        if isinstance(made, int):
            return made
        if made.source:
            return 0
        await folio_wait_locked(cpu, made.page)
        why = "make_device_exclusive_range"
        cpu.port.emit(FaultRetry(fault.mm, fault.start, True, why, cpu.port.operation))
    return -EBUSY


async def dmirror_exclusive(cpu: Processor, fault: GpuFault) -> MakeExclusive | int:
    """``dmirror_exclusive``: a page, which is locked until the device has it.

    cpu0 (driver)                       cpu1 (fault of the process)
    exclusive entry; page locked
                                        waits for the page lock   [Required: or it takes the page
    driver lock; the device's entry     back from a device that does not have it yet]
    page unlocked
                                        callback: the device's entry goes
    """
    owner = "" if _switches(cpu).gpu_exclusive_skips == "none" else fault.gpu
    await mmap_read_lock(cpu, fault.mm)
    made = await make_device_exclusive(cpu, fault.mm, fault.start, owner)
    if not isinstance(made, int) and made.source:
        await _map(cpu, fault, made)
    await mmap_read_unlock(cpu, fault.mm)
    return made


def _switches(cpu: Processor) -> GpuSwitches:
    return GpuSwitches.of(cpu.world.kernel)


async def _map(cpu: Processor, fault: GpuFault, made: MakeExclusive) -> None:
    """The device gets the entry, and then the page is given back."""
    early = _switches(cpu).gpu_exclusive_unlocks == "before_map"
    if early:
        await give_back(cpu, made.page)
    await driver_lock(cpu, fault.gpu)
    await atomic_map(cpu, fault, made)
    await driver_unlock(cpu, fault.gpu)
    if not early:
        await give_back(cpu, made.page)


async def atomic_map(cpu: Processor, fault: GpuFault, made: MakeExclusive) -> None:
    """``dmirror_atomic_map``: under the driver's lock."""
    flags = ptes.PRESENT | ptes.WRITE | ptes.DEVICE_EXCLUSIVE
    entry = ptes.make(made.page, flags)
    await cpu.port.call(fault.gpu, DeviceMap(fault.mm, fault.start, entry, made.source))
