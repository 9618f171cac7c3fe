"""A request that only waits may come right after the release that grants it."""

from __future__ import annotations

import random

import pytest

from mmurace.broker.programs import Program, Step
from mmurace.explorer.exhaustive.deferrable import only_waits
from mmurace.explorer.exhaustive.node_tables import Sent
from mmurace.explorer.exhaustive.oracle_table import RULES, OracleTable
from mmurace.explorer.exhaustive.search import Budget, Exhaustion, explore_stateful
from mmurace.explorer.exhaustive.world_state import Config, Model, model_of
from mmurace.nodes.kernel import memory
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.locking import mmap_read_lock, mmap_read_unlock
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.world import World
from mmurace.oracle.oracle import Oracle
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.base import kinds
from mmurace.protocol.messages.vma_lock import VmaEndRead
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script
from tests.test_futures import RACES, SCOPES, both
from tests.test_stateful import rules, unmapped_under_dma
from tests.worlds import MM, page

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
    assert {"PtlLock"} <= met
    assert all(only_waits(kinds()[kind]) for kind in met)


def test_each_lock_is_taken_by_the_request_of_its_name_and_given_back_by_one() -> None:
    messages = kinds().values()
    taken = {kind.TAKES: kind.__name__ for kind in messages if kind.TAKES is not None}
    # A VMA's lock is only tried for: nobody waits for it in the way that others are waited for.
    given = [
        kind.GIVES_BACK
        for kind in messages
        if kind.GIVES_BACK is not None and kind is not VmaEndRead
    ]
    assert len(taken) >= 9
    assert {lock: lock.name for lock in taken} == taken
    assert sorted(given, key=lambda lock: lock.name) == sorted(taken, key=lambda lock: lock.name)


@pytest.mark.parametrize("switches", [{}, {"gather_calls_ir": False}])
def test_nothing_is_lost(switches: dict[str, object]) -> None:
    spec = unmapped_under_dma(**switches)
    found: list[Exhaustion] = [
        explore_stateful(spec, Budget(), go_on=True, eager=eager) for eager in (True, False)
    ]
    assert all(result.exhaustive for result in found)
    assert rules(found[0]) == rules(found[1])


@pytest.mark.parametrize("eager", [True, False])
def test_a_reader_that_asks_again_behind_a_writer_is_found(
    monkeypatch: pytest.MonkeyPatch, eager: bool
) -> None:
    """A queued writer is seen by readers, so its request must not be put off."""
    fault = memory.handle_mm_fault

    async def locked_twice(cpu: Processor, mm: str, address: int, write: bool) -> int:
        await mmap_read_lock(cpu, mm)
        result = await fault(cpu, mm, address, write)
        await mmap_read_unlock(cpu, mm)
        return result

    monkeypatch.setattr(memory, "handle_mm_fault", locked_twice)
    programs = (
        Program("cpu0", "cpu0", [Step(op.Mmap(MM, 0, page(1), True, True)),
                                 Step(op.Munmap(MM, 0, page(1)))]),
        Program("cpu1", "cpu1", [Step(op.Touch(MM, 0, True, 1), ("cpu0/0",))]),
    )  # fmt: skip
    world = World(kernel=preset("v6.2", "x86"), cpus=("cpu0", "cpu1"))
    spec = RunSpec("t", world, 0, Script(programs))
    result = explore_stateful(spec, Budget(executions_max=20_000), eager=eager)
    assert rules(result) == {"L3"}
