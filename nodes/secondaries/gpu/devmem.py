"""lib/test_hmm.c: the memory of a device, what goes there, and what comes back from it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from mmurace.nodes.ground import Ground
from mmurace.nodes.kernel import page_alloc
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EAGAIN, EINVAL
from mmurace.nodes.kernel.locking import folio_trylock, mmap_read_lock, mmap_read_unlock
from mmurace.nodes.kernel.migrate_device import (
    HOLE,
    MigrateVma,
    migrate_vma_finalize,
    migrate_vma_pages,
    migrate_vma_setup,
)
from mmurace.nodes.kernel.vm_fault import VmFault
from mmurace.nodes.secondaries.gpu.locking import driver_lock, driver_unlock
from mmurace.nodes.secondaries.gpu.messages import DeviceUnmap, GpuMigrate
from mmurace.nodes.secondaries.gpu.part import Gpu
from mmurace.nodes.secondaries.gpu.variant import GpuSwitches
from mmurace.protocol.errors import PeerLost
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.device_memory import DevicePageAlloc
from mmurace.protocol.messages.memory import FrameAlloc, FrameCopy, Vma, VmaFind


async def dmirror_migrate(cpu: Processor, operation: GpuMigrate) -> int:
    """``dmirror_migrate_to_device``, ``dmirror_migrate_to_system``: how many pages, or -errno.

    VMA by VMA, under mmap_lock for read; what was done before one that cannot be read stays done.
    """
    mm, end = operation.mm, operation.address + operation.length
    driver = GpuSwitches.of(cpu.world.kernel)
    if driver.gpu_entries == "of_jobs" or driver.gpu_mirror == "notifier":
        return -EINVAL
    await mmap_read_lock(cpu, mm)
    vmas = (await cpu.mem(VmaFind(mm, operation.address, end))).vmas
    at, moved = operation.address, 0
    while at < end:
        vma = next((vma for vma in vmas if vma.start <= at < vma.end), None)
        if vma is None or not vma.read:
            moved = -EINVAL
            break
        moved += await _migrate_part(cpu, operation, vma, at, min(end, vma.end))
        at = vma.end
    await mmap_read_unlock(cpu, mm)
    return moved


async def _migrate_part(
    cpu: Processor, operation: GpuMigrate, vma: Vma, start: int, end: int
) -> int:
    """A part of one VMA, in one direction."""
    gpu, mm = operation.gpu, operation.mm
    if operation.back:
        args = MigrateVma(mm, vma, start, end, gpu, "device_private")
        await migrate_vma_setup(cpu, args)
        await dmirror_devmem_fault_alloc_and_copy(cpu, args)
        await migrate_vma_pages(cpu, args)
        return await migrate_vma_finalize(cpu, args)
    args = MigrateVma(mm, vma, start, end, gpu, "system")
    await migrate_vma_setup(cpu, args)
    if GpuSwitches.of(cpu.world.kernel).gpu_migrate_drops == "before_copy":
        await _drop(cpu, args)
    await dmirror_migrate_alloc_and_copy(cpu, args)
    await migrate_vma_pages(cpu, args)
    await dmirror_migrate_finalize_and_map(cpu, args)
    return await migrate_vma_finalize(cpu, args)


async def dmirror_migrate_alloc_and_copy(cpu: Processor, args: MigrateVma) -> None:
    """``dmirror_migrate_alloc_and_copy``: a page of the device for each; none left: it stays.

    gpu                                 cpu0 (migrates to that gpu)
                                        bracket, of which the driver takes no notice
    stores to the old page
                                        copies it
    stores to the old page              [Required: the device's own entry is gone before that, for
                                        this store is lost]
                                        the device's entry is another one
    """
    for at, mpfn in args.migrating():
        page = (await cpu.mem(DevicePageAlloc(args.owner))).frame
        if page < 0:
            continue
        await folio_trylock(cpu, page)
        if mpfn.page != HOLE:
            await cpu.mem(FrameCopy(mpfn.page, page, True))
        args.dst[at] = page


async def dmirror_migrate_finalize_and_map(cpu: Processor, args: MigrateVma) -> None:
    """``dmirror_migrate_finalize_and_map``: what the device had there is replaced.

    Here it is dropped, and the device faults in what is there now when it needs it.
    """
    await _drop(cpu, args)


async def dmirror_devmem_fault(cpu: Processor, gpu: str, fault: VmFault) -> int:
    """``dmirror_devmem_fault`` (``migrate_to_ram``): 0, or -EAGAIN if the page is in use."""
    args = MigrateVma(
        fault.mm, fault.vma, fault.address, fault.address + PAGE_SIZE, gpu, "device_private"
    )
    if cpu.world.kernel.mm.migrate_to_ram_ref:
        args.fault_page = fault.page
    await migrate_vma_setup(cpu, args)
    await dmirror_devmem_fault_alloc_and_copy(cpu, args)
    await migrate_vma_pages(cpu, args)
    return 0 if await migrate_vma_finalize(cpu, args) else -EAGAIN


async def dmirror_devmem_fault_alloc_and_copy(cpu: Processor, args: MigrateVma) -> None:
    """``dmirror_devmem_fault_alloc_and_copy``: the device loses its entries before the copies."""
    for at, mpfn in args.migrating():
        if mpfn.page == HOLE:
            continue
        page = await page_alloc.alloc_pages(cpu, args.mm, FrameAlloc("anon"))
        if page < 0:
            continue
        await folio_trylock(cpu, page)
        await _unmap(cpu, args, at, at + PAGE_SIZE)
        await cpu.mem(FrameCopy(mpfn.page, page, True))
        args.dst[at] = page


async def _drop(cpu: Processor, args: MigrateVma) -> None:
    """All that the device has of the range, under the driver's lock."""
    with suppress(PeerLost):
        await driver_lock(cpu, args.owner)
        await _unmap(cpu, args, args.start, args.end)
        await driver_unlock(cpu, args.owner)


async def _unmap(cpu: Processor, args: MigrateVma, start: int, end: int) -> None:
    with suppress(PeerLost):  # a device that is gone has no entries
        await cpu.port.call(args.owner, DeviceUnmap(args.mm, start, end))


def given(ground: Ground, _gpu: Gpu) -> Mapping[str, bool] | None:
    """Which way pages go in a small program; None where the driver's mistake is known already."""
    world = ground.world
    if world is None or GpuSwitches.of(world.kernel).gpu_migrate_skips == "own":
        return None
    return {"back": ground.one_in(2)}
