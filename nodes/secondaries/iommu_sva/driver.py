"""drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3-sva.c, drivers/iommu/intel/svm.c,
drivers/iommu/iommu-sva.c and drivers/iommu/iommu.c: shared virtual addressing.

A bound mm's page table is walked by the unit itself, so all that a driver does is to queue
invalidations, and to serve I/O page faults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmurace.nodes.kernel import memory
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondaries.decode import decode, decode_atc, page_by_page, pages_left
from mmurace.nodes.secondaries.iommu_sva.messages import (
    AtcInvalidate,
    DetachDevice,
    DeviceRemove,
    IotlbInvalidate,
    PageRequest,
    SurpriseDown,
)
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.iommu_sva.variant import SvaSwitches
from mmurace.nodes.world import World
from mmurace.protocol.limits import LOOP_COMMANDS_MAX, PAGE_SHIFT, PAGE_SIZE
from mmurace.protocol.messages.memory import Flag
from mmurace.protocol.records import LoopCut


def command_queue(unit: str) -> str:
    """The stream of a unit's command queue: commands take effect in the order queued."""
    return f"{unit}.cmdq"


async def arm_smmu_mm_arch_invalidate_secondary_tlbs(
    cpu: Processor, unit: str, mm: str, start: int, end: int
) -> None:
    """``arm_smmu_mm_arch_invalidate_secondary_tlbs`` (v6.6), ``..._invalidate_range`` before.

    Queues commands and their sync, and waits for the sync.  May be called under the PTL.

    cpu0                                unit                device, through its ATC
    clear pte
    IOTLB command, sync                 drops its entry
    ATC command, sync                                       drops its entry
                                        [Required: in this order, or the device asks in between
                                        and is given the unit's old entry]
    """
    steps = [arm_smmu_tlb_inv_range_asid, arm_smmu_atc_inv_domain]
    if SvaSwitches.of(cpu.world.kernel).ats_order == "atc_first":
        steps.reverse()
    for step in steps:
        await step(cpu, unit, mm, start, end)


async def arm_smmu_tlb_inv_range_asid(
    cpu: Processor, unit: str, mm: str, start: int, end: int
) -> None:
    """``arm_smmu_tlb_inv_range_asid``.

    A unit that sees the CPUs' broadcasts needs no command for them (``ARM_SMMU_FEAT_BTM``).
    """
    if SvaSwitches.of(cpu.world.kernel).btm and SvaSwitches.of(cpu.world.kernel).btm_skips_cmd:
        return
    kernel = cpu.world.kernel
    leaf = SvaSwitches.of(kernel).sec_inv_scope == "leaf_only"
    for first, last in _tlbi_commands(cpu, start, end):
        await cpu.port.call(unit, IotlbInvalidate(mm, first, last, leaf), command_queue(unit))
    left = pages_left(start, end, _pages_max(cpu))
    if left and SvaSwitches.of(kernel).sva_decoder == "per_page_loop":
        cpu.port.emit(LoopCut(unit, mm, start, end, left, cpu.port.operation))
        rest = IotlbInvalidate(mm, start + _pages_max(cpu) * PAGE_SIZE, end, leaf)
        await cpu.port.call(unit, rest, command_queue(unit))


def _tlbi_commands(cpu: Processor, start: int, end: int) -> tuple[tuple[int, int], ...]:
    """What the range becomes for this unit."""
    switches = SvaSwitches.of(cpu.world.kernel)
    form = decode if switches.range_inv else page_by_page
    return tuple(form(switches.sva_decoder, start, end, _pages_max(cpu)))


def _pages_max(cpu: Processor) -> int:
    """After how many commands a loop over pages is cut off: at the end of the address space."""
    return min(cpu.world.address_end() >> PAGE_SHIFT, LOOP_COMMANDS_MAX)


async def arm_smmu_atc_inv_domain(cpu: Processor, unit: str, mm: str, start: int, end: int) -> None:
    """``arm_smmu_atc_inv_domain``; nothing to do if no device has ATS enabled."""
    if not unit_named(cpu.world, unit).ats:
        return
    kernel = cpu.world.kernel
    for first, last in decode_atc(SvaSwitches.of(kernel).sva_decoder, start, end, _pages_max(cpu)):
        command = AtcInvalidate(mm, first, last)
        if SvaSwitches.of(kernel).ats_wait:
            await cpu.port.call(unit, command, command_queue(unit))
        else:
            cpu.port.tell(unit, command, command_queue(unit))


def notifier_ops(kernel: Kernel) -> Mapping[str, Any]:
    """One op: a v6.6 kernel refuses a subscriber that has this one and start or end as well.

    And, to v4.12, ``intel_invalidate_page`` or ``mn_invalidate_page``: the same for one page.
    """
    if kernel.arch.arch_secondary_flush:
        return {"arch_invalidate_secondary_tlbs": arm_smmu_mm_arch_invalidate_secondary_tlbs}
    ops = {"invalidate_range": arm_smmu_mm_arch_invalidate_secondary_tlbs}
    if kernel.mm.rmap_notifies != "range":
        ops["invalidate_page"] = arm_smmu_mm_arch_invalidate_secondary_tlbs
    return ops


async def iommu_release_device(cpu: Processor, operation: DeviceRemove) -> int:
    """``iommu_release_device`` (drivers/iommu/iommu.c), ``arm_smmu_release_device``: 0.

    The device is gone first (surprise removal), and its ATC with it; the hotplug worker comes
    after that (``pciehp_ist``, ``pciehp_unconfigure_device``).  ATC invalidations that are under
    way complete by a time-out, those to come leave it out.

    cpu0 (invalidate)                   unit                    cpu1 (hotplug worker)
    ATC command                         passes it on
                                        no answer ever          detach
    sync                                times out               [Required: not an endless wait]
    """
    await cpu.port.gather([(operation.device, SurpriseDown())])
    await cpu.port.call(operation.unit, DetachDevice(operation.device))
    return 0


async def iommu_sva_handle_iopf(cpu: Processor, message: PageRequest) -> Flag:
    """``iommu_sva_handle_iopf`` (drivers/iommu/iommu-sva.c): the fault of a device."""
    result = await memory.handle_mm_fault(cpu, message.mm, message.address, message.write)
    await cpu.get_signal(message.mm)
    return Flag(result == 0)


def unit_named(world: World, name: str) -> Unit:
    """The unit of an ``iommu`` node."""
    return next(unit for unit in world.parts_of(Unit) if unit.name == name)
