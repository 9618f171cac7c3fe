"""What a small program is about: the address space, the pages that its parties meet on, chance.

quiet      one page that is only moved (a secondary may have asked for it)
main       one to eight pages of a leaf table's own, which everybody uses; or twelve of two
spare      where mappings are moved to
heap       if there is one
own        pages of whoever only takes frames
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from mmurace.nodes.ground import Ground
from mmurace.nodes.world import World

ENTRIES: Final = 8
QUIET, START, SPARE, HEAP, OWN = 0x8000, 0x10000, 0x20000, 0x30000, 0x38000
"""Each in leaf tables of its own, with ``ENTRIES`` of them."""
FILE: Final = "data"
MMS: Final = ("mm0", "mm1")


class Chance(random.Random):
    """A seeded source of draws."""

    def below(self, count: int) -> int:
        """A number from 0 to below ``count``."""
        return int(self.random() * count)

    def one_in(self, count: int) -> bool:
        """True once in so many."""
        return self.below(count) == 0


@dataclass(frozen=True, slots=True)
class Scene:
    """What a draft is about."""

    ground: Ground
    world: World
    file: str
    """What the main pages map; empty: they are anonymous."""
    shared: bool
    heap: bool
    hot: tuple[int, ...]
    """The pages of main that the parties meet on."""
