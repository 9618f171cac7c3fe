"""Programs: sequences of operations that the broker feeds to the nodes, one at a time.

The next operation of a program becomes pending when the one before it is done and everything it
comes ``after`` is done.  Feeding stops by not feeding: operations in flight are finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from protocol.envelope import BROKER, Envelope, operation_of
from protocol.messages.program import Operation


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a program and the operations (``program/index``) that it comes after."""

    operation: Operation
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """What one node is asked to do; ``steps`` may be endless but must be repeatable."""

    name: str
    node: str
    steps: Iterable[Step]


@dataclass(slots=True)
class _Progress:
    program: Program
    steps: Iterator[Step]
    index: int = 0
    step: Step | None = None
    causes: list[int] = field(default_factory=list)


class Feeder:
    """Turns finished operations into the next ones."""

    def __init__(self, programs: Iterable[Program], operations_max: int | None = None) -> None:
        self._progress = {p.name: _Progress(p, iter(p.steps)) for p in programs}
        self._left = operations_max
        self._waiting: dict[str, list[str]] = {}
        """An operation that is not done yet -> programs that wait for it."""
        self._done: dict[str, int] = {}
        """Finished operations that somebody may come after -> delivery that finished them."""
        self.in_flight: dict[str, str] = {}
        """Operations fed and not done: id -> node."""
        self.finished = 0
        self.stopped = False

    def start(self) -> list[Envelope]:
        """The first operation of every program that waits for nothing."""
        return [e for name in self._progress for e in self._next(name)]

    def stop(self) -> None:
        """Feed nothing more."""
        self.stopped = True

    @property
    def exhausted(self) -> bool:
        """Every program has run to its end, or feeding stopped, and nothing is in flight."""
        rest = any(p.step is not None for p in self._progress.values())
        return not self.in_flight and (self.stopped or self._left == 0 or not rest)

    def blocked(self) -> list[tuple[str, tuple[str, ...]]]:
        """Programs that wait for operations which are not done: (program, what for)."""
        return [
            (name, tuple(op for op in p.step.after if op not in self._done))
            for name, p in self._progress.items()
            if p.step is not None and f"{name}/{p.index}" not in self.in_flight
        ]

    def done(self, operation: str, delivery: int) -> list[Envelope]:
        """``operation`` was finished by the handling of ``delivery``: what becomes pending."""
        if self.in_flight.pop(operation, None) is None:
            return []  # a repetition of an OpDone
        self.finished += 1
        self._done[operation] = delivery
        name = operation.rpartition("/")[0]
        progress = self._progress[name]
        progress.step, progress.causes = None, [delivery]
        progress.index += 1
        fed = self._next(name)
        for waiter in self._waiting.pop(operation, ()):
            fed += self._next(waiter)
        return fed

    def _next(self, name: str) -> list[Envelope]:
        progress = self._progress[name]
        operation_id = f"{name}/{progress.index}"
        if self.stopped or self._left == 0 or operation_id in self.in_flight:
            return []
        if progress.step is None:
            progress.step = next(progress.steps, None)
        step = progress.step
        if step is None:
            return []
        missing = [op for op in step.after if op not in self._done]
        if missing:
            self._waiting.setdefault(missing[0], []).append(name)
            return []
        if self._left is not None:
            self._left -= 1
        causes = (*progress.causes, *(self._done[op] for op in step.after))
        self.in_flight[operation_id] = progress.program.node
        kind = type(step.operation).__name__
        return [
            Envelope(
                operation_id, BROKER, progress.program.node, kind, name, "", step.operation,
                causes=causes,
            )
        ]  # fmt: skip


def operation_program(message_id: str) -> str:
    """The program whose operation caused a message."""
    return operation_of(message_id).rpartition("/")[0]
