"""The merged trace of a run from its journals, while it runs or afterwards.

Deliveries come in the order of their numbers.  ``Follower.poll`` stops at the first delivery
whose handling is not on file yet; ``Follower.rest`` takes a run that grows no more and skips
deliveries that were never handled (their nodes were killed, or the run was cut short).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mmurace.broker.plan import Outcome, end_text
from mmurace.nodes.journal import SUFFIX, JournalReader, journal_path
from mmurace.protocol import codec, wire
from mmurace.protocol.envelope import BROKER
from mmurace.protocol.errors import PeerError
from mmurace.protocol.limits import FOLLOW_STEPS_MAX, JOURNAL_RECORD_BYTES_MAX
from mmurace.protocol.trace import TraceStep


class Follower:
    """Reads a run's directory.  Memory is bounded by one read buffer per journal.

    Raises ``UserError`` for files that are not journals, ``PeerError`` for records that do not
    parse.
    """

    def __init__(self, directory: Path, nodes: Iterable[str]) -> None:
        self.directory = directory
        self.outcome: Outcome | None = None
        """How the run ended, once that was read."""
        self.handled = 0
        """The last delivery that was read with its handling."""
        self.low_water = 0
        """No step to come has a cause below this, but for ends of operations."""
        self.skipped: list[tuple[int, str]] = []
        """Deliveries that were never handled, and to whom (``DELIVERIES_IN_FLIGHT_MAX`` each)."""
        self.killed: set[str] = set()
        """Who died by chaos, as far as was read."""
        self._broker = _Tail(journal_path(directory, BROKER))
        self._nodes = {name: _Tail(journal_path(directory, name)) for name in nodes}
        self._next: list[Any] | None = None
        """The delivery whose handling comes next."""
        self._killed: list[tuple[int, str]] = []
        """(Delivery, node): deaths that no step has told of yet."""

    def poll(self, steps_max: int = FOLLOW_STEPS_MAX) -> list[TraceStep]:
        """The steps that have come to be since the last call, at most so many."""
        steps: list[TraceStep] = []
        while len(steps) < steps_max:
            step = self._step(final=False)
            if step is None:
                break
            steps.append(step)
        return steps

    def rest(self) -> Iterator[TraceStep]:
        """All further steps of a run that has ended, one way or another."""
        while (step := self._step(final=True)) is not None:
            yield step

    def check_whole(self) -> None:
        """Raises ``PeerError`` if a run that ended well lacks what a living node handled."""
        if self.cut:
            return
        for n, node in self.skipped:
            if node not in self.killed:
                raise PeerError(f"delivery {n} is not in {journal_path(Path(), node)}")

    @property
    def cut(self) -> bool:
        """Whether the run was cut short, as far as was read."""
        return self.outcome is None or not self.outcome.sound

    def end_text(self) -> str:
        """Where the record of a run that was cut short ends, as ``Record.end_text``."""
        return end_text(self.handled, len(self.skipped), self.outcome) if self.cut else ""

    def close(self) -> None:
        """Close all files."""
        for tail in (self._broker, *self._nodes.values()):
            tail.close()

    def _step(self, final: bool) -> TraceStep | None:
        while True:
            if self._next is None:
                self._next = self._next_delivery()
            if self._next is None:
                return None
            n, id_, _copy, src, dst, kind, causes = self._next
            if dst not in self._nodes:
                raise PeerError(f"delivery {n} is to {dst}, which is not in this world")
            record = self._nodes[dst].take(n)
            if record is None and not final:
                return None
            self._next = None
            if record is not None:
                found = wire.read_journal_record(record)
                if found.id != id_:
                    raise PeerError(f"delivery {n} is of {id_}, and was handled as {found.id}")
                self.handled = n
                return TraceStep(
                    n, id_, src, dst, kind, tuple(causes), found.records, self._lost_before(n)
                )
            self.skipped.append((n, dst))

    def _lost_before(self, n: int) -> tuple[str, ...]:
        """Who died before delivery ``n``, once."""
        if not self._killed:
            return ()
        lost = tuple(node for number, node in self._killed if number < n)
        self._killed = [death for death in self._killed if death[0] >= n]
        return lost

    def _next_delivery(self) -> list[Any] | None:
        while (data := self._broker.next()) is not None:
            word, *fields = codec.unpack(data, JOURNAL_RECORD_BYTES_MAX)
            if word == "deliver":
                return list(fields)
            if word == "killed":
                self._killed.append((int(fields[0]), str(fields[1])))
                self.killed.add(str(fields[1]))
            if word == "low":
                self.low_water = int(fields[0])
            if word == "end":
                self.outcome = codec.convert(fields[0], Outcome)
        return None


class _Tail:
    """A journal that may not be there yet, with one record of look-ahead."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader: JournalReader | None = None
        self._ahead: bytes | None = None
        self._number = 0

    def next(self) -> bytes | None:
        """The next record, if it is there."""
        if self._reader is None:
            if not self.path.exists():
                return None
            self._reader = JournalReader(self.path)
        return self._reader.next()

    def take(self, n: int) -> bytes | None:
        """The record of delivery ``n``, or None if it is not there (yet).

        A node handles what it is given in its order.  Raises ``PeerError`` if it did not.
        """
        if self._ahead is None:
            self._ahead = self.next()
            if self._ahead is None:
                return None
            self._number = wire.journal_record_number(self._ahead)
        if self._number != n:
            raise PeerError(f"delivery {n} is not in {self.path.name}, which has {self._number}")
        record, self._ahead = self._ahead, None
        return record

    def close(self) -> None:
        """Close the file, if it was ever opened."""
        if self._reader is not None:
            self._reader.close()


# ---- comparing -----------------------------------------------------------------------------


def compare_runs(left: Path, right: Path, last: int | None = None) -> tuple[str, int, str] | None:
    """The first difference between two runs' node journals: (node, delivery, field).

    The earliest delivery counts.  None: every node did the same, byte for byte.  ``last``: the
    left one was cut short; what it has beyond that delivery nobody knows of.
    """
    names = {path.name for run in (left, right) for path in run.glob("*" + SUFFIX)}
    names.discard(BROKER + SUFFIX)
    found = [_difference(name, left / name, right / name, last) for name in sorted(names)]
    return min((d for d in found if d is not None), key=lambda d: d[1], default=None)


def _difference(
    name: str, left: Path, right: Path, last: int | None
) -> tuple[str, int, str] | None:
    node = name.removesuffix(SUFFIX)
    for path in (left, right):
        if not path.exists() and (last is None or path is right):
            return node, 0, "journal"
    for one, other in zip_longest(_records(left, last), _records(right, None)):
        if one != other:
            return node, *_field(one, other)
    return None


def _records(path: Path, last: int | None) -> Iterator[bytes]:
    if last is not None and not path.exists():
        return  # it was cut short before this node could begin
    with closing(JournalReader(path)) as reader:
        while (record := reader.next()) is not None:
            if last is not None and wire.journal_record_number(record) > last:
                break
            yield record


def _field(one: bytes | None, other: bytes | None) -> tuple[int, str]:
    """(delivery, field) of the difference between two records, one of which may be missing."""
    if one is None or other is None:
        return wire.journal_record_number(one or other or b""), "end of journal"
    left, right = wire.read_journal_record(one), wire.read_journal_record(other)
    for name in ("n", "id", "messages", "choices"):
        if getattr(left, name) != getattr(right, name):
            return min(left.n, right.n), name
    return left.n, "records"
