"""Schedules: which of the deliverable messages is next.

A schedule sees the heads of all channels and picks one.  Whatever it does is recorded by the
numbers that deliveries get, so any schedule can be replayed by ``Recorded``.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Protocol

from mmurace.protocol.envelope import Envelope
from mmurace.protocol.errors import ReplayDivergence


class Schedule(Protocol):
    """Picks the next delivery."""

    def pick(self, heads: list[Envelope]) -> int:
        """The index of the next one among ``heads`` (never empty); -1 to end the run here."""


class Arrival:
    """First come, first delivered."""

    def pick(self, heads: list[Envelope]) -> int:
        """The one that has waited longest (heads move when others are taken, so search)."""
        return min(range(len(heads)), key=lambda i: heads[i].causes[-1:] or (0,))


class RandomWalk:
    """Each deliverable message is equally likely."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def pick(self, heads: list[Envelope]) -> int:
        """A uniform draw."""
        return int(self._random() * len(heads))


ScheduleEntry = tuple[int, str, int]
"""(delivery number, message id, copy) as recorded."""


class Recorded:
    """Deliveries in the recorded order and with their numbers; ends where the record ends."""

    def __init__(self, entries: Iterable[ScheduleEntry], cut: bool = False) -> None:
        """``cut``: the record ends before the run did, so that nothing is complete at its end."""
        self.entries = list(entries)
        self.position = 0
        self.cut = cut

    @property
    def number(self) -> int:
        """The number of what was picked last: a run that was cut short has gaps."""
        return self.entries[self.position - 1][0]

    def pick(self, heads: list[Envelope]) -> int:
        """The recorded one.  Raises ``ReplayDivergence`` if it is not deliverable."""
        if self.position == len(self.entries):
            return -1
        number, wanted, copy = self.entries[self.position]
        for index, envelope in enumerate(heads):
            if envelope.id == wanted and envelope.copy == copy:
                self.position += 1
                return index
        raise ReplayDivergence("broker", number, "id", f"{wanted} (copy {copy}) is not deliverable")
