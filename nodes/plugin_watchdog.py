"""A watch over plug-ins: code of theirs that does not come back is stopped, and named.

Every process with plug-ins looks at its main thread now and then.  The same call of a plug-in,
found twice with no delivery handled in between, loops (or sleeps).
"""

from __future__ import annotations

import atexit
import signal
import threading
from types import FrameType
from typing import Final

from mmurace.protocol.limits import PLUGIN_STEP_SECONDS


class PluginLoops(BaseException):
    """A plug-in does not come back; not an ``Exception``, so that its loop does not catch it."""


class _Watchdog:
    """What was seen when it last looked."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.steps = 0
        """Deliveries handled so far."""
        self._seen: tuple[FrameType | None, int] = (None, 0)

    def look(self, _signal: int, frame: FrameType | None) -> None:
        """Raise ``PluginLoops`` in a plug-in that was there before, and has done nothing since."""
        found = None
        while frame is not None:
            if frame.f_code.co_filename in self.files:
                found = frame
            frame = frame.f_back
        before, self._seen = self._seen, (found, self.steps)
        if found is not None and before == self._seen:
            raise PluginLoops(f"does not come back within {PLUGIN_STEP_SECONDS:g} s")


_WATCHDOG: Final = _Watchdog()


def watch(file: str) -> None:
    """Look after a file's code, from now on.  Only a main thread can be stopped."""
    _WATCHDOG.files.add(file)
    if len(_WATCHDOG.files) == 1 and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGALRM, _WATCHDOG.look)
        signal.setitimer(signal.ITIMER_REAL, PLUGIN_STEP_SECONDS, PLUGIN_STEP_SECONDS)
        atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)  # the handler goes before that


def moved_on() -> None:
    """A delivery was handled, or begins."""
    _WATCHDOG.steps += 1
