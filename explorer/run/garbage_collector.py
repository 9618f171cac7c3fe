"""The garbage collector while many deliveries run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

YOUNG: Final = 100_000
"""Objects that are made, less those that are freed, between two collections of a search."""


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """No collection of garbage by itself: it would look at the same live objects over and over."""
    was_on = gc.isenabled()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


@contextmanager
def collector_of_the_young() -> Iterator[None]:
    """Garbage is looked for only among what was made lately.

    A search keeps every state that it has seen: a full collection looks at millions of objects that
    are in no cycle, and nodes that it has run once are the only ones that are.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(YOUNG, 1 << 30)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
