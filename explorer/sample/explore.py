"""Many schedules of one run in one process, until one is violated or the budget is spent.

Everything but the wall clock is determined by the spec, the strategy and the seed.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mmurace.broker.chaos import ChaosRules
from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder
from mmurace.broker.schedules import Schedule
from mmurace.broker.simulator import Observer, Simulator
from mmurace.explorer.run.batched_oracle import Stretches
from mmurace.explorer.run.garbage_collector import collector_at_rest
from mmurace.explorer.run.outcome import HELD, INCONCLUSIVE, INTERRUPTED, VIOLATED, Outcome
from mmurace.explorer.run.session import simulate
from mmurace.explorer.sample.coverage import Coverage, Signature
from mmurace.explorer.sample.policies import Policies
from mmurace.explorer.sample.statistics import at_most, missed_by, pct_bound, wilson
from mmurace.nodes.build import build_all
from mmurace.nodes.driver import Driver
from mmurace.nodes.footprint import Footprint
from mmurace.nodes.plugins import at_fault
from mmurace.oracle.oracle import Oracle
from mmurace.oracle.sometimes import describe
from mmurace.oracle.verdict import How, Verdict, decide
from mmurace.oracle.violation import Violation
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.errors import EmulatorError
from mmurace.scenarios.spec import RunSpec

Progress = Callable[[dict[str, Any]], None]
PROGRESS_SECONDS: Final = 0.5
SCHEDULES: Final = 1000
"""The budget if none is given."""
SIGN_EVERY: Final = 7
"""One schedule of so many is signed; prime to the lengths of cycles: a fair sample of policies."""
COLLECT_EVERY: Final = 64
"""Schedules between two collections of garbage: what still waits at an end, and what rules keep."""
VIOLATIONS_KEPT: Final = 100
"""Different violations that an exploration lists."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to explore with."""

    strategy: str = "portfolio"
    schedules: int | None = None
    """Run at most so many."""
    seconds: float | None = None
    """Begin no schedule after so many seconds.  This bound alone depends on the machine."""
    stop_on: str = "any"
    """End with the first schedule that breaks this rule (``any``: some rule); empty: go on."""
    deliveries_max: int | None = None
    """Cut a schedule off after so many deliveries; it counts as incomplete."""
    rules: frozenset[str] | None = None
    """The oracle's rules that count; None: all."""

    def spent(self, schedules: int, seconds: float) -> bool:
        """Whether the budget is used up."""
        if self.seconds is not None and seconds >= self.seconds:
            return True
        bound = SCHEDULES if self.schedules is None and self.seconds is None else self.schedules
        return bound is not None and schedules >= bound


@dataclass(frozen=True, slots=True)
class Trial:
    """One schedule and what came of it."""

    deliveries: int
    complete: bool
    oracle: Oracle
    """After its ``finish``."""
    signature: int | None
    """None: nobody asked."""

    def broke(self, rule: str) -> bool:
        """Whether it broke ``rule`` (``any``: some rule)."""
        return any(rule in ("any", v.rule) for v in self.oracle.violations)


def run_schedule(
    spec: RunSpec,
    schedule: Schedule,
    deliveries_max: int | None = None,
    rules: frozenset[str] | None = None,
    signed: bool = True,
) -> Trial:
    """Run ``spec`` once under ``schedule``, with the oracle, recording nothing.

    ``signed``: also find the signature of its trace, which takes a third of the time.
    """
    oracle = Oracle(spec.world, spec.sometimes, rules)
    drivers = build_all(spec.world, spec.seed)
    signature = _signature(drivers) if signed else None
    reader = Stretches(oracle)
    observe = reader.observe if signature is None else _both(reader, signature)
    chaos = ChaosRules(spec.chaos, spec.seed, spec.world) if spec.chaos else None
    exchange = Exchange(Feeder(spec.programs(), spec.operations_max), chaos)
    simulator = Simulator(drivers, exchange, schedule, observe, mourner=reader.lost)
    ending = simulator.run(deliveries_max)
    reader.flush()
    oracle.finish(ending, quiescent=not exchange.heads)
    for driver in drivers.values():
        driver.close()
    value = None if signature is None else signature.value
    return Trial(ending.deliveries, ending.complete, oracle, value)


def _signature(drivers: Mapping[str, Driver]) -> Signature:
    """A signature that sees what the drivers' handlings touch."""
    footprint: Footprint = []
    for driver in drivers.values():
        driver.port.touched = footprint
    return Signature(footprint)


