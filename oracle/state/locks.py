"""What deliveries say of locks and of sleeping, as the messages themselves declare it."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from mmurace.protocol.envelope import REPLY_MARK
from mmurace.protocol.messages.base import kinds


class LockKinds(NamedTuple):
    """Kinds of deliveries."""

    moved: dict[str, tuple[str, bool]]
    """A lock of that kind was taken (True) or given back: (lock, which of both)."""
    spins: frozenset[str]
    """Locks whose holders do not sleep."""
    sleeps: frozenset[str]
    """Requests that may sleep: for a lock, for memory, for a grace period."""
    spun: dict[str, tuple[str, bool]]
    """Of those in ``moved``, the ones of locks whose holders do not sleep."""
    in_context: frozenset[str]
    """Those of ``spun`` and ``sleeps``."""
    watched: frozenset[str]
    """Those of ``moved`` and ``sleeps``."""


def lock_kinds() -> LockKinds:
    """Those of all messages that there are by now."""
    return _lock_kinds(len(kinds()))


@cache
def _lock_kinds(_known: int) -> LockKinds:
    moved: dict[str, tuple[str, bool]] = {}
    spins: set[str] = set()
    sleeps: set[str] = set()
    for kind, message in kinds().items():
        taken, given = message.TAKES, message.GIVES_BACK
        if taken is not None:
            moved[kind + REPLY_MARK] = taken.name, True
            (spins if taken.spins else sleeps).add(kind)
        if given is not None:
            moved[kind] = given.name, False
        if message.MAY_SLEEP:
            sleeps.add(kind)
    spun = {kind: lock for kind, lock in moved.items() if lock[0] in spins}
    in_context, watched = frozenset({*spun, *sleeps}), frozenset({*moved, *sleeps})
    return LockKinds(moved, frozenset(spins), frozenset(sleeps), spun, in_context, watched)
