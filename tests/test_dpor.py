"""Source-DPOR: one execution of every trace, nothing missed, nothing twice."""

from __future__ import annotations

import random
from math import factorial

import pytest

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program, Step
from mmurace.broker.schedules import Recorded
from mmurace.broker.simulator import Simulator
from mmurace.explorer.exhaustive.search import Budget, explore_dpor, probe_estimate
from mmurace.explorer.exhaustive.world_state import Model, model_of
from mmurace.nodes.build import build_all
from mmurace.oracle.oracle import Oracle
from mmurace.protocol.errors import UserError
from mmurace.protocol.messages import program as op
from mmurace.scenarios.catalogue import load_all
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script
from tests.search_toy import Accesses, by_dpor, naive, toy
from tests.worlds import MM, page, small_world

R, W = [("r", 0)], [("w", 0)]
TOYS: dict[str, tuple[Accesses, ...]] = {
    "nothing shared": ([("w", 0)], [("w", 1)]),
    "two writers": (W, W),
    "writer and reader": (W, R),
    "lost update": ([("r", 0), ("w", 0)], [("r", 0), ("w", 0)]),
    "message passing": ([("w", 0), ("w", 1)], [("r", 1), ("r", 0)]),
    "store buffering": ([("w", 0), ("r", 1)], [("w", 1), ("r", 0)]),
    "a choice": ([("c", 3), ("w", 0)], [("r", 0)]),
    "a choice after a race": ([("w", 0)], [("r", 0), ("c", 2)]),
    "a gather": ([("g", 0)], [("w", 1)]),
}


@pytest.mark.parametrize("name", TOYS)
def test_equals_naive_enumeration(name: str) -> None:
    all_of_it = naive(toy(*TOYS[name]))
    model = toy(*TOYS[name])
    search, found = by_dpor(model)
    assert found.runs == len(found.traces)
    again = toy(*TOYS[name])  # so that messages have the same numbers
    assert naive(again).finals == all_of_it.finals
    assert len(found.traces) == len(all_of_it.traces)
    assert len(found.finals) == len(all_of_it.finals)
    assert search.tally.executions <= all_of_it.runs


@pytest.mark.parametrize("count", [2, 3, 4])
def test_writers_of_one_word_have_factorially_many_traces(count: int) -> None:
    assert by_dpor(toy(*[W] * count))[1].runs == factorial(count)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_readers_have_one_trace(count: int) -> None:
    assert by_dpor(toy(*[R] * count))[1].runs == 1


def test_one_writer_and_n_readers() -> None:
    # each reader is before or after the writer
    assert by_dpor(toy(W, R, R, R))[1].runs == 8


def test_operations_wait_for_what_they_come_after() -> None:
    ordered = toy(W, W, after={"w1/0": "w0/0"})
    assert by_dpor(ordered)[1].runs == naive(ordered).runs == 1


def test_random_toys_equal_naive_enumeration() -> None:
    draws = random.Random(7)
    for _ in range(12):
        accesses = [
            [(draws.choice("rw"), draws.randrange(2)) for _ in range(draws.randint(1, 2))]
            for _ in range(2)
        ]
        model = toy(*accesses)
        enumerated, (_, found) = naive(model), by_dpor(model)
        assert found.traces == enumerated.traces, accesses
        assert found.finals == enumerated.finals
        assert found.runs == len(found.traces)


def test_the_estimate_of_a_small_tree_is_of_its_size() -> None:
    model = toy(W, W, W)
    assert 1 <= probe_estimate(model, 50) <= 4 * factorial(3)


# ---- real nodes ----------------------------------------------------------------------------------


