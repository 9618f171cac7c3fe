"""The SVA drivers' notifier callback and I/O page faults.

drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3-sva.c, drivers/iommu/intel/svm.c: a bound mm's page
table is walked by the unit itself, so all that the driver does is to queue invalidations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nodes.kernel.context import Processor
from nodes.kernel.variant import Kernel
from protocol.messages.iommu import IotlbInvalidate


def command_queue(unit: str) -> str:
    """The stream of a unit's command queue: commands take effect in the order queued."""
    return f"{unit}.cmdq"


async def invalidate_secondary_tlbs(
    cpu: Processor, unit: str, mm: str, start: int, end: int
) -> None:
    """``arm_smmu_mm_arch_invalidate_secondary_tlbs`` (v6.6), ``..._invalidate_range`` before.

    Queues the command and its sync, and waits for the sync.  May be called under the PTL.
    """
    await cpu.port.call(unit, IotlbInvalidate(mm, start, end), command_queue(unit))


def notifier_ops(kernel: Kernel) -> Mapping[str, Any]:
    """One op: a v6.6 kernel refuses a subscriber that has this one and start or end as well."""
    name = "arch_invalidate_secondary_tlbs" if kernel.arch_secondary_flush else "invalidate_range"
    return {name: invalidate_secondary_tlbs}
