"""The oracle reads a run in stretches, not delivery by delivery.

Nodes with their broker and the oracle are two programs, and together they are larger than the
caches next to a processor's core.  Taking turns at every delivery they drive each other out;
a few hundred deliveries of one, then of the other, take an eighth less time.  What the oracle is
told, and in which order, is the same.
"""

from __future__ import annotations

from typing import Final

from mmurace.oracle.oracle import Oracle
from mmurace.protocol.envelope import Envelope, Handled

STRETCH: Final = 1024
"""Deliveries that wait to be read; some 300 kB."""


class Stretches:
    """Keeps deliveries and tells the oracle of many at a time; ``flush`` tells of the rest."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._kept: list[tuple[Envelope, Handled]] = []

    def observe(self, envelope: Envelope, handled: Handled) -> None:
        """An observer of a broker."""
        kept = self._kept
        kept.append((envelope, handled))
        if len(kept) == STRETCH:
            self.flush()

    def lost(self, node: str) -> None:
        """A node is gone: that is told in its place, after all deliveries before it."""
        self.flush()
        self._oracle.lost(node)

    def flush(self) -> None:
        """Tell the oracle of everything so far."""
        self._oracle.observe_all(self._kept)
        self._kept.clear()
