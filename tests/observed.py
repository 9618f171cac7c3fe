"""Runs in the simulator with their whole trace, and what was cached at each of its records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program, Step
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.nodes.build import build_all
from mmurace.nodes.world import World
from mmurace.oracle.oracle import Oracle
from mmurace.oracle.state.trace import step_of
from mmurace.oracle.violation import Violation
from mmurace.protocol import records as r
from mmurace.protocol.envelope import Envelope, Handled, operation_of
from mmurace.protocol.messages import program as op
from mmurace.protocol.pte import takes_away
from mmurace.protocol.trace import TraceStep

DELIVERIES_MAX = 200_000


@dataclass(frozen=True)
class Run:
    """A run that is over."""

    steps: list[TraceStep]
    violations: list[Violation]
    kinds: dict[str, str]
    """Operation -> its kind."""


@dataclass(frozen=True)
class Moment:
    """A record, and the translations that were cached when it was made, by name."""

    step: TraceStep
    record: r.Record
    cached: dict[str, tuple[str, r.Fill]]
    """Fill -> (who holds it, its record)."""

    @property
    def op(self) -> str:
        """The operation that made it."""
        return getattr(self.record, "op", "") or operation_of(self.step.id)


def observe(world: World, programs: Sequence[Program], seed: int) -> Run:
    """Run to the end."""
    oracle = Oracle(world)
    steps: list[TraceStep] = []

    def watch(envelope: Envelope, handled: Handled) -> object:
        steps.append(step_of(envelope, handled))
        return oracle.observe(envelope, handled)

    drivers = build_all(world, seed)
    exchange = Exchange(Feeder(tuple(programs)))
    ending = Simulator(drivers, exchange, RandomWalk(seed), watch).run(DELIVERIES_MAX)
    oracle.finish(ending)
    assert ending.complete
    begins = [(x, s) for s in steps for x in s.records if isinstance(x, r.OpBegin)]
    kinds = {x.op or operation_of(s.id): x.kind for x, s in begins}
    return Run(steps, oracle.violations, kinds)


def moments(run: Run) -> Iterator[Moment]:
    """Every record in its order."""
    cached: dict[str, tuple[str, r.Fill]] = {}
    for step in run.steps:
        for record in step.records:
            yield Moment(step, record, cached)
            if isinstance(record, r.Fill):
                cached[record.fill] = (step.dst, record)
            elif isinstance(record, r.Evict):
                cached.pop(record.fill, None)
            elif isinstance(record, r.InvalidateDone):
                for fill in record.fills:
                    cached.pop(fill, None)


def dropped(record: r.Record, cache: str) -> bool:
    """Whether an invalidation took an entry from a cache of that kind."""
    return isinstance(record, r.InvalidateBegin) and record.cache == cache and bool(record.fills)


def racing_accesses(run: Run, cache: str, kind: str) -> list[r.Access]:
    """Accesses through a translation that an operation in flight of that kind had taken away."""
    taken: dict[tuple[str, int], str] = {}
    uses: dict[str, r.Fill] = {}
    found = []
    for moment in moments(run):
        record = moment.record
        if isinstance(record, r.PteChange) and takes_away(record.old, record.new):
            if run.kinds.get(moment.op) == kind and not record.level:
                taken[record.mm, record.address] = moment.op
        elif isinstance(record, r.OpEnd):
            taken = {place: by for place, by in taken.items() if by != moment.op}
        elif isinstance(record, r.Use) and record.fill in moment.cached:
            uses[record.access] = moment.cached[record.fill][1]
        elif isinstance(record, r.Access) and moment.step.id in uses:
            fill = uses.pop(moment.step.id)
            if fill.cache == cache and (fill.tag, fill.address) in taken:
                found.append(record)
    return found


def paced(name: str, asked: Sequence[op.Operation], first: int, last: int) -> Program:
    """A program of a node that keeps up with operations ``first`` to ``last`` of cpu0."""
    after = [first + (last - first) * at // len(asked) for at in range(len(asked))]
    steps = zip(asked, after, strict=True)
    return Program(name, name, [Step(o, (f"cpu0/{at}",)) for o, at in steps])


def beside(
    setup: Sequence[op.Operation], loop: Sequence[op.Operation],
    others: Mapping[str, Sequence[op.Operation]],
) -> tuple[Program, ...]:  # fmt: skip
    """cpu0 does setup and then the loop; beside the loop each other node does its own."""
    span = (len(setup) - 1, len(setup) + len(loop) - 1)
    cpu0 = Program("cpu0", "cpu0", [Step(o) for o in (*setup, *loop)])
    return (cpu0, *(paced(name, asked, *span) for name, asked in others.items() if asked))
