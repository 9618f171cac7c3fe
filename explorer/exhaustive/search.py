"""Exhaustive search in small scopes: every execution that can differ, or how far it came.

``explore_dpor`` runs one execution of every trace; ``explore_stateful`` visits every state once
and finds a shortest counterexample.  Both search the programs as given with the hardware's choices
on, and no fault.  The clock is the caller's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import exp, log
from typing import Final, Literal

from msgspec.structs import replace

from mmurace.explorer.exhaustive.dpor import Dpor, Event, Tally
from mmurace.explorer.exhaustive.node_tables import Sent
from mmurace.explorer.exhaustive.oracle_table import RULES, OracleTable
from mmurace.explorer.exhaustive.stateful import Broken, NotAlikeError, Stateful, Step
from mmurace.explorer.exhaustive.symmetry import Forms
from mmurace.explorer.exhaustive.trace_verdicts import Counterexample, Judge, counterexample
from mmurace.explorer.exhaustive.world_state import Config, Model, model_of
from mmurace.explorer.run.garbage_collector import collector_of_the_young
from mmurace.nodes.plugins import at_fault
from mmurace.oracle.oracle import Oracle
from mmurace.oracle.verdict import Verdict, combine
from mmurace.protocol.errors import EmulatorError
from mmurace.scenarios.spec import RunSpec

GROWTH_LEVELS: Final = 8
"""Levels of a breadth-first search from which the growth of the next ones is estimated."""
GROWTH_LEAST: Final = 0.05
"""How far growth may be from zero without being told from it."""
PROBES: Final = 32
"""Random executions from which what is left is estimated."""


def _never() -> bool:
    return False


def _nobody(_done: int, _deliveries: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds of a search."""

    executions_max: int | None = None
    """Complete executions, or for a stateful search states."""
    expired: Callable[[], bool] = _never
    """Asked now and then; True ends the search."""
    watch: Callable[[int, int], None] = _nobody
    """Told now and then: complete executions (or states), and deliveries."""


@dataclass(frozen=True, slots=True)
class Exhaustion:
    """How an exhaustive search came out."""

    engine: Literal["dpor", "stateful"]
    violation: Counterexample | None
    """The first counterexample; of a stateful search a shortest one."""
    exhaustive: bool
    """Everything was searched: without a violation it holds in this scope."""
    executions: int
    """Complete executions, one per trace; for a stateful search terminal states."""
    blocked: int
    """Executions cut off because they would have repeated a trace."""
    deliveries: int
    states: int
    """Distinct global states (stateful), else of all nodes together."""
    judged: int
    """Executions that the oracle saw."""
    estimate: float | None
    """Executions in all (stateful: states), if not exhaustive; an order of magnitude."""
    verdict: Verdict
    """Of everything that was run."""
    rules: tuple[str, ...] = ()
    """Rules that were judged in every state, others only in the executions that were ``judged``;
    empty if all rules were judged in every execution."""
    interrupted: bool = False
    """Ctrl-C ended it."""
    symmetric: tuple[tuple[str, ...], ...] = ()
    """Nodes that were interchangeable: of states that differ in their names one was searched."""
    stands_for: int = 0
    """So many states those are, with all that differ in these names."""


class _Verdicts:
    """Adds up, and keeps the first violation, or the first of the rule that was expected."""

    def __init__(self, go_on: bool, wanted: str = "") -> None:
        self.go_on, self.wanted = go_on, wanted
        self.first: Counterexample | None = None
        self.met = False
        """A violation of the wanted rule was found."""
        self.schedules = self.entered = 0
        self._kept: dict[tuple[object, ...], Verdict] = {}

    def add(self, verdict: Verdict, found: Callable[[], Counterexample]) -> bool:
        """One more; True if the search should end."""
        broken = tuple(violation.identity() for violation in verdict.violations)
        key = (verdict.outcome, verdict.reasons, verdict.how.met, broken)
        self.entered += verdict.how.entered
        self.schedules += 1
        self._kept.setdefault(key, verdict)
        if verdict.outcome != "violated":
            return False
        meant = not self.wanted or any(v.rule == self.wanted for v in verdict.violations)
        if self.first is None or (meant and not self.met):
            self.first = found()
        self.met |= meant
        return meant and not self.go_on

    def total(self, exhaustive: bool, deliveries: int) -> Verdict:
        """Of all; verdicts that say the same are kept once."""
        verdict = combine(self._kept.values(), exhaustive)
        how = replace(
            verdict.how, schedules=self.schedules, entered=self.entered, deliveries=deliveries
        )
        return replace(verdict, how=how)


