"""Measures P1 to P3: what invalidations cost, and the one case in which that is a breach.

P1 sets the pages that shared-table secondaries were told to drop against those that changed.
P2 counts invalidations of shared-table secondaries, and how many of them said again what the same
operation had said since it last changed an entry.  P3 counts shadow entries by the event for which
they were zapped: an event that takes nothing away may cost a shadow MMU nothing.
"""

from __future__ import annotations

from mmurace.oracle.state.kinds import kinds
from mmurace.oracle.state.live import Op
from mmurace.oracle.state.statistics import Statistics, bump
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SHIFT, ULONG_MAX, ZAPS_PER_UPGRADE_MAX
from mmurace.protocol.ranges import page_align, page_of
from mmurace.protocol.records import InvalidateBegin, NotifierCall

_Key = tuple[str, str]
"""(operation, node)."""


class Measures:
    """Counts into ``Statistics``; rule P3 for rights that were added."""

    def __init__(self, statistics: Statistics, found: list[Violation], address_end: int) -> None:
        self.statistics, self.found, self.address_end = statistics, found, address_end
        self.kinds = kinds()
        self._event: dict[_Key, str] = {}
        """Why the shadow MMU at a node is being invalidated by an operation."""
        self._by: dict[_Key, str] = {}
        """The call of the core in which a shared-table secondary is being told."""
        self.said: dict[str, dict[str, tuple[int, int, int]]] = {}
        """Operation in flight -> node -> the last range that was invalidated there, and how many
        entries it had changed by then."""

    def notifier_call(self, record: NotifierCall, op_id: str) -> None:
        """A callback of one subscriber begins or ends."""
        if record.callback != "invalidate_range_start":
            self._by[op_id, record.subscriber] = record.within or record.callback
            if record.phase == "end":
                del self._by[op_id, record.subscriber]
            return
        if record.phase == "begin":
            self._event[op_id, record.subscriber] = record.event
        else:
            self._event.pop((op_id, record.subscriber), None)

    def invalidated(self, record: InvalidateBegin, op: Op, event: Event) -> None:
        """An invalidation arrived at a node on behalf of an operation."""
        if record.cache in self.kinds.walked:
            if record.fills:
                by = self._by.get((op.id, event.node), "the flush of the CPUs")
                bump(self.statistics.discharged, f"{record.cache} by {by}")
            self._command(record, op, event.node)
        elif record.cache in self.kinds.zapped and record.fills:
            self._zapped(record, op, event)

    def _command(self, record: InvalidateBegin, op: Op, node: str) -> None:
        bump(self.statistics.secondary_invalidations, op.kind)
        self._told(record, op.kind)
        said = self.said.setdefault(op.id, {})
        start, end, changes = said.get(node, (0, 0, -1))
        if changes == len(op.changes) and start <= record.start and record.end <= end:
            bump(self.statistics.secondary_repeated, op.kind)
        said[node] = (record.start, record.end, len(op.changes))

    def _told(self, record: InvalidateBegin, kind: str) -> None:
        """How much a unit was told to drop."""
        if (record.start, record.end) == (0, ULONG_MAX):
            bump(self.statistics.secondary_whole, kind)
            return
        told = page_align(min(record.end, self.address_end)) - page_of(record.start)
        pages = self.statistics.secondary_pages
        pages[kind] = pages.get(kind, 0) + max(told >> PAGE_SHIFT, 0)

    def _zapped(self, record: InvalidateBegin, op: Op, event: Event) -> None:
        why = self._event.get((op.id, event.node))
        if why is None:
            return
        bump(self.statistics.zapped, why)
        wasted = why == MmuNotifierEvent.PROTECTION_UPGRADE
        if wasted and self.statistics.zapped[why] > ZAPS_PER_UPGRADE_MAX:
            self.found.append(_report(record, op, event))

    def ended(self, op: Op) -> None:
        """The operation is over."""
        del self.said[op.id]
        changed = self.statistics.changed_pages
        changed[op.kind] = changed.get(op.kind, 0) + len({c.page for c in op.changes})


def _report(record: InvalidateBegin, op: Op, event: Event) -> Violation:
    return Violation(
        rule="P3", agent=event.node, cache=record.cache, mm=op.tag, address=record.start,
        racing=(event,), owed=op.text(),
        detail=f"{op.text()} only added a right, and an entry that is as good as before was "
        "zapped for it",
    )  # fmt: skip
