"""A refused access is tried again for as long as others have a hand in it; livelock is L1's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program, Step, operation_program
from mmurace.broker.simulator import Simulator
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.messages import GuestTouch
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.translation import Attempts
from mmurace.nodes.world import World
from mmurace.oracle.oracle import Oracle
from mmurace.protocol import records as r
from mmurace.protocol.envelope import Envelope, Handled, operation_of
from mmurace.protocol.limits import FAULT_ATTEMPTS_MAX, FAULT_RETRIES_MAX
from mmurace.protocol.messages import program as op
from mmurace.protocol.trace import Ending
from tests.worlds import MM, page

STORM = FAULT_RETRIES_MAX + 20
"""So often somebody interferes."""


class Interfering:
    """``victim`` goes on, but at each message of a kind another program first does a whole step."""

    def __init__(self, victim: str, at: Callable[[Envelope], bool]) -> None:
        self.victim, self.at = victim, at
        self.until = ""
        """The operation of the others that is to end first."""
        self.done: set[str] = set()

    def pick(self, heads: list[Envelope]) -> int:
        mine = [e for e in heads if operation_program(e.id) == self.victim]
        others = [e for e in heads if operation_program(e.id) != self.victim]
        if not mine or not others:
            return 0
        wanted = mine[0]
        if not self.at(wanted) or wanted.id in self.done:
            return heads.index(wanted)
        current = operation_of(others[0].id)
        if not self.until:
            self.until = current
        if current != self.until:
            self.until = ""
            self.done.add(wanted.id)
            return heads.index(wanted)
        return heads.index(others[0])


def run(
    world: World, programs: tuple[Program, ...], schedule: Interfering
) -> tuple[dict[str, int], int, Oracle, Ending]:
    """What operations returned, how many retries there were, and the oracle."""
    oracle = Oracle(world)
    results: dict[str, int] = {}
    retries = 0

    def watch(envelope: Envelope, handled: Handled) -> None:
        nonlocal retries
        oracle.observe(envelope, handled)
        for record in handled.records:
            retries += isinstance(record, r.FaultRetry)
            if isinstance(record, r.OpEnd):
                results[record.op or operation_of(envelope.id)] = record.result

    drivers = build_all(world, 0)
    ending = Simulator(drivers, Exchange(Feeder(programs)), schedule, watch).run(500_000)
    oracle.finish(ending)
    return results, retries, oracle, ending


@pytest.mark.parametrize(
    ("release", "arch"), [("v6.6.5", "x86"), ("v6.6.5", "arm64"), ("v5.8", "x86")]
)
def test_a_guest_access_outlasts_a_storm_of_invalidations(release: str, arch: str) -> None:
    """Each comes between the sample of the sequence and ``mmu_invalidate_retry``."""
    vm = Vm("kvm0", ("vcpu0",), MM, (Slot(0, 4, 0),))
    world = World(kernel=preset(release, arch), parts=(vm,))
    storm = [Step(op.MadviseDontneed(MM, page(1), page(1)))] * STORM
    programs = (
        Program("cpu0", "cpu0", [Step(op.Mmap(MM, 0, page(4), True, True)), *storm]),
        Program("vcpu0", "vcpu0", [Step(GuestTouch(0, True, 1), ("cpu0/0",))]),
    )
    schedule = Interfering("vcpu0", lambda e: e.kind == "MmuLock")
    results, retries, oracle, ending = run(world, programs, schedule)
    assert ending.complete
    assert retries > FAULT_RETRIES_MAX
    assert results["vcpu0/0"] == 0
    assert oracle.violations == []


@pytest.mark.parametrize("ats", [False, True])
def test_so_does_a_device(ats: bool) -> None:
    """Its page is taken away again between each page request and the walk that follows."""
    unit = Unit("iommu0", ("device0",), (MM,), "cpu1", ats=ats)
    world = World(kernel=preset("v6.6.5", "arm64"), parts=(unit,))
    storm = [Step(op.MadviseDontneed(MM, 0, page(1)))] * STORM
    programs = (
        Program("cpu0", "cpu0", [Step(op.Mmap(MM, 0, page(1), True, True)), *storm]),
        Program("device0", "device0", [Step(Dma(MM, 0, True, 1), ("cpu0/0",))]),
    )
    schedule = Interfering("device0", lambda e: e.kind == "PageRequest~")
    results, retries, oracle, ending = run(world, programs, schedule)
    assert ending.complete
    assert retries > FAULT_RETRIES_MAX
    assert results["device0/0"] == 0
    assert oracle.violations == []


def test_the_same_entry_that_denies_again_and_again_ends_it() -> None:
    attempts = Attempts()
    assert all(attempts.refused("f") for _ in range(FAULT_RETRIES_MAX - 1))
    assert attempts.refused("g")
    assert all(attempts.refused("f") for _ in range(FAULT_RETRIES_MAX - 1))
    assert not attempts.refused("f")


def test_so_does_what_nothing_explains() -> None:
    attempts = Attempts()
    assert all(attempts.refused() for _ in range(FAULT_ATTEMPTS_MAX - 1))
    assert not attempts.refused()