def explore_dpor(spec: RunSpec, budget: Budget, go_on: bool = False) -> Exhaustion:
    """Run one execution of every trace of ``spec`` (its chaos left out).

    Ends with the first violation unless told to ``go_on``.  Raises ``UserError`` for programs
    that an exhaustive search cannot take.
    """
    model, wanted = model_of(spec), _expected_rule(spec)
    return search_dpor(model, lambda: Oracle(spec.world, spec.sometimes), budget, go_on, wanted)


def _expected_rule(spec: RunSpec) -> str:
    expected = spec.expectation.expected() if spec.expectation is not None else None
    return "" if expected is None else expected.rule


def search_dpor(
    model: Model,
    oracle: Callable[[], Oracle],
    budget: Budget,
    go_on: bool = False,
    wanted: str = "",
) -> Exhaustion:
    """The same for a model; it ends with the first violation of ``wanted``, if a rule is given."""
    judge, verdicts = Judge(model, oracle), _Verdicts(go_on, wanted)

    def visit(events: list[Event], config: Config) -> bool:
        complete = model.complete(config)
        over = False
        for verdict, order in judge.trace(events, complete):
            over |= verdicts.add(verdict, partial(counterexample, order, verdict))
        return over or search.tally.executions == budget.executions_max

    def stop(tally: Tally) -> bool:
        budget.watch(tally.executions, tally.deliveries)
        return budget.expired()

    search = Dpor(model, visit, stop)
    exhaustive, interrupted = _run(search.run)
    tally = search.tally
    done = exhaustive or interrupted or verdicts.first is not None
    estimate = None if done else _estimate(model, tally)
    total = verdicts.total(exhaustive, tally.deliveries)
    return Exhaustion(
        "dpor", verdicts.first, exhaustive, tally.executions, tally.blocked, tally.deliveries,
        sum(map(len, model.machines)), judge.judged, estimate, total, interrupted=interrupted,
    )  # fmt: skip


def _run(search: Callable[[], bool]) -> tuple[bool, bool]:
    """Whether a search saw everything, and whether Ctrl-C ended it."""
    try:
        with collector_of_the_young(), at_fault():
            return search(), False
    except KeyboardInterrupt:
        return False, True


def explore_stateful(
    spec: RunSpec,
    budget: Budget,
    go_on: bool = False,
    eager: bool = True,
    wanted: str = "",
    symmetry: bool = True,
) -> Exhaustion:
    """Visit every state of ``spec`` (its chaos left out) once, breadth-first.

    With ``eager`` off, deliveries that commute with everything are tried in every order, too, and
    the counterexample is the shortest there is in deliveries.  It ends with the first violation of
    ``wanted``, or of the rule that the spec expects.
    """
    model, wanted = model_of(spec), wanted or _expected_rule(spec)

    def oracle(everything: bool) -> Oracle:
        if everything:
            return Oracle(spec.world, spec.sometimes)
        return Oracle(spec.world, (), frozenset(RULES))

    return search_stateful(model, oracle, budget, go_on, eager, wanted, symmetry)


