"""Races of one run: which deliveries could have come the other way round.

Two deliveries to one node are dependent if what their handlings touched conflicts; happens-before
is causes and dependent order (design.md section 4).  A race is *immediate* if nothing lies
between its two in that order, and *reversible* if the second message was there before the first
was handled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmurace.explorer.shrink.play import Moment
from mmurace.nodes.footprint import conflict


@dataclass(frozen=True, slots=True)
class Race:
    """Positions of two deliveries in the run; ``first`` came first."""

    first: int
    second: int


class Order:
    """Happens-before of a run, as bit masks by position."""

    def __init__(self, moments: Sequence[Moment]) -> None:
        self.moments = moments
        self.before: list[int] = []
        """By position: the positions that happen before it, or are it."""
        self.sent: list[int] = []
        """By position: what happens before its message exists."""
        self.dependent: list[list[int]] = []
        """By position: earlier ones at its node that it depends on."""
        self._last: dict[str, list[int]] = {}
        self._channels: dict[tuple[str, str], int] = {}
        at_number = {moment.n: at for at, moment in enumerate(moments)}
        for at, moment in enumerate(moments):
            self._add(at, moment, [at_number[c] for c in moment.envelope.causes if c in at_number])

    def _add(self, at: int, moment: Moment, causes: list[int]) -> None:
        envelope = moment.envelope
        sent = 0
        for cause in causes:
            sent |= self.before[cause]
        channel = (envelope.stream or envelope.path, envelope.dst)
        if channel in self._channels:  # first in, first out: no race
            sent |= self.before[self._channels[channel]]
        self._channels[channel] = at
        mine = self._last.setdefault(envelope.dst, [])
        conflicting = [o for o in mine if conflict(self.moments[o].touched, moment.touched)]
        before = sent | 1 << at
        for other in conflicting:
            before |= self.before[other]
        mine.append(at)
        self.sent.append(sent)
        self.before.append(before)
        self.dependent.append(conflicting)

    def races(self) -> list[Race]:
        """Every immediate, reversible race, in the order of the run."""
        return [
            Race(first, second)
            for second, earlier in enumerate(self.dependent)
            for first in earlier
            if not self.sent[second] >> first & 1 and self._immediate(first, earlier)
        ]

    def _immediate(self, first: int, earlier: list[int]) -> bool:
        """Nothing else that the later one depends on comes after ``first``."""
        return not any(other != first and self.before[other] >> first & 1 for other in earlier)

    def reversed_order(self, first: int, second: int) -> tuple[str, ...]:
        """An order of names in which the second comes before the first.

        What does not need the first stays where it is; the first comes right after the second;
        the rest follows as it was.
        """
        early = [
            at
            for at in range(len(self.moments))
            if at < first or (at < second and not self.before[at] >> first & 1)
        ]
        taken = {*early, first, second}
        rest = [at for at in range(len(self.moments)) if at not in taken]
        return tuple(self.moments[at].name for at in (*early, second, first, *rest))

    def trace(self) -> frozenset[tuple[str, str]]:
        """What is the same in every equivalent run: dependent pairs, in order."""
        moments = self.moments
        return frozenset(
            (moments[first].name, moments[second].name)
            for second, earlier in enumerate(self.dependent)
            for first in earlier
        )
