"""Rule L2: an invalidation ends within a bounded number of its own steps, whoever faults beside it.

    cpu0 (invalidate)                   guests
    start: lock; zap; ...               fault, retry, fault, ...
    unlock; end                         [Required: after so many steps of cpu0, whatever they do]

A step is a request of the thread that invalidates: its name says the how-manieth it is.  What is
bounded is each ``invalidate_range_start`` and ``_end`` by itself, and all that is between them, in
proportion to the pages of the range.

Rule Q1, here: at the end every bracket that was opened for a subscriber has been closed.
"""

from __future__ import annotations

from typing import Final

from mmurace.oracle.state.live import Op
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.envelope import REPLY_MARK, operation_of
from mmurace.protocol.limits import (
    BRACKET_STEPS_BASE,
    BRACKET_STEPS_PER_PAGE,
    CALLBACK_STEPS_BASE,
    CALLBACK_STEPS_PER_PAGE,
)
from mmurace.protocol.ranges import pages
from mmurace.protocol.records import NotifierCall

START: Final = "invalidate_range_start"
END: Final = "invalidate_range_end"

_Place = tuple[str, int]
"""(coroutine, how many requests it has sent)."""


class Callbacks:
    """Brackets of notifier callbacks: how long they take, and whether they pair."""

    def __init__(self, found: list[Violation], endless: frozenset[str] = frozenset()) -> None:
        self.found = found
        self.endless = endless
        """Subscribers that have starts and no ends."""
        self.began: Final[dict[str, dict[tuple[str, str], _Place]]] = {}
        """Operation in flight -> (subscriber, callback) -> where it began."""
        self.open: dict[tuple[str, str], int] = {}
        """(subscriber, mm) -> brackets that are open."""
        self._dead: set[str] = set()

    def notifier_call(self, record: NotifierCall, op: Op, event: Event) -> None:
        """A callback begins or ends."""
        if record.callback not in (START, END):
            return
        here = _place(event.id, op.id)
        began = self.began.setdefault(op.id, {})
        key = (record.subscriber, record.callback)
        if record.phase == "begin":
            began[key] = here
            return
        self._bounded(record, op, event, began.pop(key, None), here)
        self._pair(record)
        if record.callback == END:
            began.pop((record.subscriber, "bracket"), None)

    def _bounded(
        self, record: NotifierCall, op: Op, event: Event, began: _Place | None, here: _Place
    ) -> None:
        """The callback by itself, and the bracket that it ends."""
        of = self.began[op.id]
        size = pages(record.start, record.end) + 1
        one = CALLBACK_STEPS_BASE + CALLBACK_STEPS_PER_PAGE * size
        self._judge(record.callback, op, event, _steps(began, here), one, record)
        if record.callback == START and began is not None:
            of[record.subscriber, "bracket"] = began
        elif record.callback == END:
            whole = BRACKET_STEPS_BASE + BRACKET_STEPS_PER_PAGE * size
            opened = of.get((record.subscriber, "bracket"))
            self._judge("the bracket", op, event, _steps(opened, here), whole, record)

    def _judge(
        self, what: str, op: Op, event: Event, steps: int, most: int, record: NotifierCall
    ) -> None:
        if steps > most:
            self.found.append(
                Violation(
                    "L2", record.subscriber, mm=record.mm, address=record.start, owed=op.text(),
                    racing=(event,),
                    detail=f"{what} of [{record.start:#x}, {record.end:#x}) took {steps} steps of "
                    f"its own (at most {most})",
                )
            )  # fmt: skip

    def _pair(self, record: NotifierCall) -> None:
        if record.subscriber in self.endless:
            return
        key = (record.subscriber, record.mm)
        self.open[key] = self.open.get(key, 0) + (1 if record.callback == START else -1)

    def lost(self, node: str) -> None:
        """A subscriber is dead: nobody will close its brackets."""
        self._dead.add(node)

    def finish(self, event: Event) -> None:
        """The run is complete: no bracket is open."""
        for (subscriber, mm), count in sorted(self.open.items()):
            if count and subscriber not in self._dead:
                why = f"{count} brackets of {mm} are open"
                self.found.append(Violation("Q1", subscriber, why, mm=mm, racing=(event,)))


def _place(message: str, op_id: str) -> _Place:
    """Which request of which coroutine a delivery answers; none if it is of another operation."""
    if operation_of(message) != op_id:
        return "", 0
    if not message.endswith(REPLY_MARK):
        return message, -1
    coroutine, _, index = message.rstrip(REPLY_MARK).rpartition(".")
    return coroutine, int(index)


def _steps(began: _Place | None, here: _Place) -> int:
    """Requests between two places of one coroutine; 0 if they are of two."""
    return here[1] - began[1] if began is not None and began[0] and began[0] == here[0] else 0
