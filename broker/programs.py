"""Programs: sequences of operations that the broker feeds to the nodes, one at a time.

The next operation of a program becomes pending when the one before it is done and everything it
comes ``after`` is done.  Feeding stops by not feeding: operations in flight are finished.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mmurace.protocol.envelope import BROKER, Envelope, operation_of
from mmurace.protocol.errors import EmulatorError
from mmurace.protocol.messages.program import Operation


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a program and the operations (``program/index``) that it comes after."""

    operation: Operation
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rounds:
    """Programs that go in rounds, each at least as far as all others were one round before.

    In every round the ends of the first ``awaited`` operations may be come after, by whoever is in
    the same round, so those of earlier ones can be forgotten.
    """

    first: Mapping[str, int]
    """Program -> the index at which its first round begins."""
    length: Mapping[str, int]
    """Program -> its operations of a round."""
    awaited: int

    @property
    def kept(self) -> int:
        """So many ends of each program can still be named: of this round and of the next."""
        return 2 * self.awaited

    def __contains__(self, operation: object) -> bool:
        """Whether somebody may come after it."""
        program, _, index = str(operation).rpartition("/")
        if program not in self.first:
            return False
        since = int(index) - self.first[program]
        return since >= 0 and since % self.length[program] < self.awaited

    def operation(self, program: str, number: int, position: int) -> str:
        """The id of an operation of a round."""
        return f"{program}/{self.first[program] + number * self.length[program] + position}"


@dataclass(frozen=True, slots=True)
class Program:
    """What one node is asked to do; ``steps`` may be endless but must be repeatable.

    Endless ones say in ``awaits`` and ``rounds`` after which operations they may come, so that the
    ends of all others can be forgotten; ``awaits`` is None: after any.
    """

    name: str
    node: str
    steps: Iterable[Step]
    awaits: frozenset[str] | None = None
    rounds: Rounds | None = None


def awaited(programs: Iterable[Program]) -> frozenset[str] | None:
    """Operations that some step comes after; None if that cannot be known before they are fed."""
    found: set[str] = set()
    for program in programs:
        if isinstance(program.steps, list | tuple):
            found.update(operation for step in program.steps for operation in step.after)
        elif program.awaits is None:
            return None
        else:
            found |= program.awaits
    return frozenset(found)


def rounds_of(programs: Iterable[Program]) -> Rounds | None:
    """The rounds that programs go in; those that do go in the same ones."""
    return next((program.rounds for program in programs if program.rounds is not None), None)


@dataclass(slots=True)
class _Progress:
    program: Program
    steps: Iterator[Step]
    index: int = 0
    step: Step | None = None
    causes: list[int] = field(default_factory=list)
    always: bool = False
    """Fed although feeding has stopped: somebody has to finish what is under way."""
    ended: bool = False
    """Nothing more of it is fed: its node is dying."""


