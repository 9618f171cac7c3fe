"""The oracle: reads the trace step by step and says what must never have happened.

It runs while a run goes on, in memory bounded by what is live, and again offline on the saved
trace with the same result: same class, same calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from mmurace.nodes.secondary import secondaries
from mmurace.nodes.world import MEMORY, World
from mmurace.oracle.rules.content import MemoryRules
from mmurace.oracle.rules.l1_l3_progress import Deadlocks, FaultProgress
from mmurace.oracle.rules.l2_q1_callbacks import END, Callbacks
from mmurace.oracle.rules.l4_completion import Completion
from mmurace.oracle.rules.l5_reaper import Reaper
from mmurace.oracle.rules.l6_denials import UNLOCKS, StaleDenials
from mmurace.oracle.rules.o_inherited import PTL_LOCK, Inherited
from mmurace.oracle.rules.o_s2_moves import PTL_UNLOCK, Moves
from mmurace.oracle.rules.o_s4_deadlines import OPERATION_ENDED, Obligations
from mmurace.oracle.rules.o_s8_page_tables import Tables
from mmurace.oracle.rules.p1_p2_p3_costs import Measures
from mmurace.oracle.rules.q2_at_rest import stale_at_rest
from mmurace.oracle.rules.q4_bad_page import bad_page
from mmurace.oracle.rules.s1_s3_accesses import Safety
from mmurace.oracle.rules.s5_rights import Containment
from mmurace.oracle.rules.s7_store_order import Coherence
from mmurace.oracle.rules.s8_walks import Walks
from mmurace.oracle.rules.s10_brackets import Brackets
from mmurace.oracle.rules.s11_might_sleep import Context
from mmurace.oracle.rules.s12_tags import Identity
from mmurace.oracle.rules.s13_unregister import Lifetimes
from mmurace.oracle.rules.s14_p4_l2_commands import Targeting, to_be_told
from mmurace.oracle.rules.table import added_rules, chosen_rules
from mmurace.oracle.sometimes import CALLBACK_MARKS, Condition, Sometimes, demanded, describe
from mmurace.oracle.state import statistics as stats
from mmurace.oracle.state.guest_records import GuestRecords
from mmurace.oracle.state.kinds import kinds
from mmurace.oracle.state.live import Cached, Op, State
from mmurace.oracle.state.locks import lock_kinds
from mmurace.oracle.state.memory_records import MemoryRecords
from mmurace.oracle.state.order import Order, Row
from mmurace.oracle.state.statistics import Statistics
from mmurace.oracle.verdict import How, Verdict, decide
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from mmurace.protocol.envelope import Envelope, Handled, operation_of
from mmurace.protocol.errors import EmulatorError
from mmurace.protocol.limits import ORACLE_VIOLATIONS_KEPT
from mmurace.protocol.records import Record
from mmurace.protocol.trace import Ending, TraceStep

Delivered = Envelope | TraceStep
"""Either says what was delivered: ``id``, ``src``, ``dst``, ``kind`` and ``causes``."""
_NOTHING: list[Violation] = []
_STORE = ptes.WRITE | ptes.DIRTY


class Oracle(MemoryRecords, GuestRecords):
    """Feed it every step in order, then the ending; ask for the verdict."""

    def __init__(
        self,
        world: World,
        conditions: Sequence[Condition] = (),
        rules: frozenset[str] | None = None,
    ) -> None:
        """``rules``: the only ones that are reported.  Raises ``UserError`` if one is none."""
        self.world = world
        self.rules = None if rules is None else chosen_rules(rules)
        self.violations: list[Violation] = []
        self.statistics = Statistics()
        self.state = State()
        self._found: list[Violation] = []
        self.order = Order(world.nodes())
        self._index = self.order.index
        self._memory = self._index[MEMORY]
        self.obligations = Obligations(self.state, self._found)
        self.moves = Moves(world, self.obligations)
        self.inherited = Inherited(self.state, self.obligations)
        self.tables = Tables(world, self.state, self._found)
        self.safety = Safety(self.state, self._found)
        self.brackets = Brackets(self._found)
        self.progress = FaultProgress(world, self._index, self.state, self._found)
        self.deadlocks = Deadlocks(self._found)
        self.coherence = Coherence(self._found)
        self.denied = StaleDenials(self.state, self._found)
        self.measures = Measures(self.statistics, self._found, world.address_end())
        self.memory_rules = MemoryRules(self.state, self._found)
        self.containment = Containment(self.state, self.obligations, self._found)
        self.context = Context(self.state, self._found)
        self.reaper = Reaper(self._found)
        self._watched = lock_kinds().watched
        """Kinds of deliveries that matter without a record."""
        self.callbacks = Callbacks(self._found, _without_ends(world))
        there = ((name, mm) for mm in world.mms for _, name in world.intervals(mm))
        self.lifetimes = Lifetimes(self._found, there)
        self.completion = Completion(self._found)
        self.identity = Identity(world, self.state, self._found)
        self.walks = Walks(world, self.state, self.identity, self._found)
        self.targeting = Targeting(to_be_told(world), self._found, self.identity.mm_of)
        self.sometimes = Sometimes(conditions, self.state, self._memory, world)
        self.windows = windows = self.sometimes.windows
        self._unheard, self._walking = self.sometimes.unheard, self.tables.uses
        judges = (rule.judge for rule in added_rules())
        self.added = [judge(world, self.state, self._found) for judge in judges if judge]
        self._until_ended: tuple[dict[str, Any], ...] = (
            self.callbacks.began, self.progress.stuck, self.deadlocks.held, self.tables.reads,
            self.reaper.asked, self.moves.taken, self.moves.moved, self.moves.seen,
            *(windows.by_operation() if windows else ()),
        )  # fmt: skip
        """What rules keep by operation, and forget with it."""
        self._shadow = {part.name: frozenset(part.nodes()) for part in world.parts}
        self._kinds = kinds()
        self.told_of: dict[str, frozenset[str]] = {
            part.name: frozenset(part.subscribed(world.kernel)) for part in world.parts
        }
        """Subscriber -> the mms of which it is told."""
        self._bracketed = _bracketed_by_the_core(world)
        self._n, self._id, self._node, self._at, self._op_id = 0, "", "", 0, ""
        self._row: Row = ()

    # -- the caller's side ---------------------------------------------------------------------

    def step(self, step: TraceStep) -> list[Violation]:
        """One delivery; what it broke, if anything.  Raises ``EmulatorError`` on a gap."""
        return self.observe(step, step)

    def observe(self, message: Delivered, handled: Handled | TraceStep) -> list[Violation]:
        """The same with what was delivered and what came of it apart."""
        return self.observe_all(((message, handled),))

    def observe_all(
        self, deliveries: Sequence[tuple[Delivered, Handled | TraceStep]]
    ) -> list[Violation]:
        """Many deliveries, in their order; what they broke."""
        index, deliver, memory = self._index, self.order.deliver, self._memory
        watched, unheard, walking = self._watched, self._unheard, self._walking
        broken = _NOTHING
        for message, handled in deliveries:
            n, at = handled.n, index.get(message.dst)
            if at is None:
                stray = f"delivery {n} went to {message.dst}, which is not in this world"
                raise EmulatorError(stray)
            row = deliver(n, at, message.causes)
            if message.kind in watched:
                self._lock_moved(n, message, row)
            if at == memory and (unheard or walking):
                self._memory_reached(n, message, row)
            if handled.records:
                self._n, self._node, self._at, self._row = n, message.dst, at, row
                self._id = message.id
                self._op_id = operation_of(message.id)
                self._records(handled.records)
            if self._found:
                broken = [*broken, *self._take()]
        self.statistics.deliveries += len(deliveries)
        return broken

    def _records(self, records: Sequence[Record]) -> None:
        for record in records:
            handler = _HANDLERS.get(type(record))
            if handler is not None:
                handler(self, record)
        if self.added:
            self._judge_added(records)
        if self.state.sweep_due:
            self.state.sweep(self.order.last[self._memory])

    def _judge_added(self, records: Sequence[Record]) -> None:
        """Rules of plug-ins."""
        for record in records:
            op = self.state.op(getattr(record, "op", "") or self._op_id)
            for rule in self.added:
                rule.record(record, op, self._event(type(record).__name__))

    def _memory_reached(self, n: int, message: Delivered, row: Row) -> None:
        if self._unheard:
            self.sometimes.memory_step(operation_of(message.id), row)
        if message.id in self._walking:
            self.tables.reached(Event("walk", n, message.dst, message.id))

    def _lock_moved(self, n: int, message: Delivered, row: Row) -> None:
        kind, op_id = message.kind, operation_of(message.id)
        if kind == PTL_UNLOCK:
            self.moves.unlocked(op_id, n, message.id, row)
        op = self.state.ops.get(op_id)
        if op is None:
            return
        if kind in self.context.watched:
            self.context.delivered(kind, message.id, op, n, message.dst)
        if op_id in self.context.nonblock:
            event = Event(kind, n, message.dst, message.id)
            self.reaper.delivered(op, event, message.causes)
        if kind in self.deadlocks.locks:
            self.deadlocks.lock(kind, op_id, message.src, message.dst)
        if kind == PTL_LOCK:
            self.inherited.locked(op, row[self._memory])
        elif kind in UNLOCKS:
            op.unlocked = n

    def forget_before(self, n: int) -> None:
        """Promise that no step to come has a cause below ``n``; frees memory.

        The broker knows the oldest delivery whose messages are not all delivered, and what
        programs still come after.  Without this call the clocks of all deliveries are kept.
        """
        self.order.forget_before(n)
        self.state.forget_before(n)

    def lost(self, node: str) -> None:
        """The node is dead (chaos killed it): what it cached is never used again."""
        self.state.lost(node)
        self.callbacks.lost(node)
        self.completion.lost(node)
        self.brackets.gone.add(node)

    def finish(self, ending: Ending, quiescent: bool = True) -> list[Violation]:
        """The run is over; what its end broke.

        ``quiescent``: nothing could be delivered any more.  If the run was cut short instead,
        nothing is said about what still waits.
        """
        if ending.complete:
            self.brackets.finish(ending.deliveries)
            self.callbacks.finish(Event("end of run", ending.deliveries, MEMORY, ""))
        if ending.complete and quiescent:
            self._found += stale_at_rest(self.state, self.violations, ending.deliveries)
        if quiescent:
            self.completion.finish()
        if quiescent and (ending.waiting or not ending.complete):
            self.deadlocks.finish(ending)
        self.sometimes.finish(self.statistics)
        return self._take()

    def verdict(self, ending: Ending) -> Verdict:
        """Held, violated or inconclusive, and how that was found; after ``finish``."""
        conditions, unmet = self.sometimes.conditions, self.sometimes.open
        how = How(
            deliveries=self.statistics.deliveries, operations=self.statistics.operations,
            entered=int(not unmet),
            met=tuple(
                describe(c) for at, c in enumerate(conditions) if at not in unmet and demanded(c)
            ),
            missing=tuple(describe(c) for at, c in enumerate(conditions) if at in unmet),
            statistics=self.statistics.as_dict(),
            windows=self.windows.table() if self.windows else {},
        )  # fmt: skip
        return decide(self.violations, how, ending.complete)

    def _take(self) -> list[Violation]:
        found = self._found.copy()
        self._found.clear()
        if self.rules is not None:
            found = [violation for violation in found if violation.rule in self.rules]
        for violation in found:
            stats.bump(self.statistics.violations, violation.rule)
        self.violations += found[: ORACLE_VIOLATIONS_KEPT - len(self.violations)]
        return found

    def _event(self, what: str) -> Event:
        return Event(what, self._n, self._node, self._id)

    def _op(self) -> Op:
        return self.state.op(self._op_id)

    # -- by whoever caches translations ----------------------------------------------------------

    def _fill(self, record: r.Fill) -> None:
        read = self.walks.source(record, self._node, self._n, self._id)
        if read is None:
            return
        read_only = record.cache in self._kinds.read_only
        reached = read.pte & ptes.REACHED_BY
        rights = reached if read_only else reached | record.pte & _STORE
        pte = ptes.make(ptes.frame_of(read.pte), rights)
        fill = Cached(record, self._node, self._at, read, pte)
        if record.cache in self._kinds.shadow and pte & ptes.WRITE:
            fill.granted |= ptes.DIRTY
        fill.n, fill.id = self._n, self._id
        fill.usable = record.cache not in self._kinds.latched
        self.state.add_fill(fill)
        self.containment.filled(fill, record)
        if self.safety.exclusive.claims:
            self.safety.exclusive.filled(fill, self._row)
        if read.page.changes:
            if fill.usable:
                self.obligations.installed(fill)
            if self.windows is not None:
                self.windows.filled(fill, self.state.ops.get(self._op_id))

    def _close(self, name: str) -> None:
        fill = self.state.fills.get(name)
        if fill is not None:
            self.state.close(fill, self._n, gone=True)
        self.tables.closed(name, self._n)

    def _table_read(self, record: r.TableRead) -> None:
        self.tables.read(record, self._event("table found"))

    def _table_use(self, record: r.TableUse) -> None:
        self.tables.used(record)

    def _table_cached(self, record: r.TableCached) -> None:
        self.tables.cached(record, self._event("upper entry kept"), self._at)

    def _evict(self, record: r.Evict) -> None:
        self._close(record.fill)

    def _invalidate_begin(self, record: r.InvalidateBegin) -> None:
        if record.fills:
            self._op().caches.add(record.cache)
            self.state.drop(record.fills)
            self.tables.drop(record.fills)
            if self.windows is not None and record.cache in self._kinds.zapped:
                self.windows.zap(record.fills, self._op(), self._node, self._row)
        self.measures.invalidated(record, self._op(), self._event("invalidated"))
        self.targeting.invalidated(record, self._op(), self._event("invalidated"))
        self.completion.invalidation(record, self._event("invalidation begun"))

    def _invalidate_done(self, record: r.InvalidateDone) -> None:
        self.completion.invalidation(record, self._event("invalidation completed"))
        for name in record.fills:
            self._close(name)
        self.state.drained(record, self._node, self._n)
        self.tables.drained(record, self._node, self._n)

    def _use(self, record: r.Use) -> None:
        fill = self.state.fills.get(record.fill)
        if fill is not None:
            fill.uses += 1
            if 0 < fill.closed < self._n:
                self.containment.used(fill, self._event("used"))
            self.state.op(operation_of(record.access)).uses[record.access] = fill
            if self.coherence.pages:
                self.coherence.issued(fill, record.access, self._row)

    def _permission_fault(self, record: r.PermissionFault) -> None:
        self.denied.faulted(record, self._event("permission fault"), self._row[self._memory])

    def _walk_discarded(self, record: r.WalkDiscarded) -> None:
        self.statistics.walks_discarded += 1
        if self.windows is not None:
            op = self.state.ops.get(self._op_id)
            self.windows.walk_discarded(record.cache, record.address, op, self._row)

    # -- by initiators ---------------------------------------------------------------------------

    def _op_begin(self, record: r.OpBegin) -> None:
        op = self.state.begin_op(record.op or self._op_id)
        op.kind, op.tag, op.start, op.end = record.kind, record.tag, record.start, record.end
        op.node, op.index, op.began = self._node, self._at, self._n
        if self.sometimes.open:
            self.sometimes.op_began(op)
            self.sometimes.mark(op, "op_begin", self._row)

    def _op_end(self, record: r.OpEnd) -> None:
        op = self.state.op(record.op or self._op_id)
        self.order.keep(self._n, op.id)
        if op.changes or op.id in self.inherited.first or op.id in self.context.threads:
            self._changer_ended(op, record.kind)
        self.memory_rules.ended(op, self._n)
        stats.op_ended(self.statistics, op)
        if self.sometimes.open:
            self.sometimes.mark(op, "op_end", self._row)
            self.sometimes.op_ended(op, self._n)
        if op.id in self.coherence.stores:
            self.coherence.ended(op, self._n)
        if op.id in self.measures.said:
            self.measures.ended(op)
        self.lifetimes.ended(op.id)
        self.targeting.ended(op.id)
        for kept in self._until_ended:
            if kept:
                kept.pop(op.id, None)
        self.state.end_op(op)

    def _changer_ended(self, op: Op, kind: str) -> None:
        event = self._event(OPERATION_ENDED)
        if op.changes:
            self.obligations.op_ended(op, kind, event, self._row)
        if op.id in self.inherited.first:
            self.inherited.ended(op, event, self._row)
        if op.changes:
            self.containment.op_ended(op, event, self._row)
        if op.id in self.context.threads:
            self.context.ended(op, event)

    def _notifier_call(self, record: r.NotifierCall) -> None:
        self.measures.notifier_call(record, record.op or self._op_id)
        op = self.state.op(record.op or self._op_id)
        event = self._event(record.callback)
        self.targeting.notifier_call(record, op, event)
        self.context.notifier_call(record, op, event)
        self.callbacks.notifier_call(record, op, event)
        self.lifetimes.notifier_call(record, op.id, event, self._at)
        if record.subscriber in self._bracketed:
            self._shadow_told(record, op, event)
        mark = CALLBACK_MARKS.get(record.callback)
        if mark is not None and record.phase == "begin" and self.sometimes.open:
            self.sometimes.mark(op, mark, self._row)

    def _shadow_told(self, record: r.NotifierCall, op: Op, event: Event) -> None:
        if record.callback == END and record.phase == "begin":
            self._bracket_ended(op, record.subscriber, record.start, record.end, event)

    def _loop_cut(self, record: r.LoopCut) -> None:
        op = self.state.op(record.op or self._op_id)
        self.targeting.cut(record, op, self._event("loop cut off"))

    def _registered(self, record: r.Registered) -> None:
        self.lifetimes.registered(record)
        known = self.told_of.get(record.subscriber, frozenset())
        self.told_of[record.subscriber] = known | {record.mm}

    def _unregistered(self, record: r.Unregistered) -> None:
        self.callbacks.lost(record.subscriber)
        self.brackets.gone.add(record.subscriber)
        self.lifetimes.unregistered(record, self._event("unregistered"), self._row)

    def _fault_retry(self, record: r.FaultRetry) -> None:
        stats.bump(self.statistics.retries, record.why)
        event = self._event("retry")
        op = record.op or self._op_id
        self.progress.retried(record, op, event, self._row, self.brackets.of)
        if self.windows is not None:
            self.windows.retried(record, op, self._row)

    def _bad_page(self, record: r.BadPage) -> None:
        event = self._event(type(record).__name__)
        freed = self.state.frame(record.frame).freed
        self._found.append(bad_page(record, self._op(), event, freed))

    def _coverage(self, record: r.Coverage) -> None:
        stats.bump(self.statistics.covered, record.point)


def _without_ends(world: World) -> frozenset[str]:
    """Subscribers that hear no ``invalidate_range_end``."""
    deaf = (one for one in secondaries() if not one.ends(world.kernel))
    return frozenset(part.name for one in deaf for part in one.parts(world))


def _bracketed_by_the_core(world: World) -> frozenset[str]:
    """Shadow MMUs of which the core's calls say when they may install again."""
    shadows = (
        one
        for one in secondaries()
        if not one.own_bracket and any(cache.table == "shadow" for cache in one.caches)
    )
    return frozenset(part.name for one in shadows for part in one.parts(world))


