"""Rule L5: the OOM reaper never waits for a subscriber's lock.

    cpu0 (OOM reaper)                   cpu1 (a driver)
                                        takes its lock; asks for memory
    callback that must not block
      asks for the lock                 [Required: it is not queued behind cpu1]

A lock was waited for if its grant was not made when the request arrived, but later.  That a request
may sleep is a breach of rule S11, whether it had to or not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mmurace.oracle.state.live import Op
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.envelope import REPLY_MARK


class Reaper:
    """Requests for locks in callbacks that must not block."""

    def __init__(self, found: list[Violation]) -> None:
        self.found = found
        self.asked: Final[dict[str, dict[str, Event]]] = {}
        """Operation in flight -> request -> its arrival."""

    def delivered(self, op: Op, event: Event, causes: Iterable[int]) -> None:
        """In such a callback a request for a lock arrived, or its grant, that ``causes`` led to."""
        if not event.id.endswith(REPLY_MARK):
            self.asked.setdefault(op.id, {})[event.id] = event
            return
        arrival = self.asked.get(op.id, {}).pop(event.id.removesuffix(REPLY_MARK), None)
        if arrival is not None and arrival.n not in causes:
            detail = f"{arrival.what} of {arrival.node} was waited for where nobody may block"
            self.found.append(
                Violation("L5", op.node, detail, mm=op.tag, owed=op.text(), racing=(arrival, event))
            )
