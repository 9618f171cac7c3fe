"""The oracle's part of a state: all that it needs to judge what may still come."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmurace.broker.programs import Program, Step
from mmurace.explorer.exhaustive import oracle_table as oracle_state
from mmurace.explorer.exhaustive.node_tables import CLOSES, judged_by_order, rival_bits
from mmurace.explorer.exhaustive.oracle_table import see
from mmurace.explorer.exhaustive.search import Budget, explore_stateful
from mmurace.explorer.exhaustive.world_state import model_of
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.world import World
from mmurace.protocol.messages import program as op
from mmurace.protocol.records import AccessTrapped, Fill, GuestEnter, InvalidateDone, TagFree
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script
from tests.test_futures import CATALOGUE, compare, in_bursts, walk
from tests.test_symmetry import table_of
from tests.worlds import MM, page


def copied_from_what_is_gone() -> RunSpec:
    """A device keeps a page that is unmapped, and is told so when that may be over already.

    Its unit drops its own copy at once, so what the device has was made from one that is gone.
    """
    world = World(
        kernel=preset("v6.2", "x86", {"ats_wait": False}), cpus=("cpu0",), levels=1,
        parts=(Unit("iommu0", ("device0",), (MM,), "cpu0", ats=True),), evict_one_in=1,
    )  # fmt: skip
    cpu = [
        Step(op.Mmap(MM, 0, page(1), True, True)),
        Step(op.Touch(MM, 0, True, 1)),
        Step(op.Munmap(MM, 0, page(1))),
    ]
    device = [Step(Dma(MM, 0, True, 2), ("cpu0/1",))]
    programs = (Program("cpu0", "cpu0", cpu), Program("device0", "device0", device))
    return RunSpec("t", world, 0, Script(programs))


def granted_to_two() -> RunSpec:
    """Two ask for the same page: whose unlock ends the time in which refusals are justified?"""
    world = World(
        kernel=preset("v6.2", "arm64"), levels=1,
        parts=(Unit("iommu0", ("device0",), (MM,), "cpu1"),),
    )  # fmt: skip
    cpu = [Step(op.Mmap(MM, 0, page(1), True, False)), Step(op.Touch(MM, 0, False))]
    device = [Step(Dma(MM, 0, False), ("cpu0/0",))]
    programs = (Program("cpu0", "cpu0", cpu), Program("device0", "device0", device))
    return RunSpec("t", world, 0, Script(programs))


def overlapping(pwc: bool = False) -> RunSpec:
    """A wide invalidation waits for a device's access, and a narrow one of another page does not.

    What the wide one has dropped is gone with the first acknowledgement that covers it.
    """
    unit = Unit("iommu0", ("device0", "device1"), (MM,), "cpu2", pwc=pwc)
    world = World(
        kernel=preset("v6.6.5"), cpus=("cpu0", "cpu1", "cpu2"), mms=(MM, "mm1"), parts=(unit,)
    )
    first = [Step(op.Mmap(MM, 0, page(2), True, True))]
    first += [Step(op.Touch(MM, page(at), True, 1)) for at in range(2)]
    ready = ("cpu0/2", "device1/0")
    programs = (
        Program("cpu0", "cpu0", [*first, Step(op.Fork(MM, "mm1"), ready)]),
        Program("cpu1", "cpu1", [Step(op.MadviseDontneed(MM, page(1), page(1)), ready)]),
        Program("device0", "device0", [Step(Dma(MM, 0, False), ready)] * 8),
        Program("device1", "device1", [Step(Dma(MM, page(1), True, 2), ("cpu0/2",))]),
    )
    return RunSpec("t", world, 0, Script(programs))


def kept_and_told(spec: RunSpec, seeds: int) -> int:
    """The table says what an oracle says that has read it all; how often something was dropped.

    That is, dropped in a delivery that did not acknowledge it: then the state is another one.
    """
    model, table = model_of(spec), table_of(spec.world)
    draining = 0
    for seed in range(seeds):
        state, whole, before, was = 0, table.oracle(), 0, False
        for n, (_, message, move) in enumerate((walk, in_bursts)[seed % 2](model, seed), 1):
            state, found = table.step(state, message, move)
            broken = [violation.identity() for violation in see(whole, n, message, move)]
            assert [v.identity() for v in found] == broken, message.id
            assert table.frozen[state] == table.freeze(whole), message.id
            drops = any(whole.state.draining.values())
            if drops and not was:
                assert state != before
                draining += 1
            before, was = state, drops
    return draining


@pytest.mark.parametrize("pwc", [False, True])
def test_what_is_dropped_and_not_acknowledged_is_part_of_a_state(
    monkeypatch: pytest.MonkeyPatch, pwc: bool
) -> None:
    monkeypatch.setattr(oracle_state, "LIVE_MAX", 0)
    assert kept_and_told(overlapping(pwc), 120) > 3


@pytest.mark.parametrize("eager", [True, False])
def test_what_was_made_from_what_is_gone_is_judged(eager: bool) -> None:
    found = explore_stateful(copied_from_what_is_gone(), Budget(), eager=eager)
    assert found.verdict.outcome == "violated"


@pytest.mark.parametrize(
    "spec", [copied_from_what_is_gone(), granted_to_two(), overlapping(), overlapping(True)]
)
def test_states_that_are_told_apart_by_what_they_can_judge(spec: RunSpec) -> None:
    """Which of two independent deliveries comes first does not change what the oracle knows."""
    assert compare(spec, 60) > 100


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_state_keeps_all_that_matters(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the table says is what an oracle says that has read it all.

    Each state is built again from whatever led to it first, not from what led to it here.
    """
    monkeypatch.setattr(oracle_state, "LIVE_MAX", 0)
    for case in CATALOGUE[name].kernels:
        spec = replace(CATALOGUE[name].run(case.name), chaos=None)
        model, table = model_of(spec), table_of(spec.world)
        for seed, wander in enumerate((walk, in_bursts)):
            state, whole = 0, table.oracle()
            for n, (_, message, move) in enumerate(wander(model, seed), 1):
                state, found = table.step(state, message, move)
                broken = [violation.identity() for violation in see(whole, n, message, move)]
                assert [v.identity() for v in found] == broken, (case.name, message.id)
                assert table.frozen[state] == table.freeze(whole), (case.name, message.id)


def test_whoever_takes_a_tag_back_is_ordered_with_what_is_under_it() -> None:
    """Rule O asks then what was installed under it, and not dropped."""
    freed = rival_bits(judged_by_order("ContextIdFree", "Exit", [TagFree("pid1", MM)]))
    filled = Fill("xsl", "pid1", 0, 0, "xsl:link0/0.3", "link0/0.3")
    dropped = InvalidateDone("xsl", "pid1", 0, page(1), ("xsl:link0/0.3",))
    for record in (filled, dropped):
        assert judged_by_order("PteWalk~", "AfuTouch", [record]) & freed


def test_whatever_uses_the_vmcs_is_ordered_with_what_it_is_judged_by() -> None:
    """S1 asks at both whether the frame in the VMCS was freed before."""
    for record in (GuestEnter("vmcs:vcpu0/0.1"), AccessTrapped(True, 3)):
        assert judged_by_order("SpteLoad~", "GuestApic", [record]) & CLOSES
