"""Bounded waits on a machine that may stand still meanwhile.

A process group that is stopped, or a machine that is suspended, loses no time of its own: nobody
could have come.  Whoever waits sees that as a gap in its own clock and begins to wait anew,
because those that it waits for may be thawed later than it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mmurace.protocol import limits

Clock = Callable[[], float]


class Pulse:
    """Notices that whoever asks has stood still; asked at least once a ``SOCKET_SECONDS_MAX``."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._gaps = 0

    def stood_still(self) -> bool:
        """Whether nobody was there to ask for a while; not for ever (``GAPS_MAX``)."""
        now = self._clock()
        gap, self._last = now - self._last > limits.GAP_SECONDS, now
        self._gaps += gap
        return gap and self._gaps <= limits.GAPS_MAX


class Patience:
    """A wait of so many seconds, asked as ``Pulse`` is."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._pulse = Pulse(clock)
        self._since = clock()

    def left(self) -> float:
        """Seconds that are left; 0 if it is over."""
        if self._pulse.stood_still():
            self._since = self._clock()
        return max(0.0, self._since + self._seconds - self._clock())

    def over(self) -> bool:
        """Whether it has been waited long enough."""
        return self.left() == 0.0
