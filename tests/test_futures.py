"""Persistent sets: what they leave out is equivalent to what they keep."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from mmurace.broker.programs import operation_program
from mmurace.explorer.exhaustive.node_tables import Move, Sent, rival_bits
from mmurace.explorer.exhaustive.oracle_table import RULES, OracleTable
from mmurace.explorer.exhaustive.search import Budget, explore_stateful
from mmurace.explorer.exhaustive.stateful import Broken, Stateful
from mmurace.explorer.exhaustive.world_state import Config, Model, model_of
from mmurace.oracle.oracle import Oracle
from mmurace.scenarios.catalogue import load_all
from mmurace.scenarios.spec import RunSpec
from tests.search_toy import WORLD, Accesses, naive, toy
from tests.test_stateful import rules, unmapped_under_dma

CATALOGUE = load_all()
RACES = {name: race for name, race in CATALOGUE.items() if race.scopes}
SEQUENTIAL = {"E06d", "E54"}
"""Races in which everything comes one after the other, so that there are no such pairs."""
ALONE = {"E35"}
"""Races in which that is so on the first kernels, where one party waits for itself."""
SCOPES = [
    (name, case.name)
    for name, race in RACES.items() if name not in {*SEQUENTIAL, *ALONE}
    for case in race.kernels[:2]
]  # fmt: skip


def random_toy(draws: random.Random) -> tuple[Accesses, ...]:
    """Two or three programs of one or two accesses to two words."""
    count = draws.randint(2, 3)
    return tuple(
        [(draws.choice("rw"), draws.randrange(2)) for _ in range(draws.randint(1, 4 - count))]
        for _ in range(count)
    )


def reduced(model: Model) -> tuple[set[tuple[object, ...]], int]:
    """Final states of a reduced search, and how many states it left."""
    finals: set[tuple[object, ...]] = set()

    def visit(_: object, config: Config, _broken: Broken) -> bool:
        finals.add((config.nodes, config.front.done))
        return False

    search = Stateful(model, OracleTable(lambda: Oracle(WORLD)), visit, lambda _: False, True)
    assert search.run()
    return finals, len(search.left)


def test_random_toys_end_in_the_same_states() -> None:
    draws = random.Random(3)
    for _ in range(20):
        programs = random_toy(draws)
        model = toy(*programs)
        finals, _ = reduced(model)
        assert finals == naive(model).finals, programs


def test_programs_that_share_nothing_are_run_one_after_the_other() -> None:
    assert reduced(toy([("w", 0)] * 3, [("r", 1)] * 3))[1] == 1


@pytest.mark.parametrize("switches", [{}, {"gather_calls_ir": False}])
def test_verdicts_are_those_of_all_orders(switches: dict[str, object]) -> None:
    spec = unmapped_under_dma(**switches)
    few = explore_stateful(spec, Budget(), go_on=True)
    all_of_them = explore_stateful(spec, Budget(), go_on=True, eager=False)
    assert few.exhaustive
    assert all_of_them.exhaustive
    assert rules(few) == rules(all_of_them)
    assert few.states < all_of_them.states


# ---- what is taken to be independent -------------------------------------------------------------


Walk = Callable[[Model, int], Iterator[tuple[Config, Sent, Move]]]


def execution(
    model: Model, draws: random.Random, pick: Callable[[tuple[Sent, ...]], Sent]
) -> Iterator[tuple[Config, Sent, Move]]:
    """One execution: ``pick`` says which message is next, chance what the hardware chooses."""
    config = model.first()
    while heads := config.heads():
        message = pick(heads)
        at = model.index[message.dst]
        move = draws.choice(model.machines[at].moves_of(config.nodes[at], message))
        yield config, message, move
        config, _ = model.step(config, message, move)


def walk(model: Model, seed: int) -> Iterator[tuple[Config, Sent, Move]]:
    """A random execution."""
    draws = random.Random(seed)
    return execution(model, draws, draws.choice)


def in_bursts(model: Model, seed: int) -> Iterator[tuple[Config, Sent, Move]]:
    """A random execution in which a program mostly goes on for a while."""
    draws, going = random.Random(seed), ""

    def pick(heads: tuple[Sent, ...]) -> Sent:
        nonlocal going
        if draws.random() < 0.06:
            going = operation_program(draws.choice(heads).id)
        mine = [message for message in heads if operation_program(message.id) == going]
        return draws.choice(mine if mine and draws.random() < 0.93 else heads)

    return execution(model, draws, pick)


def independent(model: Model, config: Config, left: Sent, right: Sent) -> bool:
    """Whether the search would let these two swap."""
    one, other = model.move(config, left), model.move(config, right)
    if rival_bits(one.judged) & other.judged or set(one.streams) & set(other.streams):
        return False
    if left.dst != right.dst:
        return True
    machine = model.machines[model.index[left.dst]]
    return not machine.footprints.conflict(one.footprint, other.footprint)


def both(
    model: Model, table: OracleTable, config: Config, oracle: int, first: Sent, then: Sent
) -> tuple[object, ...]:
    """The state after two deliveries, the oracle's included, and what they broke."""
    broken: list[str] = []
    for message in (first, then):
        move = model.move(config, message)
        config, _ = model.step(config, message, move)
        oracle, found = table.step(oracle, message, move)
        broken += [violation.rule for violation in found]
    return config.nodes, config.front, oracle, sorted(broken)


def compare(spec: RunSpec, seeds: int, walk: Walk = walk) -> int:
    """Try independent deliveries in both orders at places of random executions: how many pairs."""
    model = model_of(spec)
    table = OracleTable(lambda: Oracle(spec.world, (), frozenset(RULES)))
    pairs = 0
    for seed in range(seeds):
        oracle = 0
        for config, message, move in walk(model, seed):
            for other in config.heads():
                if other is not message and independent(model, config, message, other):
                    one = both(model, table, config, oracle, message, other)
                    assert one == both(model, table, config, oracle, other, message), (
                        message.id, message.kind, other.id, other.kind,
                    )  # fmt: skip
                    pairs += 1
            oracle, _ = table.step(oracle, message, move)
    return pairs


@pytest.mark.parametrize(("name", "kernel"), SCOPES)
def test_independent_deliveries_commute_for_the_oracle_too(name: str, kernel: str) -> None:
    assert compare(RACES[name].run_in_scope(kernel), 4) > 5


@pytest.mark.parametrize("name", CATALOGUE)
def test_they_do_in_every_race_on_every_kernel(name: str) -> None:
    pairs = 0
    for case in CATALOGUE[name].kernels:
        spec = replace(CATALOGUE[name].run(case.name), chaos=None)
        pairs += compare(spec, 1, in_bursts if case.expect.verdict == "held" else walk)
    assert bool(pairs) == (name not in SEQUENTIAL)
