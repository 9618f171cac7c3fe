"""What small programs are drawn on: the mms, processors and pages of a world that is being made.

A secondary says with it what a row of it can look like, and what fields of its operations can be
where their kind does not tell (``Secondary.row``, ``Secondary.given``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mmurace.nodes.world import World
from mmurace.protocol.limits import PAGE_SIZE

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a program goes, and the chance that decides what is in it."""

    mms: tuple[str, ...]
    cpus: tuple[str, ...]
    start: int
    """The address of the first of the pages that everybody uses."""
    pages: int
    """How many there are."""
    quiet: int
    """A page that is only moved and reclaimed; its process does nothing else with it."""
    machine: str
    """Its architecture."""
    below: Callable[[int], int]
    """A number from 0 to below this one, by chance."""
    world: World | None = None
    """None: it is being made."""

    def one_in(self, count: int) -> bool:
        """True once in so many."""
        return self.below(count) == 0

    def one_of(self, things: Sequence[T]) -> T:
        """One of them."""
        return things[self.below(len(things))]

    @property
    def mm(self) -> str:
        """The mm whose pages they are."""
        return self.mms[0]

    def page(self, number: int) -> int:
        """The address of one of the pages."""
        return self.start + number * PAGE_SIZE
