"""What is shown while a run goes on: one living line on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final

from rich.console import Console
from rich.status import Status

from mmurace.protocol.signals import held
from mmurace.report import formats

Line = Callable[[Mapping[str, Any]], str]
PLAIN_SECONDS: Final = 5.0
"""Between two plain lines."""


class Progress:
    """Give it to whoever runs as ``progress``; use as a context manager."""

    def __init__(self, console: Console, line: Line | None = None) -> None:
        """``line`` makes the words of a state; ``progress_line`` if it is not given."""
        self._console = console
        self._line = line or progress_line
        self._status: Status | None = None
        self._said = 0.0

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._status = self._console.status("starting", spinner="line")
            with held():  # its thread must not take the signals that end a run
                self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, state: Mapping[str, Any]) -> None:
        """Show where the run is."""
        if self._status is not None:
            self._status.update(self._line(state))
            return
        now = float(state.get("seconds", 0.0))
        if now - self._said >= PLAIN_SECONDS:
            self._said = now
            self._console.print(self._line(state), highlight=False, markup=False)


def progress_line(state: Mapping[str, Any]) -> str:
    """``12.3 s: 45,210 deliveries, 1,203 operations, 0 violations``."""
    parts = [
        formats.many(int(state[key]), key[:-1], key)
        for key in ("deliveries", "operations", "violations")
        if key in state
    ]
    return f"{formats.seconds(float(state.get('seconds', 0.0)))}: {', '.join(parts)}"