class Feeder:
    """Turns finished operations into the next ones."""

    def __init__(self, programs: Iterable[Program], operations_max: int | None = None) -> None:
        programs = tuple(programs)
        self._awaited, self._rounds = awaited(programs), rounds_of(programs)
        self._recent: dict[str, deque[str]] = {}
        """Program -> its last ends that are awaited in rounds."""
        self._progress = {p.name: _Progress(p, iter(p.steps)) for p in programs}
        self._left = operations_max
        self._waiting: dict[str, list[str]] = {}
        """An operation that is not done yet -> programs that wait for it."""
        self._done: dict[str, int] = {}
        """Finished operations that somebody may come after -> delivery that finished them.

        As many as programs say; without ``awaits`` of endless ones, all."""
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

    def add(self, program: Program) -> list[Envelope]:
        """One more program, which runs to its end whatever becomes of the others."""
        self._progress[program.name] = _Progress(program, iter(program.steps), always=True)
        return self._next(program.name)

    def end(self, node: str) -> list[Envelope]:
        """Feed nothing more to ``node``; what becomes pending, as nothing more will be done."""
        for name, progress in self._progress.items():
            if progress.program.node == node and not progress.always:
                progress.steps, progress.ended = iter(()), True
                if f"{name}/{progress.index}" not in self.in_flight:
                    progress.step = None
        return self._not_awaited_any_more()

    def lost(self, node: str) -> list[Envelope]:
        """``node`` is dead: its operations are over, without a result."""
        for operation in [op for op, at in self.in_flight.items() if at == node]:
            del self.in_flight[operation]
            self._progress[operation.rpartition("/")[0]].step = None
        return self._not_awaited_any_more()

    def _not_awaited_any_more(self) -> list[Envelope]:
        over = [operation for operation in self._waiting if self._is_over(operation)]
        waiters = [name for operation in over for name in self._waiting.pop(operation)]
        return [envelope for name in waiters for envelope in self._next(name)]

    def _check_said(self, operation: str, step: Step) -> None:
        """What a step comes after must not have been forgotten.  Raises ``EmulatorError``."""
        said, rounds = self._awaited or frozenset(), self._rounds or ()
        for op in step.after:
            if op not in said and op not in rounds:
                raise EmulatorError(f"{operation} comes after {op}, which its program did not say")

    def _is_over(self, operation: str) -> bool:
        """Whether it is done, or will never be."""
        if operation in self._done:
            return True
        progress = self._progress.get(operation.rpartition("/")[0])
        return progress is not None and progress.ended and operation not in self.in_flight

    @property
    def exhausted(self) -> bool:
        """Every program has run to its end, or feeding stopped, and nothing is in flight."""
        rest = any(p.step is not None for p in self._progress.values())
        return not self.in_flight and (self.stopped or self._left == 0 or not rest)

    def blocked(self) -> list[tuple[str, tuple[str, ...]]]:
        """Programs that wait for operations which are not done: (program, what for)."""
        return [
            (name, tuple(op for op in p.step.after if not self._is_over(op)))
            for name, p in self._progress.items()
            if p.step is not None and f"{name}/{p.index}" not in self.in_flight
        ]

    def done(self, operation: str, delivery: int) -> list[Envelope]:
        """``operation`` was finished by the handling of ``delivery``: what becomes pending."""
        if self.in_flight.pop(operation, None) is None:
            return []  # a repetition of an OpDone
        self.finished += 1
        name = operation.rpartition("/")[0]
        progress = self._progress[name]
        if self._awaited is None or operation in self._awaited or progress.always:
            self._done[operation] = delivery
        elif self._rounds is not None and operation in self._rounds:
            self._done[operation] = delivery
            self._forget_rounds(name, operation, self._rounds.kept)
        progress.step, progress.causes = None, [delivery]
        progress.index += 1
        fed = self._next(name)
        for waiter in self._waiting.pop(operation, ()):
            fed += self._next(waiter)
        return fed

    def _forget_rounds(self, program: str, operation: str, kept: int) -> None:
        """Keep the last ends of a program that others may come after in rounds."""
        recent = self._recent.setdefault(program, deque())
        recent.append(operation)
        if len(recent) > kept:
            del self._done[recent.popleft()]

    def _next(self, name: str) -> list[Envelope]:
        progress = self._progress[name]
        operation_id = f"{name}/{progress.index}"
        if operation_id in self.in_flight:
            return []
        if (self.stopped or self._left == 0) and not progress.always:
            return []
        if progress.step is None:
            progress.step = next(progress.steps, None)
        step = progress.step
        if step is None:
            return []
        causes = tuple(progress.causes)
        if step.after:
            if self._awaited is not None and not progress.always:
                self._check_said(operation_id, step)
            missing = [op for op in step.after if not self._is_over(op)]
            if missing:
                self._waiting.setdefault(missing[0], []).append(name)
                return []
            causes += tuple(self._done[op] for op in step.after if op in self._done)
        if self._left is not None and not progress.always:
            self._left -= 1
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
