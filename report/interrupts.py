"""Ctrl-C where there is no outcome to print."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Interrupted(Exception):  # noqa: N818 - reads as what happened
    """Ctrl-C, where there is no outcome to print."""


@contextmanager
def interrupts(directory: Path) -> Iterator[None]:
    """Ctrl-C in the simulator: say where the files are.  Raises ``Interrupted``."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"; what there is of the run is in {directory}") from None
