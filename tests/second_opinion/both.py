"""One run, judged by both: by the oracle while it goes on, and by the second opinion afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from mmurace.broker.chaos import ChaosRules
from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder
from mmurace.broker.simulator import Simulator
from mmurace.nodes.build import build_all
from mmurace.oracle.oracle import Oracle
from mmurace.oracle.state.trace import step_of
from mmurace.oracle.violation import Violation
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.trace import TraceStep
from tests.second_opinion import RULES, judge
from tests.second_opinion.mistakes import made
from tests.second_opinion.programs import Drawn
from tests.second_opinion.trace import Finding

DELIVERIES_MAX = 6_000
"""A longer run is cut off, and judged as far as it went."""


@dataclass(frozen=True)
class Opinions:
    """What each of them says."""

    steps: list[TraceStep]
    oracle: list[Violation]
    second: set[Finding]

    def differences(self, whole: bool = False) -> tuple[set[Finding], set[Finding]]:
        """What only the oracle finds, and what only the second opinion does.

        Compared are rule and agent; with ``whole`` also the cache and the page.
        """
        ours = {_key(f, whole) for f in self.second}
        theirs = {_key(_as_finding(v), whole) for v in self.oracle if v.rule in RULES}
        return theirs - ours, ours - theirs


def _as_finding(v: Violation) -> Finding:
    return Finding(v.rule, v.agent, v.cache, (v.mm, v.address), v.frame)


def _key(f: Finding, whole: bool) -> Finding:
    return Finding(f.rule, f.agent, *((f.cache, f.place) if whole and f.cache else ()))


def run(drawn: Drawn) -> Opinions:
    """Run it in the simulator and hear both."""
    oracle = Oracle(drawn.world, rules=frozenset(RULES))
    steps: list[TraceStep] = []

    def observe(envelope: Envelope, handled: Handled) -> None:
        steps.append(step_of(envelope, handled))
        oracle.observe(envelope, handled)

    spec = drawn.spec
    chaos = ChaosRules(spec.chaos, spec.seed, spec.world) if spec and spec.chaos else None
    exchange = Exchange(Feeder(drawn.programs), chaos)
    simulator = Simulator(build_all(drawn.world, drawn.seed), exchange, drawn.schedule, observe)
    with made(drawn.mistake):
        ending = simulator.run(DELIVERIES_MAX)
    oracle.finish(ending)
    return Opinions(steps, oracle.violations, judge(steps))
