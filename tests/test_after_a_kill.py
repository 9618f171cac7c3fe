"""What is forked into the place of a process that was killed, and a device that goes on."""

from __future__ import annotations

import pytest

from mmurace.broker.programs import Program, Step
from mmurace.explorer.sample.explore import Exploration, Options, explore
from mmurace.nodes.kernel import do_wp_page
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.world import World
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.memory import PageGet
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script

PARENT, CHILD, PAGE = "mm0", "mm1", 8 * PAGE_SIZE


def explored(*programs: Program) -> Exploration:
    """A device is the child's."""
    unit = Unit("iommu0", ("device0",), (CHILD,), "cpu2")
    cpus = ("cpu0", "cpu1", "cpu2")
    world = World(preset("v6.6.5"), mms=(PARENT, CHILD), cpus=cpus, frames=64, parts=(unit,))
    return explore(RunSpec("t", world, 0, Script(programs)), Options(schedules=60, stop_on=""))


def test_a_page_of_the_next_process_takes_the_place_of_none() -> None:
    """One access of a device faults in both (S9): the worker unmaps the first, which is dead."""
    forks = [Step(op.Fork(PARENT, CHILD))] * 4
    begun = ("cpu0/1",)
    mapped = op.Mmap(PARENT, PAGE, PAGE_SIZE, read=True, write=True)
    dma = Dma(CHILD, PAGE, write=True, value=1)
    found = explored(
        Program("cpu0", "cpu0", [Step(op.OomReap(CHILD)), Step(mapped), *forks]),
        Program("cpu1", "cpu1", [Step(op.Fork(PARENT, CHILD), begun), *forks]),
        Program("device0", "device0", [Step(dma, begun), *[Step(dma)] * 4]),
    )
    assert not found.violations, next(iter(found.violations.values())).text()


def test_a_page_fault_that_forgets_to_copy_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(do_wp_page, "FrameCopy", lambda source, _target: PageGet(source, pin=False))
    found = explored(
        Program("cpu0", "cpu0", [
            Step(op.Mmap(PARENT, PAGE, PAGE_SIZE, read=True, write=True)),
            Step(op.Touch(PARENT, PAGE, write=True, value=1)), Step(op.Fork(PARENT, CHILD)),
            Step(op.Touch(CHILD, PAGE, write=True, value=2)),
        ]),
    )  # fmt: skip
    assert "S9" in {violation.rule for violation in found.violations.values()}
