"""How much messages and records matter to a violation: what its table shows first, and last."""

from __future__ import annotations

from collections.abc import Sequence

from mmurace.explorer.explain.subject import Subject
from mmurace.explorer.shrink.play import Moment
from mmurace.nodes.secondary import caches, secondaries
from mmurace.nodes.world import World
from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from mmurace.protocol.limits import PAGE_SHIFT
from mmurace.protocol.messages.base import Message
from mmurace.protocol.messages.intervals import SEQUENCE
from mmurace.protocol.messages.memory import (
    FrameCopy,
    NotifierList,
    PteLoad,
    PteScan,
    PteWalk,
    PtlLock,
    PtlUnlock,
    TlbFlushPending,
)
from mmurace.protocol.messages.processor import (
    FlushTlbIpi,
    Tlbi,
)
from mmurace.protocol.messages.swap import (
    SwapWrite,
    TlbBatchedCmpxchg,
    TlbBatchedLoad,
    TlbBatchedStore,
)
from mmurace.protocol.told import DETAIL, ESSENTIAL, HELPFUL, MINOR, NEVER


class Weights:
    """How much what happened matters to one subject."""

    def __init__(self, subject: Subject, world: World, moments: Sequence[Moment] = ()) -> None:
        self.subject, self.world = subject, world
        self.beside = {
            record.op
            for moment in moments
            for record in moment.handled.records
            if isinstance(record, r.OpBegin)
            and subject.concerns(record.tag, record.start, record.end)
        }
        """Operations on the page, whether the violation names them or not."""
        self.comes = any(
            isinstance(record, r.Registered) and record.subscriber in subject.parties
            for moment in moments
            for record in moment.handled.records
        )
        """The agent comes on a notifier list: who has walked it before does not know of it."""

    def message(self, moment: Moment, operation: str) -> int:
        """A message, by what it is and what memory says of it."""
        subject = self.subject
        body, dst = moment.envelope.body, moment.envelope.dst
        mine = operation in subject.operations
        weight = min((self._memory(record) for record in moment.handled.records), default=NEVER)
        if weight != NEVER:
            changes = any(self._changes(record) for record in moment.handled.records)
            return weight if mine or changes else min(weight + 1, DETAIL)
        if isinstance(body, (TlbFlushPending, TlbBatchedLoad, TlbBatchedStore, TlbBatchedCmpxchg)):
            return HELPFUL if body.mm == subject.mm else NEVER
        if not mine:
            if dst in subject.parties and isinstance(body, Message) and body.TOLD.whoever:
                return body.TOLD.weight
            return self._flush(body)
        if dst in subject.parties:
            return self._agent(body)
        return self._mine(body)

    def _mine(self, body: Message | bytes) -> int:
        """A message to memory, or to another processor, for an operation of the violation."""
        subject = self.subject
        if isinstance(body, (PtlLock, PtlUnlock)):
            return MINOR if body.table in subject.tables else NEVER
        if isinstance(body, PteScan):
            here = body.table in subject.tables and body.first <= self._index() < body.last
            return MINOR if here else NEVER
        if isinstance(body, (PteLoad, PteWalk)):  # an entry that is none has no record
            return DETAIL if self._is_entry(body.table, body.index) else NEVER
        if isinstance(body, FrameCopy):
            return HELPFUL if {body.source, body.target} & subject.frames else NEVER
        if isinstance(body, SwapWrite):
            return HELPFUL if body.frame in subject.frames else NEVER
        if isinstance(body, NotifierList):
            return HELPFUL if self.comes and subject.mm in ("", body.mm) else NEVER
        if isinstance(body, SEQUENCE):
            return body.TOLD.weight if self._has_intervals() else NEVER
        by_worker = any(type(body) in one.work for one in secondaries())
        return DETAIL if by_worker else self._flush(body)

    def _has_intervals(self) -> bool:
        """Whether the agent is told by an interval notifier."""
        told = (one for one in secondaries() if one.interval is not None)
        return any(self.subject.cache == cache.name for one in told for cache in one.caches)

    def _is_entry(self, table: int, index: int) -> bool:
        return table in self.subject.tables and index == self._index()

    def _index(self) -> int:
        """Of the page's entry in a leaf table."""
        return (self.subject.address >> PAGE_SHIFT) % self.world.entries

    def _flush(self, body: Message | bytes) -> int:
        """A flush that arrives at a processor."""
        if not isinstance(body, (FlushTlbIpi, Tlbi)):
            return NEVER
        return DETAIL if self.subject.concerns(body.mm, body.start, body.end) else NEVER

    def _memory(self, record: r.Record) -> int:
        """A record of memory."""
        subject = self.subject
        if isinstance(record, r.PteChange):
            return NEVER if _same_access(record) else self._change(record)
        if isinstance(record, r.PteRead):
            here = (record.mm, record.address) == (subject.mm, subject.address)
            return DETAIL if here else NEVER
        if isinstance(record, (r.FrameFreed, r.FrameAllocated, r.Access)):
            return ESSENTIAL if record.frame in subject.frames else NEVER
        if isinstance(record, r.Registered):
            return ESSENTIAL if record.subscriber in subject.parties else NEVER
        return NEVER

    def _changes(self, record: r.Record) -> bool:
        """Whether the page's own entry changes, or one above it."""
        if not isinstance(record, r.PteChange) or _same_access(record):
            return False
        end = record.address + (1 << self.world.shift(record.level))
        return self.subject.concerns(record.mm, record.address, end)

    def _change(self, record: r.PteChange) -> int:
        """The page's own entry, and those above it; where else its frame goes."""
        subject = self.subject
        if self._changes(record):
            return ESSENTIAL
        maps = ptes.hw_present(record.new) and ptes.frame_of(record.new) in subject.frames
        return HELPFUL if maps else NEVER

    def _agent(self, body: Message | bytes) -> int:
        """A message to the agent, or to what it is a part of."""
        subject = self.subject
        if isinstance(body, (FlushTlbIpi, Tlbi)):
            return ESSENTIAL if self._of_the_mm() else DETAIL
        if not isinstance(body, Message):
            return NEVER
        page = getattr(body, body.OWN_PAGE, None) if body.OWN_PAGE else None
        return body.TOLD.weight if page is None or page in subject.own_pages else NEVER

    def _of_the_mm(self) -> bool:
        """Whether the translation was filled from the mm's own page table."""
        cache = caches().get(self.subject.cache)
        return self.subject.cache == "tlb" if cache is None else cache.table == "shared"

    def record(self, record: r.Record, node: str, operation: str) -> int:
        """A record of anyone but memory."""
        subject = self.subject
        mine = operation in subject.operations
        agent = node == subject.agent
        if isinstance(record, (r.OpBegin, r.OpEnd)):
            return HELPFUL if mine else MINOR if operation in self.beside else NEVER
        if isinstance(record, r.NotifierCall):
            return self._notifier(record, mine)
        if isinstance(record, r.LoopCut):
            return ESSENTIAL if record.subscriber in subject.parties else NEVER
        if isinstance(record, (r.Fill, r.WalkDiscarded, r.GuestEnter, r.PermissionFault)):
            return ESSENTIAL if agent and mine else NEVER
        if isinstance(record, r.TableCached):
            return ESSENTIAL if agent and record.table in subject.frames else NEVER
        if isinstance(record, (r.FaultRetry, r.Evict)):
            return DETAIL if agent and mine else NEVER
        if isinstance(record, (r.InvalidateBegin, r.InvalidateDone)):
            return HELPFUL if agent and record.fills else NEVER
        if isinstance(record, (r.GuestExit, r.AccessTrapped)):
            return DETAIL if agent and mine else NEVER
        return NEVER

    def _notifier(self, record: r.NotifierCall, mine: bool) -> int:
        """A callback of the agent, whoever makes it, if it could have been about the page."""
        subject = self.subject
        if record.subscriber not in subject.parties:
            return NEVER
        if mine:
            return ESSENTIAL if record.phase == "begin" else DETAIL
        covers = subject.concerns(record.mm, record.start, record.end)
        return HELPFUL if covers and record.phase == "begin" else NEVER

    def flush(self, mm: str, start: int, end: int, operation: str) -> int:
        """A flush that a processor sends to others, or has waited for."""
        if mm and not self.subject.concerns(mm, start, end):
            return NEVER
        return MINOR if operation in self.subject.operations else DETAIL


def _same_access(record: r.PteChange) -> bool:
    """Only accessed and dirty changed."""
    quiet = ptes.ACCESSED | ptes.DIRTY
    return record.old & ~quiet == record.new & ~quiet
