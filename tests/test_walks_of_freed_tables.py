"""A walk that has loaded an upper entry when the table below it is freed, for another of its pages.

The flush for a table is one of the first page that the table maps (``pte_free_tlb``).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmurace.broker.programs import Program, Step
from mmurace.explorer.sample.explore import Options, explore
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.ocxl.messages import AfuTouch
from mmurace.nodes.secondaries.ocxl.part import Link
from mmurace.nodes.secondary import Part
from mmurace.nodes.world import World
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.program import Operation
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script

MM, OTHER = "mm0", "mm1"
PAGE = 5 * PAGE_SIZE
"""Not the first that its table maps."""
BEHIND = PAGE + PAGE_SIZE
"""Behind all that the flush is for, if there is nothing yet."""
WALKERS: dict[str, tuple[str, tuple[Part, ...], Callable[..., Operation]]] = {
    "cpu1": ("cpu1", (), op.Touch),
    "unit": ("device0", (Unit("iommu0", ("device0",), (MM,), "cpu1"),), Dma),
    "unit with upper entries": (
        "device0", (Unit("iommu0", ("device0",), (MM,), "cpu1", pwc=True),), Dma,
    ),
    "link": ("link0", (Link("link0", (MM,), "cpu1"),), AfuTouch),
}  # fmt: skip


@pytest.mark.parametrize(
    ("release", "arch", "walker"),
    [
        ("v6.6.5", "x86", "cpu1"), ("v6.1", "arm64", "cpu1"), ("v5.10", "ppc", "cpu1"),
        ("v6.6.5", "x86", "unit"), ("v6.1", "arm64", "unit"),
        ("v6.6.5", "x86", "unit with upper entries"), ("v5.10", "ppc", "link"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("page", [PAGE, BEHIND])
def test_the_table_is_freed_when_the_walk_is_over(
    release: str, arch: str, walker: str, page: int
) -> None:
    node, parts, access = WALKERS[walker]
    mapped = op.Mmap(MM, PAGE, 2 * PAGE_SIZE, read=True, write=True)
    fresh = op.Mmap(OTHER, PAGE, 2 * PAGE_SIZE, read=True, write=True)
    used = op.Touch(MM, PAGE, write=True, value=1)
    programs = (
        Program("cpu0", "cpu0", [
            Step(fresh), Step(mapped), Step(used), Step(op.Munmap(MM, PAGE, 2 * PAGE_SIZE)),
            Step(op.Touch(OTHER, page, write=False)),
        ]),
        Program(node, node, [
            Step(access(MM, page, write=False), ("cpu0/2",)), *[Step(access(MM, page, False))] * 3,
        ]),
    )  # fmt: skip
    world = World(preset(release, arch), mms=(MM, OTHER), parts=parts)
    found = explore(RunSpec("t", world, 0, Script(programs)), Options(schedules=250))
    assert not found.violations, next(iter(found.violations.values())).text()
    assert not found.incomplete
