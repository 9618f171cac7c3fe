"""The signals that end a run, and how to let them wait.

They reach a launcher alone (``kill``), a whole process group (Ctrl-C, a terminal that closes,
``timeout``) or a child alone.  Only the launcher decides what they mean; children ignore them and
leave when they are told to, or when the launcher is gone.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

ENDING: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
"""Ctrl-C, a request to end, a terminal that closed."""

Mask = set[signal.Signals] | set[int]


def hold() -> Mask:
    """Let them wait, for this thread and what it starts; the mask as it was before.

    Raises what a signal's handler raises, if one came just before; then nothing is held.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    return before


def restore(mask: Mask) -> None:
    """Back to an earlier mask.  Raises what the handler of a signal raises that has waited."""
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def held() -> Iterator[None]:
    """They wait until the end of the block."""
    before = hold()
    try:
        yield
    finally:
        restore(before)


def ignore() -> None:
    """For a child: they are the launcher's business, also those that have come while it began."""
    for ending in ENDING:
        signal.signal(ending, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
