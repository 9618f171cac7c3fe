"""What a race breaks does not depend on which linearisation of its trace the oracle is given."""

from __future__ import annotations

import pytest

from mmurace.broker.chaos import ChaosRules
from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.nodes.build import build_all
from mmurace.oracle.oracle import Oracle
from mmurace.oracle.state.trace import step_of
from mmurace.oracle.verdict import Verdict
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.trace import Ending, TraceStep
from mmurace.scenarios.catalogue import KernelCase, Race, load_all
from mmurace.scenarios.spec import RunSpec
from tests.oracle_story import identities, shuffled

CASES = [
    pytest.param(race, case, id=f"{race.id}-{case.name}")
    for race in load_all().values()
    for case in race.kernels
]


def trace(run: RunSpec) -> tuple[list[TraceStep], Ending]:
    """The trace of one run of the simulator."""
    steps: list[TraceStep] = []

    def observe(envelope: Envelope, handled: Handled) -> None:
        steps.append(step_of(envelope, handled))

    chaos = ChaosRules(run.chaos, run.seed) if run.chaos else None
    exchange = Exchange(Feeder(run.programs()), chaos)
    drivers = build_all(run.world, run.seed)
    return steps, Simulator(drivers, exchange, RandomWalk(run.seed), observe).run(100_000)


def judge(run: RunSpec, steps: list[TraceStep], ending: Ending) -> Verdict:
    oracle = Oracle(run.world, run.sometimes)
    for step in steps:
        oracle.step(step)
    oracle.finish(ending)
    return oracle.verdict(ending)


@pytest.mark.parametrize(("race", "case"), CASES)
def test_every_linearisation_agrees(race: Race, case: KernelCase) -> None:
    run = race.run(case.name, seed=1)
    steps, ending = trace(run)
    wanted = judge(run, steps, ending)
    for seed in range(3):
        other = judge(run, shuffled(steps, seed), ending)
        assert identities(other.violations) == identities(wanted.violations)
        assert other.how.met == wanted.how.met