def _both(reader: Stretches, signature: Signature) -> Observer:
    judge, sign = reader.observe, signature.observe

    def observe(envelope: Envelope, handled: Handled) -> None:
        judge(envelope, handled)
        sign(envelope, handled)

    return observe


@dataclass(slots=True)
class PolicyTally:
    """The schedules of one policy."""

    schedules: int = 0
    violated: int = 0
    expected: int = 0
    """Those with the violation that the scenario expects."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The first schedule that broke what it was to end with, and how to run it again."""

    index: int
    policy: str
    spec: RunSpec
    schedule: Schedule
    """Fresh: not run yet."""
    violations: tuple[Violation, ...]


@dataclass(frozen=True, slots=True)
class Bound:
    """What many schedules of one policy without a violation show."""

    policy: str
    schedules: int
    at_most: float
    """The probability of a violation in one schedule, with 95 % confidence."""
    depth: int = 0
    """PCT only: the number of orderings that a bug may need."""
    finds: float = 0.0
    """PCT only: the probability, at least, that one schedule shows such a bug."""
    missed: float = 1.0
    """PCT only: the probability, at most, that all of them missed it."""


@dataclass(slots=True)
class Exploration:
    """What an exploration has found."""

    spec: RunSpec
    options: Options
    policies: Policies
    coverage: Coverage = field(default_factory=Coverage)
    tallies: dict[str, PolicyTally] = field(default_factory=dict)
    deliveries: int = 0
    operations: int = 0
    schedules: int = 0
    entered: int = 0
    """Schedules in which every *sometimes* condition was met."""
    held: int = 0
    """Schedules that ran to their end, entered the window and broke nothing."""
    met: dict[int, int] = field(default_factory=dict)
    """*Sometimes* condition -> schedules that met it."""
    incomplete: int = 0
    violations: dict[tuple[str, ...], Violation] = field(default_factory=dict)
    """The different ones, in the order in which they were found."""
    finding: Finding | None = None
    interrupted: bool = False
    seconds: float = 0.0
    """Wall time; no part of the result."""
    recorded: Outcome | None = None
    """The finding, run again with its files."""

    # -- growing -------------------------------------------------------------------------------

    def add(self, policy: str, trial: Trial) -> None:
        """One more schedule."""
        oracle, unmet = trial.oracle, trial.oracle.sometimes.open
        broken = oracle.violations
        self.schedules += 1
        self.deliveries += trial.deliveries
        self.operations += oracle.statistics.operations
        self.entered += not unmet
        self.incomplete += not trial.complete
        self.held += trial.complete and not unmet and not broken
        for at in range(len(self.spec.sometimes)):
            self.met[at] = self.met.get(at, 0) + (at not in unmet)
        for violation in broken:
            if len(self.violations) < VIOLATIONS_KEPT:
                self.violations.setdefault(violation.identity(), violation)
        self.coverage.add(trial.signature, oracle.statistics)
        self._count(self.tallies.setdefault(policy, PolicyTally()), broken)

    def _count(self, tally: PolicyTally, broken: list[Violation]) -> None:
        expectation = self.spec.expectation
        wanted = expectation.expected() if expectation else None
        tally.schedules += 1
        tally.violated += bool(broken)
        tally.expected += wanted is not None and any(wanted.matches(v) for v in broken)

    # -- asking --------------------------------------------------------------------------------

    @property
    def violated(self) -> int:
        """Schedules with a violation."""
        return sum(tally.violated for tally in self.tallies.values())

    @property
    def expected(self) -> int:
        """Schedules with the violation that the scenario expects of this kernel."""
        return sum(tally.expected for tally in self.tallies.values())

    @property
    def as_expected(self) -> bool | None:
        """Whether it came out as the scenario expects; None: it does not say, or too little ran.

        Too little was a search that ended at another violation before it could come to the one
        that is expected, or that broke nothing and never entered the window.
        """
        wanted = self.spec.expectation
        if wanted is None:
            return None
        if wanted.expected() is None:
            return False if self.violations else True if self.held else None
        if self.expected:
            return True
        return False if self.held and not self.violations else None

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson interval of the probability of a violation in one schedule."""
        return wilson(self.violated, self.schedules)

    def verdict(self) -> Verdict:
        """Held, violated or inconclusive, over all schedules."""
        names = [describe(condition) for condition in self.spec.sometimes]
        how = How(
            self.deliveries, self.operations, self.schedules, self.entered, exhaustive=False,
            met=tuple(name for at, name in enumerate(names) if self.met.get(at)),
            missing=tuple(name for at, name in enumerate(names) if not self.met.get(at)),
        )  # fmt: skip
        if self.violations or self.held:
            return decide(self.violations.values(), how, complete=True)
        if not self.schedules:
            return Verdict("inconclusive", ("no schedule was run",), (), how)
        if not self.entered and not how.missing:
            return Verdict("inconclusive", ("no one schedule met all conditions",), (), how)
        return decide((), how, complete=self.incomplete < self.schedules)

    def bounds(self) -> list[Bound]:
        """What the schedules without a violation show, by policy; empty if there was one."""
        return [] if self.violations else [self._bound(*item) for item in self.tallies.items()]

    def _bound(self, policy: str, tally: PolicyTally) -> Bound:
        runs = tally.schedules
        if not policy.startswith("pct"):
            return Bound(policy, runs, at_most(runs))
        depth = int(policy[3:])
        finds = pct_bound(self.policies.chains, self.policies.contested, depth)
        return Bound(policy, runs, at_most(runs), depth, finds, missed_by(finds, runs))

    @property
    def exit_code(self) -> int:
        """The exit status of the command that made it (design.md section 10)."""
        if self.violations:
            return VIOLATED
        if self.interrupted:
            return INTERRUPTED
        return INCONCLUSIVE if self.verdict().outcome == "inconclusive" else HELD

    def numbers(self, seconds: float) -> dict[str, Any]:
        """Where it stands, for whoever shows progress."""
        return {
            "seconds": seconds,
            "schedules": self.schedules,
            "rate": self.schedules / seconds if seconds else 0.0,
            "distinct": self.coverage.distinct,
            "signed": self.coverage.signed,
            "unseen": self.coverage.unseen,
            "entered": self.entered,
            "violated": self.violated,
        }


def explore(spec: RunSpec, options: Options, progress: Progress | None = None) -> Exploration:
    """Run schedules of ``spec`` until one breaks what it is to end with, or the budget is spent.

    ``spec.seed`` determines schedules and choices; ``spec.chaos`` is injected in each, if there.
    Ctrl-C ends it with what there is.  Raises ``UserError`` for an unknown strategy.
    """
    found = Exploration(spec, options, Policies(options.strategy, spec.seed))
    began = time.monotonic()
    try:
        with collector_at_rest(), at_fault():
            _search(found, began, progress)
    except KeyboardInterrupt:
        found.interrupted = True
    found.seconds = time.monotonic() - began
    return found


def _search(found: Exploration, began: float, progress: Progress | None) -> None:
    told = began
    options, policies = found.options, found.policies
    while not options.spent(found.schedules, time.monotonic() - began):
        index = found.schedules
        policy, spec = policies.policy(index), found.spec.with_seed(policies.node_seed(index))
        schedule = policies.schedule(index)
        signed = index % SIGN_EVERY == 0
        trial = run_schedule(spec, schedule, options.deliveries_max, options.rules, signed)
        found.add(policy, trial)
        if found.finding is None and trial.broke(options.stop_on or "any"):
            violations = tuple(trial.oracle.violations)
            found.finding = Finding(index, policy, spec, policies.schedule(index), violations)
            if options.stop_on:
                return
        policies.finished(schedule)
        if index % COLLECT_EVERY == 0:
            gc.collect()
        now = time.monotonic()
        if progress is not None and now - told >= PROGRESS_SECONDS:
            told = now
            progress(found.numbers(now - began))


def record(found: Exploration, run_dir: Path) -> Outcome:
    """Run the finding again with its files in ``run_dir`` (which must exist), for ``replay``.

    The status of the outcome is ``broken`` if they could not be written.

    Raises ``EmulatorError`` if it does not come out the same: the run is not deterministic.
    """
    finding = found.finding
    if finding is None:
        raise EmulatorError("there is no finding to record")
    spec = finding.spec.save(run_dir)
    outcome = simulate(spec, run_dir, finding.schedule, found.options.deliveries_max)
    if outcome.status == "broken":
        return outcome
    rules = found.options.rules
    again = [v.identity() for v in outcome.violations if rules is None or v.rule in rules]
    if again != [violation.identity() for violation in finding.violations]:
        raise EmulatorError(f"schedule {finding.index} came out differently the second time")
    found.recorded = outcome
    return outcome
