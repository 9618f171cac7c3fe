"""The interleaving of a violation: who did what to the few things that matter, in order.

A slice of one run.  What matters are the translation that the violation is about, the frames and
the table behind it, the agent that cached it, the locks and counters that it or the table has,
the threads whose operations the violation names, and the deliveries that its explanation names.
Rows are plain facts; how they are worded is the report's matter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from mmurace.explorer.explain.flushes import DONE, SENT, flushes_in
from mmurace.explorer.explain.page_tables import Span, Tables
from mmurace.explorer.explain.subject import Subject, subject_of
from mmurace.explorer.explain.weights import Weights
from mmurace.explorer.shrink.case import Case, operation_in
from mmurace.explorer.shrink.play import Moment
from mmurace.oracle.violation import Violation
from mmurace.protocol import records as r
from mmurace.protocol.envelope import BROKER, REPLY_MARK, Envelope, operation_of
from mmurace.protocol.messages.base import Message, kinds
from mmurace.protocol.messages.memory import PteScan, TlbFlushPending
from mmurace.protocol.messages.program import Operation
from mmurace.protocol.messages.swap import TlbBatchedLoad
from mmurace.protocol.told import DECISIVE, DETAIL, ESSENTIAL, HELPFUL, NEVER, Told

Reply = tuple[int, Message]
"""(delivery that answered, the answer)."""
WAITS: Final = "waits"
GOT: Final = "got"
"""Values of a lock's row: its request had to wait, and later was granted."""


@dataclass(slots=True)
class Row:
    """One line of the table."""

    n: int
    """The delivery at which it took effect."""
    party: str
    """The node that did it: the column."""
    kind: str
    """Class name of the message or record."""
    operation: str
    """``program/index``."""
    operation_kind: str
    values: dict[str, Any] = field(default_factory=dict)
    """Fields of the message or record; ``reply`` holds those of the answer."""
    weight: int = ESSENTIAL
    marks: tuple[str, ...] = ()
    """What the violation calls this event."""
    target: str = ""
    """The node that a message went to."""
    name: str = ""
    """The delivery, as schedules call it."""
    named: bool = False
    """The explanation speaks of it."""


def timeline(
    case: Case,
    violation: Violation,
    moments: Sequence[Moment],
    after: Sequence[Moment] = (),
    named: Collection[str] = (),
) -> list[Row]:
    """Every row that may matter, in order; the weight says how much.

    ``moments`` end with the violation; what came ``after`` has a row only if the explanation speaks
    of it.  ``named`` are the names of the deliveries of which it does.
    """
    rows = _Rows(case, subject_of(case, violation, moments), [*moments, *after], violation, named)
    last = moments[-1].n if moments else 0
    return [row for row in rows.all() if row.n <= last or row.named]


