"""Loss can only delay: the first message of each kind dropped, repeated or delayed changes
nothing but the order of things, on a kernel that is right."""

from __future__ import annotations

import pytest

from broker.chaos import ChaosRules, parse_rules
from broker.exchange import Exchange
from broker.programs import Feeder
from broker.schedules import RandomWalk
from broker.simulator import Simulator
from nodes.build import build_all
from oracle.oracle import Oracle
from protocol.envelope import Envelope, Handled
from protocol.trace import TraceStep
from tests.worlds import run_small, small_programs, small_world

SEEDS = (1, 2, 3)
ARCHES = ("x86", "arm64")


def kinds_seen(arch: str) -> list[str]:
    """Every kind of message, replies included, that the small programs send."""
    seen: set[str] = set()

    def note(envelope: Envelope, _: Handled) -> None:
        seen.add(envelope.kind)

    for seed in SEEDS:
        run_small(small_world(arch=arch), seed, note)
    return sorted(seen)


def run_with(arch: str, kind: str, fault: str, seed: int) -> int:
    """Run with one fault on the first message of ``kind``; how often the rule hit."""
    after = {"min": 1, "max": 60}
    rule = {"name": "first", "match": {"kind": kind}, "fault": fault, "after": after}
    table = {"schema": 1, "rule": [rule | {"when": {"hits_max": 1}}]}
    chaos = ChaosRules(parse_rules(table, "test"), seed)
    world = small_world(arch=arch)
    oracle = Oracle(world)
    exchange = Exchange(Feeder(small_programs()), chaos)

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
    kinds = kinds_seen(arch)
    assert len(kinds) > 70
    for kind in kinds:
        assert any(run_with(arch, kind, fault, seed) for seed in SEEDS), kind
