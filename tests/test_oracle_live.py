"""The oracle on traces of real nodes: good kernels stay clean, and every linearisation agrees."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program, Step
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.messages import GuestApic, GuestTouch
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.world import World
from mmurace.oracle.oracle import Oracle
from mmurace.oracle.sometimes import Condition, workload_conditions
from mmurace.oracle.state.trace import step_of
from mmurace.oracle.verdict import Verdict
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as ops
from mmurace.protocol.trace import Ending, TraceStep
from tests.oracle_story import identities, shuffled

BASE, PAGES, APIC_GFN = 0x10000, 8, 0xFE
END = BASE + PAGES * PAGE_SIZE
"""The APIC-access page; nobody unmaps it."""
OPERATIONS = 25


def world(release: str, arch: str = "x86", **switches: object) -> World:
    """A world with a device and a guest on one mm, where batches of the gather are small."""
    slots = (Slot(0, PAGES, BASE), Slot(APIC_GFN, 1, END, apic=arch == "x86"))
    return World(
        kernel=preset(release, arch, switches or None),
        parts=(Unit("iommu0", ("dev0",), ("mm0",), "cpu1"), Vm("kvm0", ("vcpu0",), "mm0", slots)),
        entries=32, frames=48, gather_batch=1,
    )  # fmt: skip


def cpu_steps(rng: random.Random) -> Iterator[Step]:
    for _ in range(OPERATIONS):
        at = rng.randrange(PAGES)
        address, length = BASE + at * PAGE_SIZE, rng.randint(1, PAGES - at) * PAGE_SIZE
        touch = ops.Touch("mm0", address, rng.random() < 0.5, 1)
        apic = ops.MigratePages("mm0", END, PAGE_SIZE)
        others: list[ops.Operation] = [
            ops.Munmap("mm0", address, length), ops.MadviseDontneed("mm0", address, length),
            ops.Mmap("mm0", address, length, True, True),
            ops.Mprotect("mm0", address, length, True, rng.random() < 0.5),
            ops.MigratePages("mm0", address, length), apic, apic,
        ]  # fmt: skip
        yield Step(rng.choice([touch] * 4 + others))


def guest_steps(rng: random.Random, arch: str) -> Iterator[Step]:
    for _ in range(OPERATIONS):
        gpa = rng.choice([rng.randrange(PAGES), APIC_GFN]) * PAGE_SIZE
        apic = arch == "x86" and gpa == APIC_GFN * PAGE_SIZE
        write = rng.random() < 0.5
        yield Step(GuestApic(gpa, write) if apic else GuestTouch(gpa, write, 3))


def programs(seed: int, arch: str) -> list[Program]:
    rng = random.Random(seed)
    first = [
        Step(ops.Mmap("mm0", BASE, (PAGES + 1) * PAGE_SIZE, True, True)),
        Step(ops.Touch("mm0", END, True, 1)),
    ]
    dmas = [
        Step(Dma("mm0", BASE + rng.randrange(PAGES) * PAGE_SIZE, rng.random() < 0.5, 2))
        for _ in range(OPERATIONS)
    ]
    return [
        Program("a", "cpu0", [*first, *cpu_steps(rng)]),
        Program("b", "cpu1", list(cpu_steps(rng))),
        Program("d", "dev0", dmas),
        Program("v", "vcpu0", list(guest_steps(rng, arch))),
    ]


def trace(of: World, seed: int) -> tuple[list[TraceStep], Ending]:
    """The trace of one run of the simulator."""
    steps: list[TraceStep] = []

    def observe(envelope: Envelope, handled: Handled) -> None:
        steps.append(step_of(envelope, handled))

    exchange = Exchange(Feeder(programs(seed, of.kernel.machine)))
    ending = Simulator(build_all(of, seed), exchange, RandomWalk(seed), observe).run(200_000)
    return steps, ending


def judge(
    of: World, steps: list[TraceStep], ending: Ending, conditions: tuple[Condition, ...] = ()
) -> Verdict:
    oracle = Oracle(of, conditions)
    for step in steps:
        oracle.step(step)
    oracle.finish(ending)
    return oracle.verdict(ending)


@pytest.mark.parametrize("arch", ["x86", "arm64"])
@pytest.mark.parametrize("release", ["v5.11", "v6.2", "v6.5", "v6.6.5"])
def test_kernels_without_the_bugs_are_never_flagged(release: str, arch: str) -> None:
    of = world(release, arch)
    if arch == "arm64" and release != "v6.6.5":
        of = world(release, arch, btm=True)
    for seed in range(4):
        verdict = judge(of, *trace(of, seed), workload_conditions(of, 1, 1))
        assert verdict.outcome == "held", (seed, verdict.reasons, verdict.violations[:1])


def test_a_flush_after_the_free_is_found_on_the_iotlb() -> None:
    of = world("v5.8", gather_calls_ir=False)
    found = judge(of, *trace(of, 0)).violations
    assert ("O", "iommu0", "iotlb") in {(v.rule, v.agent, v.cache) for v in found}


@pytest.mark.parametrize(
    "of",
    [world("v5.8", gather_calls_ir=False), world("v5.7"), world("v6.6.5")],
    ids=["v5.8-", "v5.7", "v6.6.5"],
)
def test_every_linearisation_of_a_real_trace_agrees(of: World) -> None:
    steps, ending = trace(of, 1)
    wanted = judge(of, steps, ending, workload_conditions(of, 3, 1))
    for seed in range(4):
        other = judge(of, shuffled(steps, seed), ending, workload_conditions(of, 3, 1))
        assert other.outcome == wanted.outcome
        assert identities(other.violations) == identities(wanted.violations)
        assert other.how.met == wanted.how.met
