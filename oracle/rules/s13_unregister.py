"""Rule S13: no callback of a subscriber runs once ``mmu_notifier_unregister`` has returned.

Nor does anybody work on a subscription that its owner has freed: the end of an invalidation does,
where an interval notifier comes or goes meanwhile.  Nor is one removed that is not there.

    cpu0 (invalidate)                   cpu1 (unregister)
    finds the subscriber on the list
                                        takes it off the list
    callback begins
    callback ends (c)
                                        returns (u)   [Required: c happens before u]
                                        frees what the callback works on

Whether the callback began before or after that makes no difference to who frees.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mmurace.oracle.state.order import Row
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.records import IntervalTouched, NotifierCall, Registered, Unregistered

_Key = tuple[str, str]
"""(subscriber, mm)."""


class Lifetimes:
    """Callbacks of each subscription, and its end."""

    def __init__(self, found: list[Violation], there: Iterable[_Key]) -> None:
        """``there``: subscriptions that are there from the start."""
        self.found = found
        self._there = set(there)
        self._ended: dict[_Key, dict[int, Event]] = {}
        """The last end of a callback at each node, by the node's index."""
        self._open: dict[_Key, dict[tuple[str, str], Event]] = {}
        """(operation, callback) -> its begin."""
        self._over: dict[_Key, Event] = {}

    def notifier_call(self, record: NotifierCall, op_id: str, event: Event, index: int) -> None:
        """A callback begins or ends at the node of that index."""
        key = (record.subscriber, record.mm)
        if record.phase == "begin":
            self._open.setdefault(key, {})[op_id, record.callback] = event
            if key in self._over:
                self._report(key, event, self._over[key])
        else:
            self._open.get(key, {}).pop((op_id, record.callback), None)
            self._ended.setdefault(key, {})[index] = event

    def touched(self, record: IntervalTouched, event: Event, index: int) -> None:
        """The subscription itself is worked on at the node of that index."""
        key = (record.subscriber, record.mm)
        self._ended.setdefault(key, {})[index] = event
        if key in self._over:
            self._report(key, event, self._over[key])
        elif key not in self._there:
            subscriber, mm = key
            detail = f"a subscription to {mm} is removed that is not there"
            self.found.append(Violation("S13", subscriber, detail, mm=mm, racing=(event,)))

    def registered(self, record: Registered) -> None:
        """A subscription begins, perhaps not the first of this subscriber."""
        key = (record.subscriber, record.mm)
        self._over.pop(key, None)
        self._there.add(key)

    def unregistered(self, record: Unregistered, event: Event, row: Row) -> None:
        """The subscription is over."""
        key = (record.subscriber, record.mm)
        self._over[key] = event
        late = list(self._open.get(key, {}).values())
        late += [e for index, e in self._ended.get(key, {}).items() if row[index] < e.n]
        for callback in late:
            self._report(key, callback, event)

    def to_come(self) -> tuple[frozenset[Any], ...]:
        """What a verdict to come depends on, if all deliveries are in one order: subscriptions that
        have been, those that are over, and callbacks that are not."""
        opened = ((key, *call) for key, calls in self._open.items() for call in calls)
        return frozenset(self._there), frozenset(self._over), frozenset(opened)

    def ended(self, op_id: str) -> None:
        """The operation is over; what it left open was cut short with its subscriber."""
        for opened in self._open.values():
            for key in [key for key in opened if key[0] == op_id] if opened else ():
                del opened[key]

    def _report(self, key: _Key, callback: Event, over: Event) -> None:
        subscriber, mm = key
        detail = f"{callback.what} of {mm} was not over when the subscriber was unregistered"
        self.found.append(
            Violation("S13", subscriber, detail, mm=mm, deadline=over, racing=(callback, over))
        )
