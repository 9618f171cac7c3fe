"""Reclaim beside everything else: a correct kernel is not flagged, and no store is lost."""

from __future__ import annotations

import pytest

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program, Step
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.world import World
from mmurace.oracle.oracle import Oracle
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.messages import program as op
from mmurace.protocol.records import Access, PageWritten
from tests.worlds import APIC, MM, SETUP, WHOLE_RANGES, page, small_programs

KERNELS = [
    ("v4.15", "x86", {"apic_reload": "invalidate_range", **WHOLE_RANGES}),
    ("v5.8", "x86", WHOLE_RANGES),
    ("v6.2", "x86", {}),
    ("v6.2", "arm64", {}),
    ("v6.6.5", "x86", {}),
    ("v6.6.5", "arm64", {"batched_pending_flush": "flush_tlb_mm"}),
]


def world(release: str, arch: str, switches: dict[str, object]) -> World:
    """The small world with a processor more, for kswapd."""
    slots = (Slot(0, 16, 0), Slot(32, 1, APIC, arch == "x86"))
    return World(
        kernel=preset(release, arch, switches),
        cpus=("cpu0", "cpu1", "cpu2"),
        parts=(Unit("iommu0", ("device0",), (MM,), "cpu1"), Vm("kvm0", ("vcpu0",), MM, slots)),
        gather_batch=2,
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("release", "arch", "switches"), KERNELS)
def test_reclaim_beside_everything_else(
    release: str, arch: str, switches: dict[str, object], seed: int
) -> None:
    here = world(release, arch, switches)
    kswapd = Program("kswapd", "cpu2", [Step(op.Kswapd(3), SETUP) for _ in range(12)])
    exchange = Exchange(Feeder((*small_programs(arch), kswapd)))
    oracle = Oracle(here)
    written: list[PageWritten] = []

    def observe(envelope: Envelope, handled: Handled) -> object:
        written.extend(r for r in handled.records if isinstance(r, PageWritten))
        return oracle.observe(envelope, handled)

    ending = Simulator(build_all(here, seed), exchange, RandomWalk(seed), observe).run(200_000)
    oracle.finish(ending)
    assert ending.complete
    assert not oracle.violations, [v.text() for v in oracle.violations]
    assert written


def test_what_was_swapped_out_comes_back() -> None:
    here = World(kernel=preset("v6.6.5"), cpus=("cpu0", "cpu1"), mms=("mm0", "mm1"))
    steps: list[op.Operation] = [
        op.Mmap(MM, 0, page(2), True, True),
        op.Touch(MM, 0, True, 7),
        op.Kswapd(1),
        op.Fork(MM, "mm1"),
        op.Touch(MM, 0, True, 8),
        op.Touch("mm1", 0, False),
        op.Touch(MM, 0, False),
        op.Kswapd(4),
        op.Touch(MM, 0, False),
        op.Touch("mm1", 0, False),
        op.Exit("mm1"),
        op.Exit(MM),
    ]
    exchange = Exchange(Feeder((Program("cpu0", "cpu0", [Step(o) for o in steps]),)))
    seen: list[int] = []

    def observe(_: Envelope, handled: Handled) -> object:
        seen.extend(r.value for r in handled.records if isinstance(r, Access) and not r.write)
        return None

    drivers = build_all(here, 1)
    assert Simulator(drivers, exchange, RandomWalk(1), observe).run(10_000).complete
    assert seen == [7, 8, 8, 7]