class _Rows:
    """Makes the rows of one run."""

    def __init__(
        self,
        case: Case,
        subject: Subject,
        moments: Sequence[Moment],
        violation: Violation,
        named: Collection[str],
    ) -> None:
        self.case, self.subject, self.moments = case, subject, moments
        self.named = {name.rstrip(REPLY_MARK) for name in named}
        self.marks = _marks(violation)
        self.replies = _replies(moments)
        self.kinds = case.kinds()
        self.tables = Tables(case.spec.world)
        self.weights = Weights(subject, case.spec.world, moments)
        self.racing = [operation_of(event.id) for event in violation.racing]

    def all(self) -> list[Row]:
        """In order; those of the window in which it happened, and those that are named."""
        rows: list[Row] = []
        for moment in self.moments:
            rows += self._of(moment)
            for record in moment.handled.records:
                self.tables.see(record)
        rows += self._flushes()
        _say_whether_they_write(rows, self.case)
        for row in rows:
            _mark(row, self.marks)
        _mark_asides(rows, self.marks)
        self._name(rows)
        begun, ended = self._begin_of_window(rows), _ends(self.moments)
        kept = [r for r in rows if r.marks or r.named or self._in_window(r, begun, ended)]
        # Whoever gets a lock gets it after it was let go.
        return sorted(kept, key=lambda row: (row.n, row.values.get("state") == GOT))

    def _name(self, rows: Sequence[Row]) -> None:
        """One row of each delivery that is spoken of: the message, or else what came of it."""
        told: dict[str, Row] = {}
        for row in sorted(rows, key=lambda row: row.kind == "Queued"):
            if row.name in self.named:
                told.setdefault(row.name, row)
        for row in told.values():
            row.named = True
            row.weight = min(row.weight, ESSENTIAL)

    def _in_window(self, row: Row, begun: int, ended: Mapping[str, int]) -> bool:
        """Since the window opened; of what others do also before, if they were not done by then."""
        if row.weight >= NEVER:
            return False
        mine = row.operation in self.subject.operations
        under_way = not mine and ended.get(row.operation, begun) >= begun
        return row.n >= begun or under_way

    def _begin_of_window(self, rows: Sequence[Row]) -> int:
        """Where the operation began that took the translation away.

        If the violation names none: the first that raced, or that changed the entry once it was
        cached.
        """
        begins = {row.operation: row.n for row in rows if row.kind == "OpBegin"}
        changing = [begins.get(row.operation, 0) for row in rows if "changed" in row.marks]
        racing = [begins[operation] for operation in self.racing if operation in begins]
        filled = [row.n for row in rows if "filled" in row.marks]
        since = [r for r in rows if filled and r.n > filled[-1] and _changes_entry(r)]
        other = [begins.get(row.operation, row.n) for row in since[:1]]
        mine = [n for operation, n in begins.items() if operation in self.subject.operations]
        return min(changing or [*racing, *other], default=max(mine, default=0))

    # -- one delivery ------------------------------------------------------------------------

    def _of(self, moment: Moment) -> list[Row]:
        """The rows of one delivery."""
        envelope = moment.envelope
        operation = operation_of(envelope.id)
        rows: list[Row] = []
        if not envelope.is_reply and envelope.src != BROKER:
            rows += self._message(moment, operation)
        elif moment.name in self.named and not envelope.is_reply:
            rows.append(self._row(moment, operation, "Queued", {}, DETAIL))
        told = rows[0] if rows else None
        for record in moment.handled.records:
            kind = type(record).__name__
            # A thread that waited for its processor goes on in a delivery of whoever left it.
            whose = getattr(record, "op", "") or operation
            weight = self.weights.record(record, envelope.dst, whose)
            if kind == "Coverage":
                rows += self._covered(moment, record)
            if weight == NEVER:
                continue
            if told is not None and (kind in _ENRICH or _told(told.kind).whole):
                continue
            rows.append(self._row(moment, whose, kind, msgspec.structs.asdict(record), weight))
        return rows

    def _row(
        self, moment: Moment, operation: str, kind: str, values: dict[str, Any], weight: int
    ) -> Row:
        """A row of whoever handles the delivery."""
        return Row(
            moment.n, moment.envelope.dst, kind, operation, self.kinds.get(operation, ""), values,
            weight, name=moment.name,
        )  # fmt: skip

    def _covered(self, moment: Moment, record: r.Record) -> Iterator[Row]:
        """What takes no message: a DSB with nothing to wait for, a start that failed."""
        kernel = self.case.spec.world.kernel
        operation = operation_of(moment.envelope.id)
        if (
            isinstance(record, r.Coverage)
            and record.point == "batched_pending_flushed"
            and kernel.arch.batched_pending_flush == "dsb"
            and operation in self.subject.operations
        ):
            yield self._row(moment, operation, "OwnDsb", {}, HELPFUL)
        if isinstance(record, r.Coverage) and record.point == "start_refused":
            yield self._row(moment, operation, "StartRefused", {}, ESSENTIAL)

    def _message(self, moment: Moment, operation: str) -> list[Row]:
        envelope = moment.envelope
        body = envelope.body
        spoken_of = moment.n in self.marks or moment.name in self.named
        weight = self.weights.message(moment, operation)
        weight = min(weight, DETAIL) if spoken_of else weight
        if weight == NEVER or not isinstance(body, Message):
            return []
        values = msgspec.structs.asdict(body)
        answered = self.replies.get(envelope.id)
        if answered is not None:
            values["reply"] = msgspec.structs.asdict(answered[1])
            mine = operation in self.subject.operations
            if _says_nothing(body, answered[1], mine) and not spoken_of:
                return []
        values |= self._more(moment)
        row = Row(
            moment.n, _party(envelope), envelope.kind, operation, self.kinds.get(operation, ""),
            values, weight, (), envelope.dst, moment.name,
        )  # fmt: skip
        return _lock_rows(row, answered) if body.TAKES is not None else [row]

    def _more(self, moment: Moment) -> dict[str, Any]:
        """What memory says of a message, and which addresses its table maps."""
        values: dict[str, Any] = {}
        body = moment.envelope.body
        records = [rec for rec in moment.handled.records if type(rec).__name__ in _ENRICH]
        upper = [rec for rec in records if isinstance(rec, r.PteChange) and rec.level]
        here = [rec for rec in records if _is_of(rec, self.subject)]
        for record in upper[:1] or here[:1] or records[-1:]:
            values |= {"record": type(record).__name__} | msgspec.structs.asdict(record)
        table = getattr(body, "table", None)
        if table is not None and not records:
            span = self._span(body, table)
            values |= {} if span is None else span.values()
        elif upper and isinstance(upper[0], r.PteChange):
            values |= self._upper_span(upper[0]).values()
        values["elsewhere"] = _elsewhere(values, self.subject)
        return values

    def _span(self, body: Message | bytes, table: int) -> Span | None:
        """What a message is about: a table, one of its entries, or some."""
        index = getattr(body, "index", None)
        if index is not None:
            return self.tables.entry(table, index)
        if not isinstance(body, PteScan):
            return self.tables.of(table)
        first, last = (self.tables.entry(table, at) for at in (body.first, body.last - 1))
        return first and last and replace(first, end=last.end)

    def _upper_span(self, record: r.PteChange) -> Span:
        end = record.address + (1 << self.case.spec.world.shift(record.level))
        return Span(record.mm, record.level, record.address, end)

    # -- flushes -----------------------------------------------------------------------------

    def _flushes(self) -> Iterator[Row]:
        """When flushes were sent, and when their sender knew that they were done."""
        for flush in flushes_in(self.moments):
            operation = operation_of(flush.id)
            weight = self.weights.flush(flush.mm, flush.start, flush.end, operation)
            if weight == NEVER:
                continue
            kind = self.kinds.get(operation, "")
            yield Row(flush.sent, flush.sender, SENT, operation, kind, flush.values(), weight)
            if flush.done >= 0:
                values = flush.values() | {"waited": flush.waited}
                yield Row(flush.done, flush.sender, DONE, operation, kind, values, weight)


