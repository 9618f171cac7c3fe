"""The oracle's word on a complete execution, and on the others of its trace where they may differ.

Executions of one trace agree on everything but the order of independent deliveries.  The oracle
takes all deliveries at one node to be ordered, so an order that is incidental may hide from it
that an invalidation was completed before its deadline only by chance.  Therefore, where some
translation was closed before a deadline without happening before it, the same trace is also
judged in the order in which that deadline comes as early as it can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from mmurace.broker.schedules import ScheduleEntry
from mmurace.explorer.exhaustive.node_tables import Move, Sent
from mmurace.explorer.exhaustive.world_state import Model
from mmurace.oracle.oracle import Oracle
from mmurace.oracle.verdict import Verdict
from mmurace.protocol import records as r
from mmurace.protocol.pte import usable
from mmurace.protocol.trace import Ending, TraceStep

Choices = list[tuple[str, int, int]]


class Done(Protocol):
    """A delivery of an execution."""

    message: Sent
    move: Move


class Placed(Done, Protocol):
    """A delivery with what happens before it, as a mask over the execution, itself included."""

    past: int


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A schedule that breaks a rule: deliveries by number, and the choices made in each."""

    entries: tuple[ScheduleEntry, ...]
    choices: tuple[Choices, ...]
    verdict: Verdict


class Judge:
    """Judges executions of one model with fresh oracles."""

    def __init__(self, model: Model, make: Callable[[], Oracle]) -> None:
        self.model, self.make = model, make
        self.judged = 0
        """Executions that the oracle saw."""

    def trace(
        self, events: Sequence[Placed], complete: bool
    ) -> Iterator[tuple[Verdict, Sequence[Placed]]]:
        """Verdicts on a trace with their executions: this one, and others that may differ."""
        yield self.verdict(events, complete), events
        for order in early_deadlines(events):
            yield self.verdict(order, complete), order

    def verdict(self, events: Sequence[Done], complete: bool, quiescent: bool = True) -> Verdict:
        """The oracle's verdict on one execution; ``quiescent``: nothing more is deliverable."""
        self.judged += 1
        oracle = self.make()
        for step in steps_of(self.model, events):
            oracle.step(step)
        ending = Ending(len(events), _finished(events), complete, _waiting(events))
        oracle.finish(ending, quiescent)
        return oracle.verdict(ending)


def counterexample(events: Sequence[Done], verdict: Verdict) -> Counterexample:
    """The schedule of an execution."""
    return Counterexample(
        tuple((n, event.message.id, 0) for n, event in enumerate(events, 1)),
        tuple(list(event.move.choices) for event in events),
        verdict,
    )


def steps_of(model: Model, events: Sequence[Done]) -> Iterator[TraceStep]:
    """The trace of an execution, with the causes that the broker would give."""
    released: dict[Sent, tuple[int, ...]] = {}
    done: dict[str, int] = {}
    after = model.feed.after
    for n, event in enumerate(events, 1):
        message, move = event.message, event.move
        causes = released.get(message)
        if causes is None:
            causes = tuple(done[operation] for operation in after[message.id])
        for sent in move.sent:
            released[sent] = (n,)
        for operation in move.done:
            done[operation] = n
        yield TraceStep(
            n, message.id, message.src, message.dst, message.kind, causes, move.records
        )  # fmt: skip


def early_deadlines(events: Sequence[Placed]) -> Iterator[list[Placed]]:
    """The same trace in orders in which a deadline precedes closings that it need not follow."""
    closings = 0
    for at, event in enumerate(events):
        if closings & ~event.past and any(map(_deadline, event.move.records)):
            yield _early(events, at)
        if any(map(_closes, event.move.records)):
            closings |= 1 << at


def _early(events: Sequence[Placed], at: int) -> list[Placed]:
    """What happens before ``events[at]`` and itself first, all else after it."""
    past = events[at].past
    first = [e for n, e in enumerate(events) if past >> n & 1]
    return first + [e for n, e in enumerate(events) if not past >> n & 1]


def _closes(record: r.Record) -> bool:
    """Whether some translation can no longer be used from here on.

    An invalidation that dropped none may be the first to say so of what another one has dropped.
    """
    if isinstance(record, r.RequestPosted):
        return record.done
    return isinstance(record, (r.Evict, r.InvalidateDone))


def _deadline(record: r.Record) -> bool:
    """Whether translations may have to be gone by now."""
    if isinstance(record, r.PteChange):
        return usable(record.new)
    if isinstance(record, r.Invalidation):
        return not record.begin
    return isinstance(record, (r.FrameFreed, r.FrameCopied, r.OpEnd))


def _finished(events: Sequence[Done]) -> int:
    return sum(len(event.move.done) for event in events)


def _waiting(events: Sequence[Done]) -> tuple[tuple[str, str, str, str], ...]:
    """Requests that were never answered: (id, kind, who asked, who should answer)."""
    asked: dict[str, Sent] = {}
    for event in events:
        message = event.message
        if message.id.endswith("~"):
            asked.pop(message.id[:-1], None)
        else:
            asked[message.id] = message
        for operation in event.move.done:
            asked.pop(operation, None)
    return tuple((m.id, m.kind, m.src, m.dst) for m in asked.values())
