"""Loss can only delay: the first message of each kind dropped, repeated or delayed changes
nothing but the order of things, on a kernel that is right."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from broker.chaos import ChaosRules, parse_rules
from broker.exchange import Exchange
from broker.programs import Feeder, Program
from broker.schedules import RandomWalk
from broker.simulator import Simulator
from nodes.build import build_all
from nodes.world import World
from oracle.oracle import Oracle
from protocol.envelope import Envelope, Handled
from protocol.trace import TraceStep
from tests.mm_programs import several_programs, several_world
from tests.worlds import small_programs, small_world

SEEDS = (1, 2, 3)
ARCHES = ("x86", "arm64")


Make = Callable[[str, int], tuple[World, tuple[Program, ...]]]


def small(arch: str, _: int) -> tuple[World, tuple[Program, ...]]:
    """One mm, all agents, system calls."""
    return small_world(arch=arch), small_programs()


def several(arch: str, seed: int) -> tuple[World, tuple[Program, ...]]:
    """Several mms: fork, exec, exit, mremap, files, page requests."""
    return several_world("v6.6", arch), several_programs(seed, 40)


def kinds_seen(make: Make, arch: str) -> set[str]:
    """Every kind of message, replies included, that these programs send."""
    seen: set[str] = set()

    def note(envelope: Envelope, _: Handled) -> None:
        seen.add(envelope.kind)

    for seed in SEEDS:
        world, programs = make(arch, seed)
        exchange = Exchange(Feeder(programs))
        Simulator(build_all(world, seed), exchange, RandomWalk(seed), note).run(100_000)
    return seen


def run_with(make: Make, arch: str, kind: str, fault: str, seed: int) -> int:
    """Run with one fault on the first message of ``kind``; how often the rule hit."""
    after = {"min": 1, "max": 60}
    rule = {"name": "first", "match": {"kind": kind}, "fault": fault, "after": after}
    table = {"schema": 1, "rule": [rule | {"when": {"hits_max": 1}}]}
    chaos = ChaosRules(parse_rules(table, "test"), seed)
    world, programs = make(arch, seed)
    oracle = Oracle(world)
    exchange = Exchange(Feeder(programs), chaos)

    def watch(e: Envelope, handled: Handled) -> None:
        step = TraceStep(handled.n, e.id, e.src, e.dst, e.kind, e.causes, handled.records)
        assert oracle.step(step) == []

    simulator = Simulator(build_all(world, seed), exchange, RandomWalk(seed), watch)
    ending = simulator.run(deliveries_max=100_000)
    assert ending.complete, ending.waiting
    assert oracle.finish(ending) == []
    assert exchange.counts.balance(exchange.pending) == 0
    return int(chaos.report()["rules"][0]["hits"])


@pytest.mark.parametrize("fault", ["drop", "duplicate", "delay"])
@pytest.mark.parametrize("arch", ARCHES)
def test_one_fault_on_each_kind_changes_no_verdict(arch: str, fault: str) -> None:
    usual = kinds_seen(small, arch)
    assert len(usual) > 70
    rest = kinds_seen(several, arch) - usual
    assert "PageRequest" in rest
    for make, kinds in ((small, usual), (several, rest)):
        for kind in sorted(kinds):
            assert any(run_with(make, arch, kind, fault, seed) for seed in SEEDS), kind
