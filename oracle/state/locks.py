"""What deliveries say of locks and of sleeping, as the messages themselves declare it."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from mmurace.protocol.codec import message_kinds
from mmurace.protocol.envelope import REPLY_MARK


class LockKinds(NamedTuple):
    """Kinds of deliveries."""

    moved: dict[str, tuple[str, bool]]
    """A lock of that kind was taken (True) or given back: (lock, which of both)."""
    spins: frozenset[str]
    """Locks whose holders do not sleep."""
    sleeps: frozenset[str]
    """Requests that may sleep: for a lock, for memory, for a grace period."""


@cache
def lock_kinds() -> LockKinds:
    """Those of all messages; looked up once, when all that declare some have been imported."""
    moved: dict[str, tuple[str, bool]] = {}
    spins: set[str] = set()
    sleeps: set[str] = set()
    for kind, message in message_kinds().items():
        taken, given = message.TAKES, message.GIVES_BACK
        if taken is not None:
            moved[kind + REPLY_MARK] = taken.name, True
            (spins if taken.spins else sleeps).add(kind)
        if given is not None:
            moved[kind] = given.name, False
        if message.MAY_SLEEP:
            sleeps.add(kind)
    return LockKinds(moved, frozenset(spins), frozenset(sleeps))