def touches(cpus: int = 2) -> RunSpec:
    """CPUs that touch one page each of a mapping that is there."""
    first = [Step(op.Mmap(MM, 0, page(2), True, True)), Step(op.Touch(MM, 0, True, 1))]
    others = [
        Program(f"cpu{at}", f"cpu{at}", [Step(op.Touch(MM, 0, False), ("cpu0/1",))])
        for at in range(1, cpus)
    ]
    last = Step(op.Touch(MM, 0, True, 2))
    return RunSpec(
        "t", small_world(), 0, Script((Program("cpu0", "cpu0", [*first, last]), *others))
    )


def test_touches_reach_the_same_states_as_random_runs() -> None:
    model = model_of(touches())
    _, found = by_dpor(model)
    walked = random_finals(model, 300)
    assert found.runs == len(found.traces)
    assert walked <= found.finals


def random_finals(model: Model, runs: int) -> set[tuple[object, ...]]:
    """Final states of random walks."""
    finals: set[tuple[object, ...]] = set()
    for seed in range(runs):
        draws, config = random.Random(seed), model.first()
        while heads := config.heads():
            message = draws.choice(heads)
            config, _ = model.step(config, message, model.move(config, message))
        finals.add((config.nodes, config.front.done))
    return finals


def test_independent_deliveries_commute_everywhere() -> None:
    """Every pair that was declared independent, in both orders from the same state."""
    tried = 0
    for race in load_all().values():
        model = model_of(race.run())
        for seed in range(2):
            draws, config = random.Random(seed), model.first()
            while heads := config.heads():
                for at, left in enumerate(heads):
                    for right in heads[:at]:
                        tried += left.dst == right.dst and commute(model, config, left, right)
                message = draws.choice(heads)
                config, _ = model.step(config, message, model.move(config, message))
    assert tried > 50


def commute(model: Model, config, left, right) -> bool:  # type: ignore[no-untyped-def]  # short
    one, other = model.move(config, left), model.move(config, right)
    if model.tables.machines[left.dst].footprints.conflict(one.footprint, other.footprint):
        return False
    after_one, _ = model.step(config, left, one)
    after_other, _ = model.step(config, right, other)
    then_other, then_one = model.move(after_one, right), model.move(after_other, left)
    assert then_other.target == then_one.target, (left.id, right.id)
    for first, second in ((one, then_one), (other, then_other)):
        assert (first.sent, first.records, first.footprint) == (
            second.sent, second.records, second.footprint,
        ), (left.id, right.id)  # fmt: skip
    return True


def test_a_found_violation_replays_in_the_simulator() -> None:
    violated = [
        (race, case.name)
        for race in load_all().values()
        for case in race.kernels
        if case.expect.verdict == "violated"
    ]
    shown = 0
    for race, kernel in violated:
        if shown == 2:
            break
        spec = race.run(kernel)
        result = explore_dpor(spec, Budget(executions_max=2))
        if result.violation is None:
            continue
        shown += 1
        exchange = Exchange(Feeder(spec.programs()))
        oracle = Oracle(spec.world)
        schedule = Recorded(result.violation.entries)
        simulator = Simulator(build_all(spec.world, spec.seed), exchange, schedule, oracle.observe)
        simulator.run()
        assert exchange.number == len(result.violation.entries)
        rules = {v.rule for v in oracle.violations}
        assert rules >= {v.rule for v in result.violation.verdict.violations if v.rule != "L3"}
    assert shown


def test_bounds_are_admitted() -> None:
    race = next(iter(load_all().values()))
    held = next(case.name for case in race.kernels if case.expect.verdict == "held")
    result = explore_dpor(race.run(held), Budget(executions_max=3))
    assert not result.exhaustive
    assert not result.verdict.how.exhaustive
    assert result.executions == 3
    assert result.estimate is not None
    assert result.estimate >= 3
    spec = race.run(held)
    endless = RunSpec("x", spec.world, 0, spec.workload, operations_max=3)
    with pytest.raises(UserError):
        explore_dpor(endless, Budget())


def test_the_same_twice() -> None:
    first, second = (explore_dpor(touches(), Budget(executions_max=20)) for _ in range(2))
    assert first == second
