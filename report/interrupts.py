"""What the launcher makes of the signals that end a run: Ctrl-C, a request to end, a closed
terminal.

The first one raises ``KeyboardInterrupt``, wherever the command is; what there is gets printed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from mmurace.explorer.run.outcome import BROKEN, INTERRUPTED
from mmurace.protocol.errors import UserError
from mmurace.protocol.signals import ENDING

TOGETHER_SECONDS: Final = 1.0
"""Signals within this time mean the same one: ``timeout`` sends it to a process and to its
group, and a terminal that closes says so as the kernel and as the shell."""


class Interrupted(Exception):  # noqa: N818 - reads as what happened
    """Ctrl-C, where there is no outcome to print."""


@contextmanager
def interrupts(directory: Path) -> Iterator[None]:
    """Ctrl-C where nobody else sees to it: say where the files are.  Raises ``Interrupted``."""
    try:
        yield
    except KeyboardInterrupt:
        from mmurace.broker.aborted import write_aborted

        with suppress(OSError, UserError):
            write_aborted(directory, "interrupted")
        raise Interrupted(f"; what there is of the run is in {directory}") from None


class Interrupter:
    """The handler of a command: raises once, and ends the process at the next that is meant."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: float | None = None

    @property
    def interrupted(self) -> bool:
        """Whether a signal has come."""
        return self._first is not None

    def __call__(self, *_signal: object) -> None:
        """Raises ``KeyboardInterrupt``."""
        now = self._clock()
        if self._first is None:
            self._first = now
            raise KeyboardInterrupt
        if now - self._first > TOGETHER_SECONDS:
            os._exit(INTERRUPTED)


def interruptible(command: Callable[[], int]) -> int:
    """Run a whole command; the exit status, also if a signal comes as it begins or ends.

    That an interrupted command could not print what there is (its terminal is gone) is no news.
    """
    interrupter = Interrupter()
    try:
        try:
            handle(interrupter)
            status = command()
        finally:
            handle(signal.SIG_IGN)
    except KeyboardInterrupt:
        return INTERRUPTED
    return INTERRUPTED if status == BROKEN and interrupter.interrupted else status


def handle(handler: Callable[..., object] | signal.Handlers) -> None:
    """Handle the signals so, but for those that whoever started us wants ignored (``nohup``)."""
    for ending in ENDING:
        if signal.getsignal(ending) is not signal.SIG_IGN:
            signal.signal(ending, handler)
