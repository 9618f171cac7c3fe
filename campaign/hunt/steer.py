"""Where to look next: what few programs had so far, and what led to something new.

Two of the parties begin with the pair of operations, by what they do to entries, that had its turn
least often beside some secondary.  *Items* are what a draft has in it, known before it runs: pairs
of operations that race on one page, operations beside a kind of cache, or on pages that were
prepared in some way.  Of a few drafts the one with the rarest items is taken.  *Points* are what
its runs went through: windows that somebody was inside, coverage points, reasons of retries.  A
draft with a new point is kept, and later drafts are made from it by small changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final

from mmurace.campaign.hunt.crowd import Crowd
from mmurace.campaign.hunt.draft import Draft
from mmurace.campaign.hunt.groups import Turn, turns_of
from mmurace.campaign.hunt.mutate import mutated
from mmurace.campaign.hunt.programs import Drawer, Sketch, checked, is_legal
from mmurace.explorer.shrink.smaller import pages
from mmurace.nodes.driver import draw
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.world import World
from mmurace.protocol.messages.program import Operation

CANDIDATES: Final = 3
"""Drafts of which the one with the rarest items is taken."""
REDRAWS: Final = 50
"""Drafts that are no legal use, before that is our fault."""
CROWD_ONE_IN: Final = 10
"""Programs of which one is long, and takes as long to run as all the others."""
KEPT_OPERATIONS: Final = 24
"""A draft with more is not changed: something else would come of it each time."""
KEPT_MAX: Final = 400
"""Drafts that others are made from; the oldest go."""


@dataclass(slots=True)
class Steering:
    """What was drawn and what was seen.  The seed and what it is told determine what it draws."""

    kernel: Kernel
    seed: int
    items: Counter[str] = field(default_factory=Counter)
    """Item -> drafts that had it."""
    had: Counter[Turn] = field(default_factory=Counter)
    """Whose turn it was how often."""
    points: Counter[str] = field(default_factory=Counter)
    """Point -> programs that passed it."""
    kept: list[Sketch] = field(default_factory=list)
    """Drafts that passed a point as the first."""
    turns: dict[Turn, float] = field(init=False)
    """All that have their turns, with weights."""

    def __post_init__(self) -> None:
        self.turns = turns_of(self.kernel)

    def draw(self, index: int) -> Sketch:
        """The draft of program ``index``; to be asked in order.

        Raises ``UserError`` if a secondary does not say enough to be drawn.
        """
        seed = draw(self.seed, f"hunt/draft/{index}")
        small = Drawer(self.kernel, seed)
        drawer = Crowd(self.kernel, seed) if index % CROWD_ONE_IN == 1 else small
        turn = self._turn(drawer)
        best = self._rarest(drawer, turn) or self._rarest(small, turn)
        if best is None:
            best = self._candidate(small, turn)
            checked(best.draft)  # and says why it is none
        self.items.update(set(items(best.draft)))
        return best

    def _rarest(self, drawer: Drawer, turn: Turn) -> Sketch | None:
        """Of a few legal drafts; what is none has rare items for ever.  None: there was none."""
        for _ in range(REDRAWS):
            candidates = [self._candidate(drawer, turn) for _ in range(CANDIDATES)]
            legal = [sketch for sketch in candidates if is_legal(sketch.draft)]
            if legal:
                return max(legal, key=lambda sketch: self.rarity(sketch.draft))
        return None

    def _turn(self, drawer: Drawer) -> Turn:
        """One that was least often, for how many operations it stands for."""
        had = {turn: self.had[turn] / weight for turn, weight in self.turns.items()}
        least = min(had.values())
        turn = drawer.chance.choice([turn for turn, count in had.items() if count == least])
        self.had[turn] += 1
        (one, two), beside = turn
        return turn if drawer.chance.one_in(2) else ((two, one), beside)

    def _candidate(self, drawer: Drawer, turn: Turn) -> Sketch:
        if self.kept and not isinstance(drawer, Crowd) and drawer.chance.one_in(4):
            return mutated(drawer, drawer.chance.choice(self.kept))
        return drawer.sketch(turn)

    def rarity(self, draft: Draft) -> float:
        """How little was seen of it so far: 1, if nothing."""
        found = set(items(draft))
        return sum(1 / (1 + self.items[item]) for item in found) / (len(found) or 1)

    def learn(self, sketch: Sketch, points: Iterable[str]) -> None:
        """What a program went through."""
        passed = set(points)
        if passed - self.points.keys() and len(list(sketch.draft.raced())) <= KEPT_OPERATIONS:
            self.kept.append(sketch)
            del self.kept[:-KEPT_MAX]
        self.points.update(passed)


def items(draft: Draft) -> Iterator[str]:
    """What a draft has in it."""
    world = draft.world
    sides = [(party.node, party.race) for party in draft.parties]
    for (node, ours), (other, theirs) in combinations(sides, 2):
        for one in ours:
            for two in theirs:
                if meet(one, node, two, other, world):
                    first, second = sorted((type(one).__name__, type(two).__name__))
                    yield f"{first} beside {second}"
    caches = {cache for part in world.parts for cache in part.holders()}
    prepared = {type(op).__name__ for op in draft.setup} - {"Mmap", "Touch", "Brk"}
    file = next((op for op in draft.setup if getattr(op, "file", "")), None)
    pages_are = "private" if file is None else "shared" if getattr(file, "shared", 0) else "a file"
    for kind in {type(op).__name__ for _, op in draft.raced()}:
        yield f"{kind} of {pages_are}"
        yield from (f"{kind} beside {cache}" for cache in caches)
        yield from (f"{kind} after {what}" for what in prepared)


def meet(one: Operation, node: str, two: Operation, other: str, world: World) -> bool:
    """Whether two operations concern a page of both; what names none concerns all."""
    here, there = pages(one, node, world), pages(two, other, world)
    return not here or not there or bool(here & there)
