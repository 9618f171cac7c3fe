"""A row of ``links`` in a world file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from mmurace.nodes.beside import Beside, NodeCount, Problem, Site
from mmurace.nodes.ground import Ground
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondaries.ocxl.variant import OcxlSwitches
from mmurace.nodes.secondary import Part
from mmurace.nodes.world import World


class Link(Part, frozen=True):
    """An OpenCAPI link: the mms attached to it from the start, and who serves its interrupts."""

    MMS: ClassVar[tuple[str, ...]] = ("mms",)
    CPUS: ClassVar[tuple[str, ...]] = ("fault_cpu",)

    mms: tuple[str, ...] = ()
    fault_cpu: str = ""

    def contexts(self) -> tuple[tuple[int, str], ...]:
        """(PASID, mm) of the contexts that are there from the start."""
        return tuple(enumerate(self.mms, 1))

    def subscribed(self, kernel: Kernel) -> tuple[str, ...]:
        """Those mms, if its driver registers a notifier."""
        return self.mms if registers_notifier(kernel) else ()

    def told(self, kernel: Kernel) -> bool:
        """Unless it snoops the bus."""
        return OcxlSwitches.of(kernel).ocxl_link == "atsd"


def first_context_ids(world: World) -> dict[str, int]:
    """PIDs at the start: of the mms that are attached to some link."""
    links = world.parts_of(Link)
    attached = (mm for mm in world.mms if any(mm in link.mms for link in links))
    return {mm: pid for pid, mm in enumerate(attached, 1)}


def registers_notifier(kernel: Kernel) -> bool:
    """Whether ``ocxl_link_add_pe`` registers one: from v5.11, if the link has ATSD registers."""
    switches = OcxlSwitches.of(kernel)
    return switches.ocxl_notifier and switches.ocxl_link == "atsd"


# ---- beside a workload -------------------------------------------------------------------------


class Links(Beside, frozen=True):
    """Links stand in for the devices of other machines."""

    devices: NodeCount = 1
    """What other machines have of them."""
    links: NodeCount = 0
    """0: as many as ``devices``."""

    def problems(self, kernel: Kernel | None) -> Iterator[Problem]:
        """Only POWER has links."""
        if self.links and kernel is not None and kernel.machine != "ppc":
            yield "links", f"is {self.links} on {kernel.machine}", "0, or arch = ppc"

    def rows(self, site: Site) -> Iterator[Part]:
        """Links that the mm is attached to."""
        for n in range(self.links or self.devices):
            yield Link(f"{site.device or 'link'}{n}", (site.mm,), site.cpu)


# ---- in small worlds ---------------------------------------------------------------------------


def row(ground: Ground, number: int) -> Link:
    """A link; processes are attached to it from the start, or attach themselves."""
    mms: tuple[str, ...] = ground.one_of([(ground.mm,), (ground.mm,), ground.mms, ()])
    return Link(f"link{number}", mms, ground.cpus[-1])


def attached(ground: Ground, link: Link) -> Mapping[str, Any] | None:
    """Any process: whoever is not attached gets an error."""
    return {"mm": ground.one_of(link.mms or ground.mms)}
