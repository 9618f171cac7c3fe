"""A watch over plug-ins: code of theirs that does not come back is stopped, and named.

A thread of every process with plug-ins looks at its main thread every second.  A call of a plug-in
that is found there again and again, with no delivery handled in between, loops or sleeps: first it
is asked to end (``PluginLoops`` is raised in it), and if it swallows that, the process ends.

A thread, and not a timer: a timer is one of a process, and a plug-in that sets one of its own
(``signal.alarm``) would end the watch.  And not a process beside it: that would see that nothing
moves, but not which line does not, and cannot tell a loop from a long search.  What a thread cannot
stop is a single call of C code that never lets another thread run.

What is counted is processor time, so that a call is no loop because the machine has much else to
do, and looks at which none was used, so that it does not wait because the machine was asleep.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

from mmurace.protocol.limits import (
    PLUGIN_GRACE_SECONDS,
    PLUGIN_IDLE_SECONDS,
    PLUGIN_STEP_SECONDS,
)

LOOK_SECONDS: Final = 1.0
IDLE_SECONDS: Final = 0.02
"""Who uses less of the processor between two looks waits; one of fifty that are ready has more."""
EXIT_BROKEN: Final = 4
WAKES: Final = signal.SIGURG
"""Interrupts what the main thread waits in.  Nobody else has a use for it, and by itself it does
nothing: whoever would have it ignored only gets the harder end."""


class PluginLoops(BaseException):
    """A plug-in does not come back; not an ``Exception``, so that its loop does not catch it."""


def _last_word(said: str) -> int:
    """What is left to say if nobody else sees to it; the exit status."""
    sys.stderr.write(f"{said}\n")
    return EXIT_BROKEN


class _Watchdog:
    """What was seen when it last looked."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.steps = 0
        """Deliveries handled so far."""
        self.last_word: Callable[[str], int] = _last_word
        self._main = threading.main_thread().ident or 0
        self._seen: tuple[FrameType | None, int] = (None, 0)
        self._used = self._last = 0.0
        """Processor time of the main thread when it was first seen there, and when last."""
        self._idle = 0
        """How often it had hardly used any since the look before."""
        self._asked = 0
        """How often it was, since it was asked to end; 0: it was not."""

    def watch(self) -> None:
        """Look for ever."""
        while True:
            time.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Ask the call of a plug-in that is there too long to end, or end the process."""
        clock = time.pthread_getcpuclockid(self._main)
        used = time.clock_gettime(clock)
        seen = (self._call(sys._current_frames().get(self._main)), self.steps)
        if seen[0] is None or seen != self._seen:
            self._seen, self._used, self._last, self._idle, self._asked = seen, used, used, 0, 0
            return
        self._idle += used - self._last < IDLE_SECONDS
        self._last = used
        if self._asked:
            self._asked += 1
            if self._asked * LOOK_SECONDS > PLUGIN_GRACE_SECONDS:
                self._end()
        elif self._why(used):
            self._asked = 1
            signal.pthread_kill(self._main, WAKES)

    def raised(self, _signal: int, frame: FrameType | None) -> None:
        """The handler in the main thread.  Raises ``PluginLoops`` if it was asked for."""
        if self._asked and self._call(frame) is self._seen[0]:
            raise PluginLoops(self._why(time.thread_time()))

    def _why(self, used: float) -> str:
        """What is wrong with the call that was seen; empty: nothing yet."""
        if used - self._used >= PLUGIN_STEP_SECONDS:
            return f"does not come back within {PLUGIN_STEP_SECONDS:g} s"
        if self._idle * LOOK_SECONDS >= PLUGIN_IDLE_SECONDS:
            return f"waits for {PLUGIN_IDLE_SECONDS:g} s"
        return ""

    def _call(self, frame: FrameType | None) -> FrameType | None:
        """The outermost call of a plug-in in a stack."""
        found = None
        while frame is not None:
            if frame.f_code.co_filename in self.files:
                found = frame
            frame = frame.f_back
        return found

    def _end(self) -> None:
        """End this process: what runs in it cannot be stopped."""
        call = self._seen[0]
        assert call is not None
        code = call.f_code
        name = Path(code.co_filename).name
        place = f"plug-in {name}:{call.f_lineno} ({code.co_name})"
        status = EXIT_BROKEN
        try:
            status = self.last_word(f"{place}: does not come back, and cannot be stopped")
        finally:
            os._exit(status)


_WATCHDOG: Final = _Watchdog()


def watched() -> frozenset[str]:
    """Files whose code is looked after."""
    return frozenset(_WATCHDOG.files)


def watch(file: str) -> None:
    """Look after a file's code, from now on.  Only a main thread can be stopped."""
    _WATCHDOG.files.add(file)
    if len(_WATCHDOG.files) > 1 or threading.current_thread() is not threading.main_thread():
        return
    signal.signal(WAKES, _WATCHDOG.raised)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:  # signals are for the main thread, which may hold them
        threading.Thread(target=_WATCHDOG.watch, name="plug-in watch", daemon=True).start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def moved_on() -> None:
    """A delivery was handled, or begins."""
    _WATCHDOG.steps += 1


def last_word(say: Callable[[str], int]) -> None:
    """Who tells the world, when this process ends because a plug-in cannot be stopped.

    It is called in another thread than the main one, and gives the exit status.
    """
    _WATCHDOG.last_word = say
