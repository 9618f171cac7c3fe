"""The records of vCPUs and of KVM: requests, VM entries, KVM's own brackets, the APIC page."""

from __future__ import annotations

from collections.abc import Mapping

from oracle.brackets import Brackets
from oracle.completion import Completion
from oracle.obligations import Obligations
from oracle.order import Row
from oracle.safety import Safety
from oracle.state import Cached, State
from oracle.statistics import Statistics
from oracle.violation import Event
from oracle.windows import Windows
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
    windows: Windows | None
    _memory: int
    _shadow: Mapping[str, frozenset[str]]
    _mm_of: Mapping[str, str]
    _n: int
    _node: str
    _row: Row
    _op_id: str

    def _event(self, what: str) -> Event:
        raise NotImplementedError

    def _in_use(self) -> list[Cached]:
        """What the VMCS of the vCPU at hand is used with."""
        held = self.state.vmcs.get(self._node, ())
        return [fill for fill in held if fill.usable and not fill.closed]

    def _request_posted(self, record: r.RequestPosted) -> None:
        self.completion.request(record, self._event("request posted"))
        if record.done and record.request == APIC_PAGE_RELOAD:
            op = self.state.ops.get(self._op_id)
            if self.windows is not None and op is not None:
                self.windows.reload(self._in_use(), op, self._node, self._row)
            for fill in self.state.vmcs.get(self._node, ()):
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

    def _guest_exit(self, _: r.GuestExit) -> None:
        if self.windows is not None:
            self.windows.left_guest(self._in_use(), self._n)

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
        for fill in self.state.vmcs.get(self._node, ()):
            self.safety.in_guest(fill, self._event("APIC access"), self._row)
        self.statistics.apic_trapped += record.trapped
        self.statistics.apic_untrapped += not record.trapped
