"""The interleaving of a violation: who did what to the few things that matter, in order.

A slice of one run.  What matters are the translation that the violation is about, the frames and
the table behind it, the agent that cached it, the locks and counters that its VM or table has,
and the threads whose operations the violation names.  Rows are plain facts; how they are worded
is the report's matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from mmurace.explorer.shrink.case import Case, operation_in
from mmurace.explorer.shrink.play import Moment
from mmurace.explorer.shrink.smaller import events_operations
from mmurace.nodes.secondaries.iommu_sva.messages import (
    AtcInvalidate,
    AtsTranslate,
    Dma,
    DmaAccess,
    InvalidateRequest,
    IotlbInvalidate,
    PageRequest,
    PriRequest,
)
from mmurace.nodes.secondaries.kvm.messages import (
    GuestApic,
    GuestTouch,
    InProgress,
    KvmRequest,
    MemslotAdd,
    MmuLock,
    MmuUnlock,
    SeqBump,
    SeqRead,
    SpteClear,
    SpteLoad,
    SpteSet,
)
from mmurace.nodes.secondaries.ocxl.messages import (
    AtsdLaunch,
    SpaClearCache,
    TerminatePasid,
)
from mmurace.nodes.world import World
from mmurace.oracle.violation import Violation
from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from mmurace.protocol.envelope import BROKER, REPLY_MARK, Envelope, operation_of
from mmurace.protocol.limits import PAGE_SHIFT
from mmurace.protocol.messages.base import Message
from mmurace.protocol.messages.book3s64 import Tlbie
from mmurace.protocol.messages.memory import (
    FrameCopy,
    PteLoad,
    PteWalk,
    PtlLock,
    PtlUnlock,
    TlbFlushPending,
)
from mmurace.protocol.messages.processor import (
    FlushTlbIpi,
    Tlbi,
)
from mmurace.protocol.messages.program import (
    Touch,
)
from mmurace.protocol.messages.swap import (
    SwapWrite,
    TlbBatchedCmpxchg,
    TlbBatchedLoad,
    TlbBatchedStore,
)

DECISIVE: Final = 0
"""An event that the violation names."""
ESSENTIAL: Final = 1
HELPFUL: Final = 2
DETAIL: Final = 3
NEVER: Final = 9
Reply = tuple[int, Message]
"""(delivery that answered, the answer)."""


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


@dataclass(frozen=True, slots=True)
class Subject:
    """What a violation is about."""

    mm: str
    address: int
    frames: frozenset[int]
    table: int
    index: int
    agent: str
    cache: str
    parties: frozenset[str]
    """The agent and what shares its part of the machine: its VM, or its IOMMU."""
    gfns: frozenset[int]
    operations: frozenset[str]


def subject_of(case: Case, violation: Violation, moments: Sequence[Moment]) -> Subject:
    """The subject of a violation in a run."""
    world = case.spec.world
    table, index = _entry(violation, moments)
    return Subject(
        violation.mm, violation.address, frozenset({violation.frame} - {-1}), table, index,
        violation.agent, violation.cache, frozenset(_neighbours(violation.agent, world)),
        frozenset(_gfns(violation, world)), frozenset(events_operations(violation)),
    )  # fmt: skip


def _entry(violation: Violation, moments: Sequence[Moment]) -> tuple[int, int]:
    """Table and index of the page's entry; (-1, -1) if it never changed."""
    for moment in reversed(moments):
        for record in moment.handled.records:
            if (
                isinstance(record, r.PteChange)
                and not record.level
                and (record.mm, record.address) == (violation.mm, violation.address)
            ):
                return record.table, record.index
    return -1, -1


def _neighbours(agent: str, world: World) -> set[str]:
    part = world.part_of(agent)
    return {agent, part.name} if part is not None else {agent}


def _gfns(violation: Violation, world: World) -> set[int]:
    """Own page numbers of secondaries for the page in question."""
    return {
        (own + violation.address - host) >> PAGE_SHIFT
        for part in world.parts
        for mm, own, host, size in part.ranges()
        if mm == violation.mm and host <= violation.address < host + size
    }