_ASIDE: Final = frozenset({
    "OpBegin", "OpEnd", "NotifierCall", "Evict", "GuestEnter", "GuestExit", SENT, DONE, "OwnDsb",
})  # fmt: skip
"""Rows that come with an event and are not it."""
_ENRICH: Final = frozenset({"PteChange", "PteRead", "FrameFreed", "FrameAllocated", "Access"})
"""Records of memory that say more about the message than the message itself."""
_FILLS: Final = frozenset({"Fill", "TableCached"})
"""Records of what puts a translation into a cache."""
_NOTHING: Final = Told()


def _told(kind: str) -> Told:
    """What a message says of itself; of a record, nothing."""
    message = kinds().get(kind)
    return message.TOLD if message is not None else _NOTHING


def _changes_entry(row: Row) -> bool:
    return row.values.get("record") == "PteChange" and row.weight <= ESSENTIAL


def _lock_rows(row: Row, answered: Reply | None) -> list[Row]:
    """A lock that was free is taken; else its request waits, and it is got when it is granted."""
    if answered is not None and answered[0] == row.n:
        return [row]
    row.values["state"] = WAITS
    row.weight = min(row.weight, max(row.weight - 1, HELPFUL))
    if answered is None:
        return [row]
    values = row.values | {"state": GOT}
    got = Row(
        answered[0], row.party, row.kind, row.operation, row.operation_kind, values, row.weight,
        target=row.target, name=row.name + REPLY_MARK,
    )  # fmt: skip
    return [row, got]


