"""A request that only waits may come right after the release that grants it."""

from __future__ import annotations

import random

import pytest

from explorer.exhaustive import Budget, Exhaustion, explore_stateful
from explorer.machine import Sent
from explorer.oracle_state import RULES, OracleTable
from explorer.waits import WAITS
from explorer.world_state import Config, Model, model_of
from oracle.oracle import Oracle
from tests.test_futures import RACES, SCOPES, both
from tests.test_stateful import rules, unmapped_under_dma

WALKS = 12


def waiting(model: Model, config: Config) -> list[Sent]:
    """Heads that would only be queued."""
    return [head for head in config.heads() if model.move(config, head).only_waits]


def pairs(model: Model, seed: int) -> list[tuple[Config, Sent, Sent]]:
    """Of a random execution: where a request would wait, and a delivery that lets it go on."""
    draws, config, found = random.Random(seed), model.first(), []
    while config.heads():
        for request in waiting(model, config):
            for other in config.heads():
                released, _ = model.step(config, other, model.move(config, other))
                if other is not request and not model.move(released, request).only_waits:
                    found.append((config, request, other))
        late = set(waiting(model, config))
        heads = [head for head in config.heads() if head not in late] or config.heads()
        message = draws.choice(heads)
        config, _ = model.step(config, message, model.move(config, message))
    return found


@pytest.mark.parametrize(("name", "kernel"), SCOPES)
def test_queued_and_granted_is_as_good_as_late(name: str, kernel: str) -> None:
    spec = RACES[name].run_in_scope(kernel)
    model = model_of(spec)
    table = OracleTable(lambda: Oracle(spec.world, (), frozenset(RULES)))
    for seed in range(WALKS):
        for config, request, release in pairs(model, seed):
            early = both(model, table, config, 0, request, release)
            late = both(model, table, config, 0, release, request)
            assert early == late, (request.id, request.kind, release.id, release.kind)


def test_some_request_waits_in_some_scope() -> None:
    met = set()
    for name, kernel in SCOPES:
        model = model_of(RACES[name].run_in_scope(kernel))
        for seed in range(WALKS):
            met |= {request.kind for _, request, _ in pairs(model, seed)}
    assert {"MmuLock", "PtlLock"} <= met <= WAITS


@pytest.mark.parametrize("switches", [{}, {"gather_calls_ir": False}])
def test_nothing_is_lost(switches: dict[str, object]) -> None:
    spec = unmapped_under_dma(**switches)
    found: list[Exhaustion] = [
        explore_stateful(spec, Budget(), go_on=True, eager=eager) for eager in (True, False)
    ]
    assert all(result.exhaustive for result in found)
    assert rules(found[0]) == rules(found[1])