# ---- rows --------------------------------------------------------------------------------------


def timeline(case: Case, violation: Violation, moments: Sequence[Moment]) -> list[Row]:
    """Every row that may matter, in order; the weight says how much."""
    subject = subject_of(case, violation, moments)
    marks = _marks(violation)
    replies = _replies(moments)
    kinds = case.kinds()
    rows: list[Row] = []
    for moment in moments:
        rows += _rows_of(moment, subject, replies, kinds, moment.n in marks)
    _say_whether_they_write(rows, case)
    for row in rows:
        _mark(row, marks)
    _mark_asides(rows, marks)
    begun, ended = _begin_of_window(rows, subject), _ends(moments)
    kept = [row for row in rows if row.marks or _in_window(row, begun, ended, subject)]
    return sorted(kept, key=lambda row: row.n)


def _in_window(row: Row, begun: int, ended: Mapping[str, int], subject: Subject) -> bool:
    """Since the window opened; of what others do also before, if they were not done by then."""
    if row.weight >= NEVER:
        return False
    under_way = row.operation not in subject.operations and ended.get(row.operation, begun) >= begun
    return row.n >= begun or under_way


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
        f"{p.name}/{at}": step.operation.write
        for p in case.programs
        for at, step in enumerate(p.steps)
        if isinstance(step.operation, (Touch, Dma, GuestTouch, GuestApic))
    }
    for row in rows:
        if row.kind in ("OpBegin", "OpEnd") and row.operation in writes:
            row.values["write"] = writes[row.operation]


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
    if words is None or row.weight == NEVER or row.kind in _ASIDE:
        return
    if "filled" not in words or row.kind in _FILLS:
        row.marks, row.weight = words or ("racing",), DECISIVE


def _mark_asides(rows: Sequence[Row], marks: Mapping[int, tuple[str, ...]]) -> None:
    """Where nothing else of a delivery is told, what comes with it is what was meant."""
    told = {row.n for row in rows if row.marks}
    last = {row.n: row for row in rows if row.n in marks and row.n not in told}
    for n, row in last.items():
        if row.weight < NEVER:
            row.marks, row.weight = marks[n] or ("racing",), DECISIVE


def _begin_of_window(rows: Sequence[Row], subject: Subject) -> int:
    """Where the operation began that took the translation away; else the last that matters."""
    begins = {r.operation: r.n for r in rows if r.kind == "OpBegin"}
    changing = [begins.get(row.operation, 0) for row in rows if "changed" in row.marks]
    mine = [n for operation, n in begins.items() if operation in subject.operations]
    return min(changing, default=max(mine, default=0))


def _replies(moments: Sequence[Moment]) -> dict[str, Reply]:
    """Request -> its answer."""
    found: dict[str, Reply] = {}
    for moment in moments:
        for sent in moment.handled.messages:
            if sent.id.endswith(REPLY_MARK) and isinstance(sent.body, Message):
                found.setdefault(sent.id[:-1], (moment.n, sent.body))
    return found


def _rows_of(
    moment: Moment,
    subject: Subject,
    replies: Mapping[str, Reply],
    kinds: Mapping[str, str],
    named: bool,
) -> list[Row]:
    """The rows of one delivery; ``named``: the violation speaks of it."""
    envelope = moment.envelope
    operation = operation_of(envelope.id)
    rows: list[Row] = []
    if not envelope.is_reply and envelope.src != BROKER:
        row = _message_row(moment, subject, replies, operation, kinds.get(operation, ""), named)
        rows += [] if row is None else [row]
    else:
        row = None
    for record in moment.handled.records:
        weight = _record_weight(record, envelope.dst, subject, operation)
        if weight == NEVER:
            continue
        kind = type(record).__name__
        if row is not None and (kind in _ENRICH or row.kind in _BY_KVM):
            continue
        rows.append(
            Row(
                moment.n, envelope.dst, kind, operation, kinds.get(operation, ""),
                msgspec.structs.asdict(record), weight,
            )
        )  # fmt: skip
    return rows


