"""At the end of a run: the model memory is the memory, and nothing is open, held or stale."""

from __future__ import annotations

import pytest

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.memory import Memory
from mmurace.nodes.world import MEMORY, World
from mmurace.oracle.oracle import Oracle
from mmurace.protocol.messages import program as op
from mmurace.scenarios.mixed import Mixed
from tests.mm_programs import several_programs, several_world
from tests.observed import beside
from tests.worlds import MM, page, small_world


def several(seed: int) -> tuple[World, tuple[Program, ...]]:
    return several_world("v6.6.5", "x86"), several_programs(seed, 40)


def mixed(seed: int) -> tuple[World, tuple[Program, ...]]:
    world = Mixed().world(preset("v6.6.5", "arm64"))
    return world, Mixed().programs(world, seed)


def reclaiming(seed: int) -> tuple[World, tuple[Program, ...]]:
    setup: list[op.Operation] = [op.Mmap(MM, 0, page(4), True, True)]
    setup += [op.Touch(MM, page(i), True, 100 + i) for i in range(4)]
    loop = [op.Kswapd(2), op.Touch(MM, page(1), False), op.Touch(MM, page(2), True, 7)] * 6
    others = [op.Touch(MM, page(i % 4), i % 3 > 0, 200 + i) for i in range(40)]
    return small_world(), beside(setup, loop, {"cpu1": others})


@pytest.mark.parametrize("load", [several, mixed, reclaiming])
@pytest.mark.parametrize("seed", range(2))
def test_the_model_memory_is_the_memory(load: object, seed: int) -> None:
    assert callable(load)
    world, programs = load(seed)
    oracle, drivers = Oracle(world), build_all(world, seed)
    exchange = Exchange(Feeder(programs, 200))
    ending = Simulator(drivers, exchange, RandomWalk(seed), oracle.observe).run(200_000)
    oracle.finish(ending)
    assert ending.complete
    memory = drivers[MEMORY].node
    assert isinstance(memory, Memory)
    model = oracle.memory_rules.content.frames
    held = {f for f, frame in enumerate(memory.frames) if frame.refs and frame.level < 0}
    assert model.keys() == held - {0} | (model.keys() & {0})
    for frame, words in model.items():
        found = {word: value for word, value in memory.frames[frame].words.items() if value}
        assert {word: value for word, value in words.items() if value} == found
    assert any(model.values()), "somebody has stored something"
    assert not [v.text() for v in oracle.violations]
    assert not any(oracle.callbacks.open.values())
