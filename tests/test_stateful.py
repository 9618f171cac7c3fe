"""Stateful search: the same verdicts and final states as source-DPOR, by other means."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmurace.broker.programs import Program, Step
from mmurace.explorer.exhaustive.oracle_table import RULES, OracleTable
from mmurace.explorer.exhaustive.search import (
    Budget,
    Exhaustion,
    explore_dpor,
    explore_stateful,
    search_stateful,
)
from mmurace.explorer.exhaustive.stateful import Broken, Stateful
from mmurace.explorer.exhaustive.stateful import Step as StepTaken
from mmurace.explorer.exhaustive.world_state import Config, Model, model_of
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.world import World
from mmurace.oracle.oracle import Oracle
from mmurace.protocol.errors import EmulatorError
from mmurace.protocol.messages import program as op
from mmurace.scenarios.catalogue import load_all
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script
from tests.search_toy import WORLD, naive, toy
from tests.test_dpor import TOYS
from tests.worlds import MM, page

CATALOGUE = load_all()
SMALL = ("E02", "E03", "E06c", "E06d", "E11", "E11d", "E11e", "E12m", "E34")
"""Races with kernels of which source-DPOR comes to an end."""
EXECUTIONS = 450
"""Kernels with more traces than that are left out."""


def finals_of(model: Model, eager: bool) -> set[tuple[object, ...]]:
    """Final states by stateful search."""
    finals: set[tuple[object, ...]] = set()
    table = OracleTable(lambda: Oracle(WORLD))

    def visit(_: list[StepTaken], config: Config, _broken: Broken) -> bool:
        finals.add((config.nodes, config.front.done))
        return False

    search = Stateful(model, table, visit, lambda _: False, eager)
    assert search.run()
    assert search.terminal == len(finals)
    return finals


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("eager", [True, False])
def test_final_states_equal_naive_enumeration(name: str, eager: bool) -> None:
    model = toy(*TOYS[name])
    assert finals_of(model, eager) == naive(model).finals


def unmapped_under_dma(**switches: object) -> RunSpec:
    """Two pages are unmapped, a batch for each, while a device uses the first."""
    world = World(
        kernel=preset("v6.2", "x86", switches), cpus=("cpu0",), gather_batch=1,
        parts=(Unit("iommu0", ("device0",), (MM,), "cpu0"),),
    )  # fmt: skip
    cpu = [
        Step(op.Mmap(MM, 0, page(2), True, True)),
        Step(op.Touch(MM, 0, True, 1)),
        Step(op.Touch(MM, page(1), True, 1)),
        Step(op.Munmap(MM, 0, page(2)), ("device0/0",)),
    ]
    device = [Step(Dma(MM, 0, True, 2), ("cpu0/2",)), Step(Dma(MM, 0, True, 3))]
    programs = (Program("cpu0", "cpu0", cpu), Program("device0", "device0", device))
    return RunSpec("t", world, 0, Script(programs))


def rules(result: Exhaustion) -> set[str]:
    """What was broken in any execution."""
    return {violation.rule for violation in result.verdict.violations}


@pytest.mark.parametrize("switches", [{}, {"gather_calls_ir": False}])
def test_both_engines_agree(switches: dict[str, object]) -> None:
    spec = unmapped_under_dma(**switches)
    traces = explore_dpor(spec, Budget(), go_on=True)
    states = explore_stateful(spec, Budget(), go_on=True)
    assert traces.exhaustive
    assert states.exhaustive
    assert traces.verdict.outcome == states.verdict.outcome
    assert rules(traces) == rules(states)
    assert traces.verdict.outcome == ("violated" if switches else "held")


@pytest.mark.parametrize("name", SMALL)
def test_they_do_in_every_race_that_is_small(name: str) -> None:
    """With its own programs; what a stateful search judges in every state is compared."""
    both_ended = 0
    for case in CATALOGUE[name].kernels:
        spec = replace(CATALOGUE[name].run(case.name), chaos=None)
        traces = explore_dpor(spec, Budget(executions_max=EXECUTIONS), go_on=True)
        if traces.exhaustive:
            states = explore_stateful(spec, Budget(), go_on=True)
            assert states.exhaustive
            assert rules(traces) & set(RULES) == rules(states) & set(RULES), case.name
            both_ended += 1
    assert both_ended


def test_the_first_counterexample_is_a_shortest_one() -> None:
    spec = unmapped_under_dma(gather_calls_ir=False)
    shortest = explore_stateful(spec, Budget(), eager=False).violation
    other = explore_dpor(spec, Budget()).violation
    assert shortest is not None
    assert other is not None
    assert len(shortest.entries) <= len(other.entries)
    assert not explore_stateful(spec, Budget()).exhaustive


def test_bounds_are_admitted() -> None:
    result = explore_stateful(unmapped_under_dma(), Budget(executions_max=10))
    assert not result.exhaustive
    assert result.violation is None
    assert result.verdict.outcome == "inconclusive"


def test_a_state_that_is_judged_otherwise_than_the_execution_ends_the_search() -> None:
    spec = unmapped_under_dma(gather_calls_ir=False)

    def oracle(everything: bool) -> Oracle:
        return Oracle(spec.world, (), frozenset({"S9"} if everything else {"S1"}))

    with pytest.raises(EmulatorError, match=r"S1 is broken by delivery [0-9]+ in a state, and not"):
        search_stateful(model_of(spec), oracle, Budget(), go_on=True)