_ASIDE: Final = frozenset({"OpBegin", "OpEnd", "NotifierCall", "Evict", "GuestEnter", "GuestExit"})
"""Records that come with an event and are not it."""
_ENRICH: Final = frozenset({"PteChange", "PteRead", "FrameFreed", "FrameAllocated", "Access"})
"""Records of memory that say more about the message than the message itself."""
_BY_KVM: Final = frozenset({"SpteSet", "SpteClear", "InProgress", "SeqBump"})
"""Messages that say all that the records of their handling say."""
_FILLS: Final = frozenset({"Fill", "SpteSet", "TableCached"})
"""What puts a translation into a cache."""


def _message_row(
    moment: Moment,
    subject: Subject,
    replies: Mapping[str, Reply],
    operation: str,
    operation_kind: str,
    named: bool,
) -> Row | None:
    envelope = moment.envelope
    weight = _message_weight(moment, subject, operation)
    weight = min(weight, DETAIL) if named else weight
    if weight == NEVER or not isinstance(envelope.body, Message):
        return None
    values = msgspec.structs.asdict(envelope.body)
    answered = replies.get(envelope.id)
    n = moment.n
    if answered is not None:
        values["reply"] = msgspec.structs.asdict(answered[1])
        if isinstance(envelope.body, (PtlLock, MmuLock)):
            n = answered[0]
        if _says_nothing(envelope.body, answered[1], operation in subject.operations):
            return None
    for record in moment.handled.records:
        if type(record).__name__ in _ENRICH:
            values |= {"record": type(record).__name__} | msgspec.structs.asdict(record)
    values["elsewhere"] = _elsewhere(values, subject)
    party = _party(envelope)
    return Row(n, party, envelope.kind, operation, operation_kind, values, weight, (), envelope.dst)


def _says_nothing(body: Message, answer: Message, mine: bool) -> bool:
    """A flush of others that was looked for and is not there, or is over."""
    count = getattr(answer, "value", 0)
    if isinstance(body, TlbFlushPending):
        return count < 2 if mine else body.delta <= 0
    return isinstance(body, TlbBatchedLoad) and count == 0


def _elsewhere(values: Mapping[str, Any], subject: Subject) -> bool:
    """Whether it is about another page, or another page-table page, than the violation."""
    if "address" in values and "mm" in values:
        return (values["mm"], values["address"]) != (subject.mm, subject.address)
    return bool(values.get("table", subject.table) != subject.table)


def _party(envelope: Envelope) -> str:
    """Who acts: the sender; the receiver where a message makes it do something of its own."""
    active = (DmaAccess, IotlbInvalidate, InvalidateRequest, FlushTlbIpi, Tlbi, AtsdLaunch, Tlbie)
    return envelope.dst if isinstance(envelope.body, active) else envelope.src


def _message_weight(moment: Moment, subject: Subject, operation: str) -> int:
    body, dst = moment.envelope.body, moment.envelope.dst
    mine = operation in subject.operations
    for record in moment.handled.records:
        weight = _memory_weight(record, subject)
        if weight != NEVER:
            return weight if mine else min(weight + 1, DETAIL)
    if isinstance(body, (TlbFlushPending, TlbBatchedLoad, TlbBatchedStore, TlbBatchedCmpxchg)):
        return HELPFUL if body.mm == subject.mm else NEVER
    if not mine:
        context = dst in subject.parties and isinstance(body, (InProgress, SeqBump, MemslotAdd))
        return ESSENTIAL if context else NEVER
    if dst in subject.parties:
        return _agent_weight(body, subject)
    if isinstance(body, (PtlLock, PtlUnlock)):
        return HELPFUL if body.table == subject.table else NEVER
    if isinstance(body, (PteLoad, PteWalk)):
        return DETAIL if (body.table, body.index) == (subject.table, subject.index) else NEVER
    if isinstance(body, FrameCopy):
        return HELPFUL if {body.source, body.target} & subject.frames else NEVER
    if isinstance(body, SwapWrite):
        return HELPFUL if body.frame in subject.frames else NEVER
    return DETAIL if isinstance(body, (FlushTlbIpi, Tlbi, PageRequest)) else NEVER


