"""The records of subscribers: requests, latched values in use, brackets of their own, intervals."""

from __future__ import annotations

from collections.abc import Mapping

from mmurace.oracle.rules.l4_completion import Completion
from mmurace.oracle.rules.o_s4_deadlines import Obligations
from mmurace.oracle.rules.s1_s3_accesses import Safety
from mmurace.oracle.rules.s10_brackets import Brackets
from mmurace.oracle.rules.s13_unregister import Lifetimes
from mmurace.oracle.sometimes import Sometimes
from mmurace.oracle.state.kinds import Kinds
from mmurace.oracle.state.live import Cached, Op, State
from mmurace.oracle.state.order import Row
from mmurace.oracle.state.statistics import Statistics
from mmurace.oracle.violation import Event
from mmurace.oracle.windows import Windows
from mmurace.protocol import records as r
from mmurace.protocol.ranges import covers


class GuestRecords:
    """The part of the oracle that reads them."""

    state: State
    statistics: Statistics
    obligations: Obligations
    safety: Safety
    brackets: Brackets
    completion: Completion
    lifetimes: Lifetimes
    sometimes: Sometimes
    windows: Windows | None
    _memory: int
    _at: int
    _kinds: Kinds
    _shadow: Mapping[str, frozenset[str]]
    told_of: Mapping[str, frozenset[str]]
    _n: int
    _node: str
    _row: Row
    _op_id: str

    def _event(self, what: str) -> Event:
        raise NotImplementedError

    def _in_use(self) -> list[Cached]:
        """Latched values that the node at hand is used with."""
        held = self.state.latched.get(self._node, ())
        return [fill for fill in held if fill.usable and not fill.closed]

    def _request_posted(self, record: r.RequestPosted) -> None:
        self.completion.request(record, self._event("request posted"))
        if record.done and record.request in self._kinds.dropped_on:
            op = self.state.ops.get(self._op_id)
            if self.windows is not None and op is not None:
                self.windows.reload(self._in_use(), op, self._node, self._row)
            for fill in self.state.latched.get(self._node, ()):
                self.state.close(fill, self._n, gone=False)

    def _guest_enter(self, record: r.GuestEnter) -> None:
        fill = self.state.fills.get(record.latched) if record.latched else None
        if fill is None:
            return
        # Entered with what was to be loaded again: nobody has done that, so it is held still.
        installed = not fill.usable or fill.closed > 0
        fill.usable, fill.closed = True, 0
        if fill.read.page.changes:
            if installed:
                self.obligations.installed(fill)
            self.safety.in_guest(fill, self._event("VM entry"), self._row)

    def _guest_exit(self, _: r.GuestExit) -> None:
        if self.windows is not None:
            self.windows.left_guest(self._in_use(), self._n)

    def _invalidation(self, record: r.Invalidation) -> None:
        event = self._event("range_end done")
        self.brackets.invalidation(record, event)
        op = self.state.ops.get(self._op_id)
        if not record.begin and op is not None:
            self._bracket_ended(op, self._node, record.start, record.end, event)

    def _bracket_ended(self, op: Op, subscriber: str, start: int, end: int, event: Event) -> None:
        """A shadow MMU may install again what the operation has changed in a range."""
        mms, memory = self.told_of[subscriber], self._row[self._memory]
        ended = [
            c
            for c in op.changes
            if c.n <= memory and c.page.mm in mms and covers(start, end, c.page.address)
        ]
        self.obligations.bracket_ended(ended, self._shadow[subscriber], event, self._row)

    def _interval_closed(self, record: r.IntervalClosed) -> None:
        op = self.state.ops.get(self._op_id)
        if op is not None:
            event = self._event("mn_itree_inv_end")
            self._bracket_ended(op, record.subscriber, record.start, record.end, event)
            if self.sometimes.open:
                self.sometimes.mark(op, "range_end", self._row)

    def _interval_touched(self, record: r.IntervalTouched) -> None:
        self.lifetimes.touched(record, self._event("change of the tree"), self._at)

    def _access_trapped(self, record: r.AccessTrapped) -> None:
        for fill in self.state.latched.get(self._node, ()):
            self.safety.in_guest(fill, self._event("access that must trap"), self._row)
        self.statistics.accesses_trapped += record.trapped
        self.statistics.accesses_not_trapped += not record.trapped
