"""A row of ``gpus`` in a world file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from mmurace.nodes.beside import Beside, NodeCount, Problem, Site
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondaries.gpu.messages import GpuUnmirror
from mmurace.nodes.secondary import Death, Part, Task
from mmurace.nodes.world import World


class Gpu(Part, frozen=True):
    """A GPU: the mms that it mirrors as a whole from the start, and who serves its faults."""

    MMS: ClassVar[tuple[str, ...]] = ("mms",)
    CPUS: ClassVar[tuple[str, ...]] = ("fault_cpu",)

    fault_cpu: str
    mms: tuple[str, ...] = ()

    def subscribed(self, kernel: Kernel) -> tuple[str, ...]:  # noqa: ARG002
        """What it mirrors from the start."""
        return self.mms

    def death(self, node: str, world: World) -> Death | None:
        """It is gone at once; the driver then closes its mirrors."""
        closes = tuple(Task(self.fault_cpu, GpuUnmirror(mm, node)) for mm in world.mms)
        return Death(closes, at_once=True)

    def problems(self, world: World) -> Iterator[tuple[str, str, str]]:
        """A kernel without interval notifiers has no driver for it."""
        if not world.kernel.mm.interval_notifiers:
            problem = f"has no driver in {world.kernel.release}, which has no interval notifiers"
            yield "name", problem, "v5.5 or later"


# ---- beside a workload -------------------------------------------------------------------------


class Gpus(Beside, frozen=True):
    """GPUs that mirror all of the mm (HMM)."""

    gpus: NodeCount = 0

    def problems(self, kernel: Kernel | None) -> Iterator[Problem]:
        """A kernel without interval notifiers has no driver for it."""
        if self.gpus and kernel is not None and not kernel.mm.interval_notifiers:
            yield "gpus", f"is {self.gpus} in {kernel.release}", "0, or v5.5"

    def rows(self, site: Site) -> Iterator[Part]:
        """Each mirrors it from the start."""
        for n in range(self.gpus):
            yield Gpu(f"gpu{n}", site.cpu, (site.mm,))