def search_stateful(
    model: Model,
    oracle: Callable[[bool], Oracle],
    budget: Budget,
    go_on: bool = False,
    eager: bool = True,
    wanted: str = "",
    symmetry: bool = True,
) -> Exhaustion:
    """The same for a model.

    With ``symmetry`` off, states are told apart that are the same but for names (``symmetry``).
    ``oracle`` makes one that judges all rules and *sometimes* conditions, or one of ``RULES`` only.
    """
    judge, verdicts = Judge(model, lambda: oracle(True)), _Verdicts(go_on, wanted)

    def visit(steps: list[Step], config: Config, broken: Broken) -> bool:
        verdict = judge.verdict(steps, model.complete(config), quiescent=not config.heads())
        if broken and verdict.outcome != "violated":
            # A state that says something else than the execution: no verdict can rely on it.
            what = f"{broken[0].rule} is broken by delivery {len(steps)}"
            raise EmulatorError(f"{what} in a state, and not in the execution that leads there")
        return verdicts.add(verdict, partial(counterexample, steps, verdict))

    def stop(states: int) -> bool:
        budget.watch(states, search.deliveries)
        most = budget.executions_max
        return (most is not None and states >= most) or budget.expired()

    table = OracleTable(lambda: oracle(False))
    forms = Forms(model, table) if symmetry else None
    search = Stateful(model, table, visit, stop, eager, forms)
    try:
        exhaustive, interrupted = _run(search.run)
    except NotAlikeError:  # node code that treats them differently: nothing is taken to be alike
        search, forms = Stateful(model, table, visit, stop, eager), None
        exhaustive, interrupted = _run(search.run)
    estimate = None
    if not exhaustive and verdicts.first is None and search.levels:
        estimate = max(levels_estimate(search.levels), float(len(search.seen)))
    return Exhaustion(
        "stateful", verdicts.first, exhaustive, search.terminal, 0, search.deliveries,
        len(search.seen), judge.judged, estimate, verdicts.total(exhaustive, search.deliveries),
        RULES, interrupted, *_symmetric(search, forms),
    )  # fmt: skip


def _symmetric(search: Stateful, forms: Forms | None) -> tuple[tuple[tuple[str, ...], ...], int]:
    """Interchangeable nodes, and how many states those stand for that were seen."""
    if forms is None or not forms.orbits:
        return (), len(search.seen)
    return tuple(forms.orbits), sum(forms.images(*key) for key, _ in search.seen.values())


# ---- how much is left ----------------------------------------------------------------------------


def _estimate(model: Model, tally: Tally) -> float:
    """Executions in all: what random probes say, and never less than were run."""
    return max(probe_estimate(model, PROBES), float(tally.executions))


def probe_estimate(model: Model, probes: int) -> float:
    """Knuth's estimate of a tree's leaves (*Math. Comp.* 29, 1975).

    Each probe is one random execution; a branch is counted where one of its races asks for one.
    Branches that only later executions ask for are not seen, and those that sleep sets cut are,
    so this is an order of magnitude.
    """
    return sum(_Probe(model, seed).leaves() for seed in range(probes)) / probes


class _Probe(Dpor):
    """One random execution of the search."""

    def __init__(self, model: Model, seed: int) -> None:
        super().__init__(model, lambda _events, _config: True, lambda _: False)
        self._draws = random.Random(seed)

    def _first(self, config: Config, awake: list[Sent]) -> Sent:
        chosen = super()._first(config, awake)
        return chosen if self.model.move(config, chosen).private else self._draws.choice(awake)

    def leaves(self) -> float:
        """The product of the branches along the execution."""
        self.run()
        product = 1.0
        for point in self.points:
            product *= max(1, len(point.todo)) * (1 + len(point.queue))
        return product


def levels_estimate(levels: Sequence[int]) -> float:
    """States in all of a breadth-first search that was cut after these levels.

    Levels grow, and then shrink, as what is in flight is used up.  It is assumed that the growth of
    the last ones goes on to fall so that it is zero after half as many levels again.  From
    the middle of searches that did end, this was wrong by a factor of up to five.
    """
    last = levels[-GROWTH_LEVELS - 1 :]
    if len(last) < 2 or not last[-1]:
        return float(sum(levels))
    growth = log(last[-1] / last[0]) / (len(last) - 1)
    fall = max(abs(growth), GROWTH_LEAST) * 2 / len(levels)
    size, total = float(last[-1]), float(sum(levels))
    while size >= 1:
        growth -= fall
        size *= exp(growth)
        total += size
    return total
