"""The records of vCPUs and of KVM: requests, VM entries, KVM's own brackets, the APIC page."""

from __future__ import annotations

from collections.abc import Mapping

from oracle.rules.l4_completion import Completion
from oracle.rules.o_s4_deadlines import Obligations
from oracle.rules.s1_s3_s8_accesses import Safety
from oracle.rules.s10_brackets import Brackets
from oracle.state.live import State
from oracle.state.order import Row
from oracle.state.statistics import Statistics
from oracle.violation import Event
from protocol import records as r
from protocol.ranges import covers

APIC_PAGE_RELOAD = "APIC_PAGE_RELOAD"


class GuestRecords:
    """The part of the oracle that reads them."""

    state: State
    statistics: Statistics
    obligations: Obligations
    safety: Safety
    brackets: Brackets
    completion: Completion
    _memory: int
    _shadow: Mapping[str, frozenset[str]]
    _mm_of: Mapping[str, str]
    _n: int
    _node: str
    _row: Row
    _op_id: str

    def _event(self, what: str) -> Event:
        raise NotImplementedError

    def _request_posted(self, record: r.RequestPosted) -> None:
        self.completion.request(record, self._event("request posted"))
        if record.done and record.request == APIC_PAGE_RELOAD:
            for fill in self.state.latched.get(self._node, ()):
                self.state.close(fill, self._n, gone=False)

    def _guest_enter(self, record: r.GuestEnter) -> None:
        fill = self.state.fills.get(record.vmcs) if record.vmcs else None
        if fill is None:
            return
        installed = not fill.usable and not fill.closed
        fill.usable |= installed
        if fill.read.page.changes:
            if installed:
                self.obligations.installed(fill)
            self.safety.in_guest(fill, self._event("VM entry"), self._row)

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
        for fill in self.state.latched.get(self._node, ()):
            self.safety.in_guest(fill, self._event("APIC access"), self._row)
        self.statistics.apic_trapped += record.trapped
        self.statistics.apic_untrapped += not record.trapped
