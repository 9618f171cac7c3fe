"""The oracle: reads the trace step by step and says what must never have happened.

It runs while a run goes on, in memory bounded by what is live, and again offline on the saved
trace with the same result: same class, same calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nodes.world import MEMORY, World
from oracle import statistics as stats
from oracle.brackets import Brackets
from oracle.coherence import Coherence
from oracle.denied import StaleDenials
from oracle.inherited import PTL_LOCK, Inherited
from oracle.liveness import LOCKS, Deadlocks, FaultProgress
from oracle.measures import Measures
from oracle.moves import PTL_RELEASED, PTL_UNLOCK, Moves
from oracle.obligations import OPERATION_ENDED, Obligations
from oracle.order import Order, Row
from oracle.safety import Safety, foreign_walk
from oracle.sometimes import CALLBACK_MARKS, Condition, Sometimes, describe
from oracle.state import Cached, Change, Op, Read, State, usable_read
from oracle.statistics import Statistics
from oracle.tables import Tables
from oracle.targeting import Targeting
from oracle.verdict import How, Verdict, decide
from oracle.violation import Event, Violation
from protocol import pte as ptes
from protocol import records as r
from protocol.envelope import Envelope, Handled, operation_of
from protocol.errors import EmulatorError
from protocol.limits import ORACLE_VIOLATIONS_KEPT
from protocol.ranges import covers
from protocol.trace import Ending, TraceStep

APIC_PAGE_RELOAD = "APIC_PAGE_RELOAD"
_NOTHING: list[Violation] = []


class Oracle:
    """Feed it every step in order, then the ending; ask for the verdict."""

    def __init__(self, world: World, conditions: Sequence[Condition] = ()) -> None:
        self.world = world
        self.violations: list[Violation] = []
        self.statistics = Statistics()
        self.state = State()
        self._found: list[Violation] = []
        nodes = world.nodes()
        self.order = Order(nodes)
        self._index = self.order.index
        self._memory = self._index[MEMORY]
        self.obligations = Obligations(self.state, self._found)
        self.moves = Moves(world, self.obligations)
        self.inherited = Inherited(self.state, self.obligations)
        self.tables = Tables(self.state, self._found)
        self.safety = Safety(self.state, self._found)
        self.brackets = Brackets(self._found)
        self.progress = FaultProgress(world, self._index, self.state, self._found)
        self.deadlocks = Deadlocks(self._found)
        self.coherence = Coherence(self._found)
        self.denied = StaleDenials(self.state, self._found)
        self.measures = Measures(self.statistics, self._found)
        told = () if world.kernel.btm else world.units
        units = frozenset(unit.name for unit in told)
        self.targeting = Targeting(units, self._found)
        self.sometimes = Sometimes(conditions, self.state, self._memory)
        self._shadow = {vm.name: frozenset((vm.name, *vm.vcpus)) for vm in world.vms}
        self._mm_of = {vm.name: vm.mm for vm in world.vms}
        self._handlers = self._record_handlers()
        self._n, self._id, self._node, self._at = 0, "", "", 0
        self._row: Row = ()
        self._op_id = ""

    def _record_handlers(self) -> dict[type[r.Record], Callable[[Any], None]]:
        return {
            r.PteChange: self._pte_change, r.PteRead: self._pte_read,
            r.FrameAllocated: self._frame_allocated, r.FrameFreed: self._frame_freed,
            r.FrameCopied: self._frame_copied, r.PageWritten: self._page_written,
            r.Access: self._access, r.Use: self._use,
            r.Fill: self._fill, r.Evict: self._evict,
            r.InvalidateBegin: self._invalidate_begin, r.InvalidateDone: self._invalidate_done,
            r.RequestPosted: self._request_posted, r.GuestEnter: self._guest_enter,
            r.Invalidation: self._invalidation, r.OpBegin: self._op_begin, r.OpEnd: self._op_end,
            r.NotifierCall: self._notifier_call, r.FaultRetry: self._fault_retry,
            r.WalkDiscarded: self._walk_discarded, r.ApicTrapped: self._apic_trapped,
            r.OutOfMemory: self._out_of_memory, r.Coverage: self._coverage,
            r.PermissionFault: self._permission_fault, r.TableRead: self._table_read,
            r.TableCached: self._table_cached, r.TableUse: self.tables.used,
        }  # fmt: skip

    # -- the caller's side ---------------------------------------------------------------------

    def step(self, step: TraceStep) -> list[Violation]:
        """One delivery; what it broke, if anything.  Raises ``EmulatorError`` on a gap."""
        return self.see(
            step.n, step.id, step.src, step.dst, step.kind, step.causes, step.records
        )  # fmt: skip

    def observe(self, envelope: Envelope, handled: Handled) -> bool | None:
        """The same as an observer of a broker; never ends the run."""
        self.see(
            handled.n, envelope.id, envelope.src, envelope.dst, envelope.kind, envelope.causes,
            handled.records,
        )  # fmt: skip
        return None

    def see(
        self, n: int, message: str, src: str, dst: str, kind: str, causes: Sequence[int],
        records: Sequence[r.Record],
    ) -> list[Violation]:  # fmt: skip
        """The same with the parts of a step."""
        at = self._index.get(dst, -1)
        if at < 0:
            raise EmulatorError(f"delivery {n} went to {dst}, which is not in this world")
        row = self.order.deliver(n, at, causes)
        self.statistics.deliveries += 1
        if kind in LOCKS:
            self._lock_moved(n, message, src, dst, kind, row)
        if at == self._memory and self.sometimes.began:
            self.sometimes.memory_step(operation_of(message), row)
        if message in self.tables.uses and at == self._memory:
            self.tables.reached(Event("walk", n, dst, message))
        if not records:
            return self._take() if self._found else _NOTHING
        self._n, self._id, self._node, self._at, self._row = n, message, dst, at, row
        self._op_id = operation_of(message)
        handlers = self._handlers
        for record in records:
            handler = handlers.get(type(record))
            if handler is not None:
                handler(record)
        if self.state.sweep_due():
            self.state.sweep(self.order.last[self._memory])
        return self._take() if self._found else _NOTHING

    def _lock_moved(self, n: int, message: str, src: str, dst: str, kind: str, row: Row) -> None:
        op_id = operation_of(message)
        if op_id in self.state.ops:
            self.deadlocks.lock(kind, message, src, dst)
        if kind == PTL_UNLOCK:
            self.moves.unlocked(op_id, Event(PTL_RELEASED, n, dst, message), row)
        elif kind == PTL_LOCK:
            self.inherited.locked(op_id, row[self._memory])

    def forget_before(self, n: int) -> None:
        """Promise that no step to come has a cause below ``n``; frees memory.

        The broker knows the oldest delivery whose messages are not all delivered, and what
        programs still come after.  Without this call the clocks of all deliveries are kept.
        """
        self.order.forget_before(n)

    def lost(self, node: str) -> None:
        """The node is dead (chaos killed it): what it cached is never used again."""
        for fill in list(self.state.fills.values()):
            if fill.agent == node:
                fill.usable = False
                self.state.close(fill, 1, gone=True)
        for op in list(self.state.ops.values()):
            if op.node == node:
                self.state.end_op(op)

    def finish(self, ending: Ending, quiescent: bool = True) -> list[Violation]:
        """The run is over; what its end broke.

        ``quiescent``: nothing could be delivered any more.  If the run was cut short instead,
        nothing is said about what still waits.
        """
        if ending.complete:
            self.brackets.finish(ending.deliveries)
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
            met=tuple(describe(c) for at, c in enumerate(conditions) if at not in unmet),
            missing=tuple(describe(c) for at, c in enumerate(conditions) if at in unmet),
            statistics=self.statistics.as_dict(),
        )  # fmt: skip
        return decide(self.violations, how, ending.complete)

    def _take(self) -> list[Violation]:
        found = self._found.copy()
        self._found.clear()
        for violation in found:
            stats.bump(self.statistics.violations, violation.rule)
        self.violations += found[: ORACLE_VIOLATIONS_KEPT - len(self.violations)]
        return found

    def _event(self, what: str) -> Event:
        return Event(what, self._n, self._node, self._id)

    def _op(self) -> Op:
        return self.state.op(self._op_id)

    # -- by memory -----------------------------------------------------------------------------

    def _pte_change(self, record: r.PteChange) -> None:
        if record.level:
            return
        old, new = record.old, record.new
        page = self.state.page(record.mm, record.address, 0, old)
        page.history.append((self._n, new))
        if ptes.takes_away(old, new):
            self._taken_away(Change(self._id, page, old, new, self._op(), self._n, self._row))
        elif not ptes.hw_present(old) and ptes.hw_present(new):
            op = self._op()
            self.moves.put(op, record.mm, record.address, new)
            if page.changes and page.changes[-1].op is op:
                self._published(page.changes[-1], new)

    def _taken_away(self, change: Change) -> None:
        self.state.add_change(change)
        self.moves.took(change)
        stats.change_held(self.state, change)
        if ptes.hw_present(change.new):
            self._published(change, change.new)
        if self.sometimes.open:
            self.sometimes.change(change, self._row)
            self.sometimes.mark(change.op, "pte_change", self._row)

    def _published(self, change: Change, new: int) -> None:
        """The operation that cleared the entry sets it again: another frame, or fewer rights."""
        if ptes.frame_of(change.old) == ptes.frame_of(new):
            change.new = new
        else:
            self.coherence.replaced(change, new)
            self.obligations.published(change, new, self._event("new entry published"), self._row)

    def _pte_read(self, record: r.PteRead) -> None:
        if usable_read(record.pte):
            page = self.state.page(record.mm, record.address, self._n, record.pte)
            generation = self.state.frame(ptes.frame_of(record.pte)).generation
            self.state.add_read(
                Read(self._n, self._id, page, record.pte, generation), self._op()
            )  # fmt: skip

    def _frame_allocated(self, record: r.FrameAllocated) -> None:
        stats.frame_allocated(self.statistics, self.state.frame(record.frame))

    def _frame_freed(self, record: r.FrameFreed) -> None:
        frame = self.state.frame(record.frame)
        event = self._event(f"frame {record.frame:#x} freed")
        frame.generation += 1
        frame.freed = event
        stats.frame_freed(frame)
        self.tables.freed(record.frame, event, self._row)
        changes, frame.changes = frame.changes, []
        self.obligations.frame_freed(changes, event, self._row)
        if self.sometimes.open:
            self.sometimes.mark(self._op(), "frame_freed", self._row)

    def _frame_copied(self, record: r.FrameCopied) -> None:
        event = self._event(f"frame {record.source:#x} copied")
        self.obligations.frame_copied(self._op(), record.source, event, self._row)
        if self.sometimes.open:
            self.sometimes.mark(self._op(), "frame_copied", self._row)

    def _page_written(self, record: r.PageWritten) -> None:
        event = self._event(f"frame {record.frame:#x} written to swap")
        self.obligations.page_written(self._op(), record.frame, event, self._row)

    def _access(self, record: r.Access) -> None:
        op = self.state.ops.get(self._op_id)
        fill = op.uses.pop(self._id, None) if op is not None else None
        if fill is not None:
            fill.uses -= 1
            stats.bump(self.statistics.accesses, fill.cache)
            what = "frame written" if record.write else "frame read"
            self.safety.accessed(fill, record, self._event(what), self._row)
            self.coherence.accessed(fill, record, self._op_id, self._event(what))

    def _out_of_memory(self, _: r.OutOfMemory) -> None:
        self.statistics.out_of_memory += 1

    # -- by whoever caches translations ----------------------------------------------------------

    def _fill(self, record: r.Fill) -> None:
        read = self._source(record)
        if read is None:
            return
        rights = ptes.PRESENT if record.cache == "vmcs" else ptes.PRESENT | record.pte & ptes.WRITE
        pte = ptes.make(ptes.frame_of(read.pte), rights)
        fill = Cached(record.fill, record.cache, self._node, self._at, read, pte)
        fill.n, fill.id = self._n, self._id
        fill.usable = record.cache != "vmcs"
        self.state.add_fill(fill)
        if fill.usable and read.page.changes:
            self.obligations.installed(fill)

    def _source(self, record: r.Fill) -> Read | None:
        """The load that a fill goes back to; None (and S8) if it was no entry of that page."""
        if record.cache in ("gtlb", "atc"):
            parent = self.state.fills.get(record.source)
            if parent is not None:
                return parent.read
        read = self.state.reads.get(record.source)
        page = read.page if read is not None else None
        if page is not None and self._same_page(record, page.mm, page.address):
            return read
        why = "no entry was there" if page is None else f"it mapped {page.mm}:{page.address:#x}"
        self._found.append(
            foreign_walk(
                self._node, record.cache, self._mm_of.get(record.tag, record.tag),
                record.address, record.pte, self._event(f"{record.cache} filled"), why,
            )
        )  # fmt: skip
        return None

    def _same_page(self, record: r.Fill, mm: str, address: int) -> bool:
        if record.cache in ("gtlb", "vmcs"):
            return True  # their address is a gpa
        return self._mm_of.get(record.tag, record.tag) == mm and record.address == address

    def _close(self, name: str) -> None:
        fill = self.state.fills.get(name)
        if fill is not None:
            self.state.close(fill, self._n, gone=True)
        self.tables.closed(name, self._n)

    def _table_read(self, record: r.TableRead) -> None:
        self.tables.read(record, self._event("table found"))

    def _table_cached(self, record: r.TableCached) -> None:
        self.tables.cached(record, self._event("upper entry kept"), self._at)

    def _evict(self, record: r.Evict) -> None:
        self._close(record.fill)

    def _invalidate_begin(self, record: r.InvalidateBegin) -> None:
        if record.fills:
            self._op().caches.add(record.cache)
        self.measures.invalidated(record, self._op(), self._event("invalidated"))
        self.targeting.invalidated(record, self._op(), self._event("invalidated"))

    def _invalidate_done(self, record: r.InvalidateDone) -> None:
        for name in record.fills:
            self._close(name)

    def _use(self, record: r.Use) -> None:
        fill = self.state.fills.get(record.fill)
        if fill is not None:
            fill.uses += 1
            self.state.op(operation_of(record.access)).uses[record.access] = fill
            self.coherence.issued(fill, record.access, self._row)

    def _permission_fault(self, record: r.PermissionFault) -> None:
        self.denied.faulted(record, self._event("permission fault"), self._row[self._memory])

    def _walk_discarded(self, _: r.WalkDiscarded) -> None:
        self.statistics.walks_discarded += 1

    # -- by vCPUs and KVM ------------------------------------------------------------------------

    def _request_posted(self, record: r.RequestPosted) -> None:
        if record.done and record.request == APIC_PAGE_RELOAD:
            for fill in self.state.vmcs.get(self._node, ()):
                self.state.close(fill, self._n, gone=False)

    def _guest_enter(self, record: r.GuestEnter) -> None:
        fill = self.state.fills.get(record.vmcs) if record.vmcs else None
        if fill is not None and not fill.usable and not fill.closed:
            fill.usable = True
            if fill.read.page.changes:
                self.obligations.installed(fill)

    def _invalidation(self, record: r.Invalidation) -> None:
        event = self._event("range_end done")
        self.brackets.invalidation(record, event)
        op = self.state.ops.get(self._op_id)
        if record.begin or op is None or self._node not in self._mm_of:
            return
        mm, memory = self._mm_of[self._node], self._row[self._memory]
        ended = [
            c
            for c in op.changes
            if c.n <= memory
            and c.page.mm == mm
            and covers(record.start, record.end, c.page.address)
        ]
        self.obligations.bracket_ended(ended, self._shadow[self._node], event, self._row)

    def _apic_trapped(self, record: r.ApicTrapped) -> None:
        self.statistics.apic_trapped += record.trapped
        self.statistics.apic_untrapped += not record.trapped

    # -- by initiators ---------------------------------------------------------------------------

    def _op_begin(self, record: r.OpBegin) -> None:
        op = self.state.op(record.op or self._op_id)
        op.kind, op.tag, op.start, op.end = record.kind, record.tag, record.start, record.end
        op.node, op.index, op.began = self._node, self._at, self._n
        self._retire_previous(op.id)
        if self.sometimes.open:
            self.sometimes.op_began(op)
            self.sometimes.mark(op, "op_begin", self._row)

    def _retire_previous(self, op_id: str) -> None:
        """Records that came for an operation after its end are forgotten with the next begin."""
        program, _, index = op_id.rpartition("/")
        previous = self.state.ops.get(f"{program}/{int(index) - 1}") if index.isdigit() else None
        if previous is not None:
            self.state.end_op(previous)

    def _op_end(self, record: r.OpEnd) -> None:
        self.order.keep(self._n)
        op = self.state.op(record.op or self._op_id)
        self.obligations.op_ended(op, record.kind, self._event(OPERATION_ENDED), self._row)
        self.inherited.ended(op, self._event(OPERATION_ENDED), self._row)
        stats.op_ended(self.statistics, op)
        if self.sometimes.open:
            self.sometimes.mark(op, "op_end", self._row)
            self.sometimes.op_ended(op, self._n)
        self.progress.ended(op.id)
        self.deadlocks.ended(op.id)
        self.coherence.ended(op, self._n)
        self.measures.ended(op.id)
        self.moves.ended(op.id)
        self.tables.ended(op.id)
        self.targeting.ended(op.id)
        self.state.end_op(op)

    def _notifier_call(self, record: r.NotifierCall) -> None:
        self.measures.notifier_call(record, record.op or self._op_id)
        op = self.state.op(record.op or self._op_id)
        self.targeting.notifier_call(record, op, self._event(record.callback))
        mark = CALLBACK_MARKS.get(record.callback)
        if mark is not None and record.phase == "begin" and self.sometimes.open:
            self.sometimes.mark(op, mark, self._row)

    def _fault_retry(self, record: r.FaultRetry) -> None:
        stats.bump(self.statistics.retries, record.why)
        event = self._event("retry")
        op = record.op or self._op_id
        self.progress.retried(record, op, event, self._row, self.brackets.of)

    def _coverage(self, record: r.Coverage) -> None:
        stats.bump(self.statistics.covered, record.point)
