"""Measures P2 and P3: what invalidations cost, and the one case in which that is a breach.

P2 counts invalidations of shared-table secondaries, and how many of them said again what the same
operation had said since it last changed an entry.  P3 counts shadow entries by the event for which
they were zapped: an event that takes nothing away may cost a shadow MMU nothing.
"""

from __future__ import annotations

from oracle.state import Op
from oracle.statistics import Statistics, bump
from oracle.violation import Event, Violation
from protocol.events import MmuNotifierEvent
from protocol.limits import ZAPS_PER_UPGRADE_MAX
from protocol.records import InvalidateBegin, NotifierCall

SHARED = frozenset({"iotlb"})
"""Caches of the mm's own table that are invalidated by commands."""

_Key = tuple[str, str]
"""(operation, node)."""


class Measures:
    """Counts into ``Statistics``; rule P3 for rights that were added."""

    def __init__(self, statistics: Statistics, found: list[Violation]) -> None:
        self.statistics, self.found = statistics, found
        self._event: dict[_Key, str] = {}
        """Why the shadow MMU at a node is being invalidated by an operation."""
        self._said: dict[_Key, tuple[int, int, int]] = {}
        """The last range that an operation invalidated at a node, and its changes by then."""

    def notifier_call(self, record: NotifierCall, op_id: str) -> None:
        """``invalidate_range_start`` of one subscriber begins or ends."""
        if record.callback != "invalidate_range_start":
            return
        if record.phase == "begin":
            self._event[op_id, record.subscriber] = record.event
        else:
            self._event.pop((op_id, record.subscriber), None)

    def invalidated(self, record: InvalidateBegin, op: Op, event: Event) -> None:
        """An invalidation arrived at a node on behalf of an operation."""
        if record.cache in SHARED:
            self._command(record, op, event.node)
        elif record.cache == "spte" and record.fills:
            self._zapped(record, op, event)

    def _command(self, record: InvalidateBegin, op: Op, node: str) -> None:
        bump(self.statistics.secondary_invalidations, op.kind)
        start, end, changes = self._said.get((op.id, node), (0, 0, -1))
        if changes == len(op.changes) and start <= record.start and record.end <= end:
            bump(self.statistics.secondary_repeated, op.kind)
        self._said[op.id, node] = (record.start, record.end, len(op.changes))

    def _zapped(self, record: InvalidateBegin, op: Op, event: Event) -> None:
        why = self._event.get((op.id, event.node))
        if why is None:
            return
        bump(self.statistics.zapped, why)
        wasted = why == MmuNotifierEvent.PROTECTION_UPGRADE
        if wasted and self.statistics.zapped[why] > ZAPS_PER_UPGRADE_MAX:
            self.found.append(_report(record, op, event))

    def ended(self, op_id: str) -> None:
        """The operation is over."""
        self._said = {key: said for key, said in self._said.items() if key[0] != op_id}


def _report(record: InvalidateBegin, op: Op, event: Event) -> Violation:
    return Violation(
        rule="P3", agent=event.node, cache=record.cache, mm=op.tag, address=record.start,
        racing=(event,), owed=op.text(),
        detail=f"{op.text()} only added a right, and an entry that is as good as before was "
        "zapped for it",
    )  # fmt: skip