_HANDLERS: Final[dict[type[r.Record], Callable[[Oracle, Any], None]]] = {
    r.PteChange: Oracle._pte_change, r.PteRead: Oracle._pte_read,
    r.FrameAllocated: Oracle._frame_allocated, r.FrameFreed: Oracle._frame_freed,
    r.FrameCopied: Oracle._frame_copied, r.PageWritten: Oracle._page_written,
    r.PageRead: Oracle._page_read, r.PageDiscarded: Oracle._page_discarded,
    r.PageLazyfree: Oracle._page_lazyfree,
    r.FilePageRead: Oracle._file_page_read, r.FileSized: Oracle._file_sized,
    r.FilePageWritten: Oracle._file_page_written, r.FilePageDirtied: Oracle._file_page_dirtied,
    r.FilePageDropped: Oracle._file_page_dropped,
    r.FilePageMigrated: Oracle._file_page_migrated,
    r.Registered: Oracle._registered, r.Unregistered: Oracle._unregistered,
    r.Access: Oracle._access, r.Use: Oracle._use,
    r.Fill: Oracle._fill, r.Evict: Oracle._evict,
    r.InvalidateBegin: Oracle._invalidate_begin, r.InvalidateDone: Oracle._invalidate_done,
    r.RequestPosted: Oracle._request_posted, r.GuestEnter: Oracle._guest_enter,
    r.GuestExit: Oracle._guest_exit,
    r.Invalidation: Oracle._invalidation, r.OpBegin: Oracle._op_begin, r.OpEnd: Oracle._op_end,
    r.NotifierCall: Oracle._notifier_call, r.FaultRetry: Oracle._fault_retry,
    r.WalkDiscarded: Oracle._walk_discarded, r.AccessTrapped: Oracle._access_trapped,
    r.OutOfMemory: Oracle._out_of_memory, r.Coverage: Oracle._coverage,
    r.BadPage: Oracle._bad_page,
    r.OomKill: Oracle._oom_kill, r.FlushDeferred: Oracle._flush_deferred,
    r.TagAlloc: Oracle._tag_alloc, r.TagFree: Oracle._tag_free,
    r.LoopCut: Oracle._loop_cut,
    r.IntervalClosed: Oracle._interval_closed, r.IntervalTouched: Oracle._interval_touched,
    r.PermissionFault: Oracle._permission_fault, r.TableRead: Oracle._table_read,
    r.TableCached: Oracle._table_cached, r.TableUse: Oracle._table_use,
}  # fmt: skip
"""Which rules read a record; those of other kinds are for people."""