def _is_of(record: r.Record, subject: Subject) -> bool:
    """Whether memory speaks of the subject's entry, or of its frame."""
    if isinstance(record, (r.PteChange, r.PteRead)):
        return (record.mm, record.address) == (subject.mm, subject.address)
    return getattr(record, "frame", -1) in subject.frames


def _elsewhere(values: Mapping[str, Any], subject: Subject) -> bool:
    """Whether it is about another page than the violation."""
    if "address" in values and "mm" in values:
        return (values["mm"], values["address"]) != (subject.mm, subject.address)
    return False


def _says_nothing(body: Message, answer: Message, mine: bool) -> bool:
    """A flush of others that was looked for and is not there, or is over."""
    count = getattr(answer, "value", 0)
    if isinstance(body, TlbFlushPending):
        return count < 2 if mine else body.delta <= 0
    return isinstance(body, TlbBatchedLoad) and count == 0


def _party(envelope: Envelope) -> str:
    """Who acts: the sender; the receiver where a message makes it do something of its own."""
    body = envelope.body
    receives = isinstance(body, Message) and body.TOLD.row == "receiver"
    return envelope.dst if receives else envelope.src


def _ends(moments: Sequence[Moment]) -> dict[str, int]:
    """Operation -> the delivery at which it ended."""
    return {
        record.op or operation_of(moment.envelope.id): moment.n
        for moment in moments
        for record in moment.handled.records
        if isinstance(record, r.OpEnd)
    }


def _say_whether_they_write(rows: Sequence[Row], case: Case) -> None:
    """An operation that is one access: a load or a store."""
    writes = {
        f"{p.name}/{at}": getattr(step.operation, "write", False)
        for p in case.programs
        for at, step in enumerate(p.steps)
        if isinstance(step.operation, Operation) and step.operation.AGENT
    }
    for row in rows:
        if row.kind in ("OpBegin", "OpEnd") and row.operation in writes:
            row.values["write"] = writes[row.operation]


def _replies(moments: Sequence[Moment]) -> dict[str, Reply]:
    """Request -> its answer."""
    found: dict[str, Reply] = {}
    for moment in moments:
        for sent in moment.handled.messages:
            if sent.id.endswith(REPLY_MARK) and isinstance(sent.body, Message):
                found.setdefault(sent.id[:-1], (moment.n, sent.body))
    return found


# ---- what the violation names ------------------------------------------------------------------


def _marks(violation: Violation) -> dict[int, tuple[str, ...]]:
    """By delivery: what the violation calls it."""
    found: dict[int, list[str]] = {}
    for word, event in (
        ("read", violation.read), ("filled", violation.filled),
        ("changed", violation.changed), ("deadline", violation.deadline),
    ):  # fmt: skip
        if event is not None:
            found.setdefault(event.n, []).append(word)
    for event in violation.racing:
        found.setdefault(event.n, [])
    return {n: tuple(words) for n, words in found.items()}


def _mark(row: Row, marks: Mapping[int, tuple[str, ...]]) -> None:
    words = marks.get(row.n)
    if words is None or row.weight == NEVER or row.kind in _ASIDE or "state" in row.values:
        return
    if "filled" not in words or row.kind in _FILLS or _told(row.kind).fills:
        row.marks, row.weight = words or ("racing",), DECISIVE


def _mark_asides(rows: Sequence[Row], marks: Mapping[int, tuple[str, ...]]) -> None:
    """Where nothing else of a delivery is told, what comes with it is what was meant."""
    told = {row.n for row in rows if row.marks}
    last = {row.n: row for row in rows if row.n in marks and row.n not in told}
    for n, row in last.items():
        if row.weight < NEVER:
            row.marks, row.weight = marks[n] or ("racing",), DECISIVE


def setup_of(moments: Sequence[Moment], rows: Sequence[Row]) -> list[str]:
    """Operations that only prepared the ground: begun before the violation, and without a row."""
    shown = {operation_in(row.operation) for row in rows}
    begun = dict.fromkeys(m.name for m in moments if m.envelope.src == BROKER)
    return [operation for operation in begun if operation not in shown]
