"""Rules S14 and P4: what a driver was told, and what it told its unit.

S14: when a callback that flushes a shared-table secondary returns, the unit has been told of every
page in the callback's range that the operation has changed, as the driver *decoded* that range.
Commands of the operation since the change count, by whatever callback.  A unit that hears the
CPUs' broadcasts need not be told.
P4: a callback, which may run under a spinlock, queues a bounded number of commands.

    cpu (takes something away)          driver                      unit
    entry changed (e)
    callback [start, end) of the mm     decodes it to [s, t), ...
                                                                    told of [s, t)
    callback returns                    [Required: [s, t) of some command since e holds e's page]
"""

from __future__ import annotations

from oracle.state import Change, Op
from oracle.violation import Event, Violation
from protocol.limits import CALLBACK_COMMANDS_MAX
from protocol.pte import describe
from protocol.ranges import covers
from protocol.records import InvalidateBegin, NotifierCall

FLUSHES = frozenset({"invalidate_range", "arch_invalidate_secondary_tlbs"})

_Key = tuple[str, str]
"""(operation, unit)."""
_Told = tuple[int, str, int, int]
"""(delivery, mm, start, end) of a command."""


class Targeting:
    """Commands that each operation led to, and what they should have covered."""

    def __init__(self, units: frozenset[str], found: list[Violation]) -> None:
        self.units, self.found = units, found
        self._told: dict[_Key, list[_Told]] = {}
        self._before: dict[_Key, int] = {}
        """How many commands there were when the callback in progress began."""
        self._reported: set[tuple[str, ...]] = set()

    def invalidated(self, record: InvalidateBegin, op: Op, event: Event) -> None:
        """A command (or a broadcast) arrived at a unit."""
        if record.cache == "iotlb":
            told = self._told.setdefault((op.id, event.node), [])
            told.append((event.n, record.tag, record.start, record.end))

    def notifier_call(self, record: NotifierCall, op: Op, event: Event) -> None:
        """A callback begins or ends."""
        if record.callback not in FLUSHES or record.subscriber not in self.units:
            return
        told = self._told.get((op.id, record.subscriber), [])
        if record.phase == "begin":
            self._before[op.id, record.subscriber] = len(told)
            return
        queued = len(told) - self._before.pop((op.id, record.subscriber), len(told))
        if queued > CALLBACK_COMMANDS_MAX and self._new("P4", op.id, record.subscriber):
            self.found.append(_too_many(record, op, queued, event))
        for change in op.changes:
            if not _covered(change, record, told):
                self._missed(change, record, op, event)

    def _missed(self, change: Change, record: NotifierCall, op: Op, event: Event) -> None:
        if self._new("S14", op.id, record.subscriber, change.id):
            self.found.append(_not_told(change, record, op, event))

    def _new(self, *what: str) -> bool:
        fresh = what not in self._reported
        self._reported.add(what)
        return fresh

    def ended(self, op_id: str) -> None:
        """The operation is over."""
        for unit in self.units:
            self._told.pop((op_id, unit), None)
            self._before.pop((op_id, unit), None)
        if self._reported:
            self._reported = {what for what in self._reported if what[1] != op_id}


def _covered(change: Change, record: NotifierCall, told: list[_Told]) -> bool:
    page = change.page
    if page.mm != record.mm or not covers(record.start, record.end, page.address):
        return True
    return any(
        n > change.n and mm == page.mm and covers(start, end, page.address)
        for n, mm, start, end in reversed(told)
    )


def _not_told(change: Change, record: NotifierCall, op: Op, event: Event) -> Violation:
    page = change.page
    return Violation(
        rule="S14", agent=record.subscriber, cache="iotlb", mm=page.mm, address=page.address,
        changed=change.event(), change=f"{describe(change.old)} -> {describe(change.new)}",
        owed=op.text(), deadline=event, racing=(change.event(), event),
        detail=f"{record.callback} of [{record.start:#x}, {record.end:#x}) returned, and the "
        "unit was not told of this page",
    )  # fmt: skip


def _too_many(record: NotifierCall, op: Op, queued: int, event: Event) -> Violation:
    return Violation(
        rule="P4", agent=record.subscriber, cache="iotlb", mm=record.mm, address=record.start,
        owed=op.text(), racing=(event,),
        detail=f"one {record.callback} of [{record.start:#x}, {record.end:#x}) queued {queued} "
        f"commands (at most {CALLBACK_COMMANDS_MAX})",
    )  # fmt: skip
