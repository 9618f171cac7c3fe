"""IOMMUs that walk the mm's own table (SVA), and the devices behind them (drivers/iommu)."""

from __future__ import annotations

from mmurace.nodes.node import Node
from mmurace.nodes.pwc import PWC
from mmurace.nodes.secondaries.iommu_sva import driver
from mmurace.nodes.secondaries.iommu_sva.device import Device
from mmurace.nodes.secondaries.iommu_sva.messages import (
    DeviceRemove,
    Dma,
    InvalidateRequest,
    IotlbInvalidate,
    PageRequest,
)
from mmurace.nodes.secondaries.iommu_sva.part import Devices, Unit, bound, by_hotplug_alone, row
from mmurace.nodes.secondaries.iommu_sva.unit import Iommu
from mmurace.nodes.secondary import Cache, Secondary
from mmurace.protocol.messages.processor import Tlbi


def node_class(unit: Unit, name: str) -> type[Node]:
    """The unit itself, or a device."""
    return Iommu if name == unit.name else Device


SVA = Secondary(
    name="sva",
    key="units",
    named_by={"unit": lambda unit: (unit.name,), "device": lambda unit: unit.devices},
    idle=frozenset({"DeviceRemove"}),
    points={"upper_entry_kept": frozenset()},
    place=0,
    part=Unit,
    node_class=node_class,
    caches=(
        Cache(
            "iotlb", "shared", filled_by="IOMMU page walk", held_in="its IOTLB",
            dropped_by=(IotlbInvalidate,), heard=(Tlbi,),
        ),
        Cache(
            PWC, "shared", upper=True, held_in="its paging-structure cache",
            dropped_by=(IotlbInvalidate,), heard=(Tlbi,),
        ),
        Cache(
            "atc", "shared", source="iotlb", filled_by="ATS translation request",
            held_in="its ATC",
            dropped_by=(InvalidateRequest,),
        ),
    ),
    ops=driver.notifier_ops,
    work={PageRequest: driver.iommu_sva_handle_iopf},
    calls={DeviceRemove: driver.iommu_release_device},
    accesses={Dma: lambda unit: unit.devices},
    drawn={Dma: lambda _unit, d: Dma(d.mm, d.address, d.write, d.value)},
    rights="dma",
    beside=Devices,
    row=row,
    given={Dma: bound, DeviceRemove: by_hotplug_alone},
    machines=("x86", "arm64"),
)  # fmt: skip
"""The declaration."""
