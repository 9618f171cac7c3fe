"""Rule S10: a subscriber's own bracket: a count of invalidations in progress, and a sequence.

The sequence is raised before the count falls, so that a fault that looked a page up in between sees
that it must look again.
"""

from __future__ import annotations

from collections import deque

from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.limits import ORACLE_PAGE_HISTORY
from mmurace.protocol.records import Invalidation


class Bracket:
    """One subscriber's counters as its records tell them."""

    __slots__ = ("begins", "ends", "history", "in_progress", "seq")

    def __init__(self) -> None:
        self.begins = self.ends = self.in_progress = 0
        self.seq = -1
        """The sequence at the last end; before any, at the first begin."""
        self.history: deque[tuple[int, int]] = deque(((0, 0),), maxlen=ORACLE_PAGE_HISTORY)
        """(delivery, count) of the last records, for rule L1."""

    def seen(self, n: int) -> tuple[int, int] | None:
        """(since which delivery, count) after delivery ``n`` of the node; None: too long ago."""
        return next((kept for kept in reversed(self.history) if kept[0] <= n), None)


class Brackets:
    """Counts never negative, seq raised before every fall, all zero at the end."""

    def __init__(self, found: list[Violation]) -> None:
        self.found = found
        self.of: dict[str, Bracket] = {}
        self.gone: set[str] = set()
        """Those that are dead or unregistered: the end of a bracket may not have found them."""

    def invalidation(self, record: Invalidation, event: Event) -> None:
        """A count moved."""
        bracket = self.of.setdefault(event.node, Bracket())
        bracket.in_progress = record.in_progress
        bracket.history.append((event.n, record.in_progress))
        if record.begin:
            self._begin(bracket, record, event)
        else:
            self._end(bracket, record, event)

    def _begin(self, bracket: Bracket, record: Invalidation, event: Event) -> None:
        bracket.begins += 1
        if bracket.seq < 0:
            bracket.seq = record.seq
        if record.in_progress < 1:
            self._report(event, f"the count is {record.in_progress} after it was raised")

    def _end(self, bracket: Bracket, record: Invalidation, event: Event) -> None:
        bracket.ends += 1
        if record.in_progress < 0 or bracket.ends > bracket.begins:
            self._report(event, f"an end without a begin: the count is {record.in_progress}")
        elif record.seq <= bracket.seq:
            self._report(event, f"the count fell before seq ({record.seq}) was raised")
        bracket.seq = max(bracket.seq, record.seq)

    def finish(self, n: int) -> None:
        """The run is complete: nothing is in progress."""
        for node, bracket in sorted(self.of.items()):
            left_open = bracket.in_progress or bracket.begins != bracket.ends
            if left_open and node not in self.gone:
                left = f"{bracket.begins - bracket.ends} brackets open"
                self._report(
                    Event("end of run", n, node, ""), f"the count is {bracket.in_progress}, {left}"
                )

    def _report(self, event: Event, detail: str) -> None:
        self.found.append(Violation("S10", event.node, detail, racing=(event,)))