def _memory_weight(record: r.Record, subject: Subject) -> int:
    """How much a record of memory matters."""
    if isinstance(record, r.PteChange):
        return NEVER if _same_access(record) else _change_weight(record, subject)
    if isinstance(record, r.PteRead):
        here = (record.mm, record.address) == (subject.mm, subject.address)
        return DETAIL if here else NEVER
    if isinstance(record, (r.FrameFreed, r.FrameAllocated, r.Access)):
        return ESSENTIAL if record.frame in subject.frames else NEVER
    return NEVER


def _change_weight(record: r.PteChange, subject: Subject) -> int:
    """The page's own entry; where else its frame goes; for a kept upper entry, what led to it."""
    if record.level:
        led = subject.cache == "pwc" and ptes.frame_of(record.old) in subject.frames
        return ESSENTIAL if led and ptes.hw_present(record.old) else NEVER
    if (record.mm, record.address) == (subject.mm, subject.address):
        return ESSENTIAL
    maps = ptes.hw_present(record.new) and ptes.frame_of(record.new) in subject.frames
    return HELPFUL if maps else NEVER


def _same_access(record: r.PteChange) -> bool:
    """Only accessed and dirty changed."""
    quiet = ptes.ACCESSED | ptes.DIRTY
    return record.old & ~quiet == record.new & ~quiet


def _agent_weight(body: Message | bytes, subject: Subject) -> int:
    if isinstance(body, (KvmRequest, InProgress, SeqBump, MemslotAdd)):
        return ESSENTIAL
    if isinstance(body, (IotlbInvalidate, AtcInvalidate, InvalidateRequest, DmaAccess)):
        return ESSENTIAL
    if isinstance(body, (AtsdLaunch, Tlbie, SpaClearCache, TerminatePasid)):
        return ESSENTIAL
    if isinstance(body, (AtsTranslate, PriRequest)):
        return HELPFUL
    if isinstance(body, (SpteSet, SpteClear)):
        return ESSENTIAL if body.gfn in subject.gfns else NEVER
    if isinstance(body, (MmuLock, MmuUnlock, SeqRead)):
        return HELPFUL
    if isinstance(body, (FlushTlbIpi, Tlbi)):
        return ESSENTIAL if subject.cache in ("tlb", "iotlb", "atc", "pwc") else DETAIL
    return DETAIL if isinstance(body, SpteLoad) else NEVER


def _record_weight(record: r.Record, node: str, subject: Subject, operation: str) -> int:
    """How much a record of anyone but memory matters."""
    mine = operation in subject.operations
    agent = node == subject.agent
    if isinstance(record, (r.OpBegin, r.OpEnd)):
        return HELPFUL if mine else NEVER
    if isinstance(record, r.NotifierCall):
        here = record.subscriber in subject.parties and mine
        return NEVER if not here else ESSENTIAL if record.phase == "begin" else DETAIL
    if isinstance(record, (r.Fill, r.WalkDiscarded, r.GuestEnter, r.PermissionFault)):
        return ESSENTIAL if agent and mine else NEVER
    if isinstance(record, r.TableCached):
        return ESSENTIAL if agent and record.table in subject.frames else NEVER
    if isinstance(record, (r.FaultRetry, r.Evict)):
        return DETAIL if agent and mine else NEVER
    if isinstance(record, (r.InvalidateBegin, r.InvalidateDone)):
        return ESSENTIAL if agent and record.fills else NEVER
    if isinstance(record, (r.GuestExit, r.ApicTrapped)):
        return DETAIL if agent and mine else NEVER
    return NEVER


def setup_of(case: Case, rows: Sequence[Row]) -> list[str]:
    """Operations that only prepared the ground: those without a row."""
    shown = {operation_in(row.operation) for row in rows}
    return [op for op in case.operations() if op not in shown]
