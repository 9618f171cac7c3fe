"""What the oracle reports: a broken rule with everything needed to understand it."""

from __future__ import annotations

from typing import Any

import msgspec


class Event(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A place in the trace: what happened in delivery ``n`` of message ``id`` at ``node``."""

    what: str
    n: int
    node: str
    id: str

    def text(self) -> str:
        """For people."""
        return f"{self.what} at {self.node} in delivery {self.n} ({self.id})"


class Violation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One breach of ``rule`` (catalogue section 5).

    ``agent`` holds the translation of (``mm``, ``address``) to ``frame`` in ``cache``; rules
    that are not about a translation leave these empty (``address`` and ``frame`` -1).
    """

    rule: str
    agent: str
    detail: str
    cache: str = ""
    mm: str = ""
    address: int = -1
    frame: int = -1
    filled: Event | None = None
    """When the agent got the translation (a latched value: when it was written)."""
    read: Event | None = None
    """The load of the entry that it goes back to."""
    pte: str = ""
    """What that load saw."""
    changed: Event | None = None
    """The change that took it away."""
    change: str = ""
    """That change in words: old -> new."""
    owed: str = ""
    """The operation that owed the invalidation."""
    deadline: Event | None = None
    """By when it was owed."""
    racing: tuple[Event, ...] = ()
    """The two events whose order decides."""

    def text(self) -> str:
        """One line for people."""
        where = f" of {self.mm}:{self.address:#x}" if self.address >= 0 else ""
        cache = f" ({self.cache}{where})" if self.cache else where
        return f"{self.rule}: {self.agent}{cache}: {self.detail}"

    def identity(self) -> tuple[str, ...]:
        """What is the same in every linearisation of the trace; for sets and comparisons."""
        change = self.changed.id if self.changed else ""
        return (self.rule, self.agent, self.cache, self.mm, f"{self.address:#x}", change)

    def as_dict(self) -> dict[str, Any]:
        """Builtins for JSON."""
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built
