"""A row of ``units`` in a world file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import msgspec

from mmurace.nodes.beside import Beside, NodeCount, OwnerCount, Problem, Site, shared_out, too_many
from mmurace.nodes.ground import Ground
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondaries.iommu_sva.messages import DeviceRemove
from mmurace.nodes.secondaries.iommu_sva.variant import SvaSwitches
from mmurace.nodes.secondary import Death, Part, Task
from mmurace.nodes.world import World


class Unit(Part, frozen=True):
    """An IOMMU, the devices behind it, the mms bound to it (SVA), and the CPU of its workqueue."""

    MMS: ClassVar[tuple[str, ...]] = ("mms",)
    CPUS: ClassVar[tuple[str, ...]] = ("iopf_cpu",)

    devices: tuple[str, ...]
    mms: tuple[str, ...]
    iopf_cpu: str
    ats: bool = False
    """Its devices have translation caches of their own (ATC), filled by translation requests."""
    pwc: bool = False
    """Its walker keeps upper entries (a paging-structure cache)."""

    def nodes(self) -> tuple[str, ...]:
        """The unit and its devices."""
        return (self.name, *self.devices)

    def subscribed(self, kernel: Kernel) -> tuple[str, ...]:  # noqa: ARG002
        """What is bound."""
        return self.mms

    def holders(self) -> Mapping[str, tuple[str, ...]]:
        """The unit; with ATS its devices too."""
        return {"iotlb": (self.name,)} | ({"atc": self.devices} if self.ats else {})

    def told(self, kernel: Kernel) -> bool:
        """Unless it takes part in broadcasts."""
        return not SvaSwitches.of(kernel).btm

    def death(self, node: str, world: World) -> Death | None:  # noqa: ARG002
        """A device is gone at once; the hotplug worker then takes it off its unit's list."""
        if node == self.name:
            return None
        return Death((Task(self.iopf_cpu, DeviceRemove(self.name, node)),), at_once=True)

    def smaller(self, used: Collection[str]) -> Iterator[Part | None]:
        """Without it if no device is used, else with one device less."""
        if not any(device in used for device in self.devices):
            yield None
            return
        for device in self.devices:
            if device not in used:
                left = tuple(other for other in self.devices if other != device)
                yield msgspec.structs.replace(self, devices=left)


# ---- beside a workload -------------------------------------------------------------------------


class Devices(Beside, frozen=True):
    """Devices are shared out evenly among the units; without any there is no unit either."""

    iommus: OwnerCount = 1
    devices: NodeCount = 1
    """Behind all units together."""
    ats: bool = False
    """Devices have translation caches of their own."""

    def problems(self, kernel: Kernel | None) -> Iterator[Problem]:  # noqa: ARG002
        """Every unit has a device."""
        yield from too_many("iommus", "devices", self)

    def rows(self, site: Site) -> Iterator[Part]:
        """Units that are bound to the mm; POWER has none."""
        devices = 0 if site.kernel.machine == "ppc" else self.devices
        for n, behind in enumerate(shared_out("device", devices, self.iommus)):
            yield Unit(f"iommu{n}", behind, (site.mm,), site.cpu, self.ats)


# ---- in small worlds ---------------------------------------------------------------------------


def row(ground: Ground, number: int) -> Unit:
    """A unit with one or two devices, bound to one mm or to all, with and without caches."""
    first = 2 * number
    devices = [f"device{first}"] + [f"device{first + 1}"] * ground.one_in(6)
    mms = ground.mms if ground.one_in(4) else (ground.mm,)
    ats, pwc = ground.one_in(3), ground.one_in(4)
    return Unit(f"iommu{number}", tuple(devices), mms, ground.cpus[-1], ats, pwc)


def bound(ground: Ground, unit: Unit) -> Mapping[str, Any] | None:
    """A mm that it is bound to."""
    return {"mm": ground.one_of(unit.mms)}


def by_hotplug_alone(_ground: Ground, _unit: Unit) -> Mapping[str, Any] | None:
    """The worker is told by a device that is gone: no program can ask for it."""
    return None
