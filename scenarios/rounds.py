"""The rounds of the ``mixed`` workload, so that somebody is beside every operation.

Left to themselves, agents that pick pages at random are hardly ever on the page that an operation
takes away while it does.  So all programs meet on one page again and again.  In a round one CPU
program *acts*, in turn, a few times:

    who acts                        everybody else
    ready: the page is there        something
    ---- all wait for that ----
    access the page                 access the page: translations are cached
    ---- all wait for all ----
    the operation of this round     access the page
    put back what it took           access the page
    access the page                 access the page
    the operation again             access the page
    ...                             ...
    something                       access the page
    access the page                 access the page

What happens beside what is for the broker to decide; the workload only lets it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Final

from mmurace.broker.programs import Rounds, Step
from mmurace.nodes.driver import draw
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as ops
from mmurace.scenarios.arena import FILE, HEAP_BASE, Arena

READY, WARM, ACT = range(3)
"""Positions in a round."""
ACTS: Final = 3
"""Times that the operation is done in a round."""
ACT_LENGTH: Final = 3
"""Each time: the operation, what puts the page back, an access to it."""
FREE: Final = 2
"""Operations of who acts that are from the mix, after that."""
LENGTH: Final = 40
"""Operations of a round: so many that all are still there when the one beside them comes to its
last flush.  What is left of its own is as short as can be."""
LAST_PAGES: Final = 2
"""A page of a round is one of the last of what is taken away: the entries of a shadow MMU go first,
so the longer the others take, the longer its entry of the page table outlives its shadow entry."""
BESIDE_ONE_IN: Final = 8
"""One in so many accesses beside an operation is somewhere else."""
WRITE_ONE_IN: Final = 24
"""One in so many accesses beside a copy on write wants one, too."""
PRIVATE_MOVED: Final = "MigratePages of a private page"
"""A page that only one secondary uses (``Arena.private``)."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round: who does what, and to which page."""

    arena: Arena
    number: int
    actor: int
    kind: str
    draw: int

    @property
    def page(self) -> int:
        """The page that everybody is on."""
        if self.kind == PRIVATE_MOVED:
            return self.arena.private[self.draw % len(self.arena.private)]
        address, length = self.span
        return address + length - (1 + self.draw % min(LAST_PAGES, self._pages)) * PAGE_SIZE

    @property
    def span(self) -> tuple[int, int]:
        """(address, length) of the slot, or the heap, that the operation is about."""
        if self.kind == "Brk":
            return HEAP_BASE, self.arena.options.heap * PAGE_SIZE
        return self.arena.span(self.actor)

    @property
    def _pages(self) -> int:
        return self.span[1] // PAGE_SIZE

    def beside(self, position: int, number: int) -> tuple[int, bool]:
        """(address, whether to write) of somebody else's access at ``position``; ``number``: its
        own draw.
        """
        word, page = (number >> 24) % 8 * 8, self.page
        away = (2 if self.kind == PRIVATE_MOVED else BESIDE_ONE_IN) if position > WARM else 0
        if position == READY or (away and (number >> 16) % away == 0):
            # Pages next to it, so that an operation on the slot has more than one to do.
            page = self.span[0] + (number >> 32) % self._pages * PAGE_SIZE
        if self.kind == "Touch":  # all but once in a while leave the copy to the actor
            return page + word, position > ACT + 3 and (number >> 40) % WRITE_ONE_IN == 0
        return page + word, position < ACT or number % 3 > 0

    # -- who acts -------------------------------------------------------------------------------

    def act(self, position: int) -> ops.Operation | None:
        """What the actor does at ``position``; None: anything."""
        if position == READY:
            return self._ready()
        if position == WARM:
            return self._warm()
        if position >= ACT + ACTS * ACT_LENGTH:
            free = position < ACT + ACTS * ACT_LENGTH + FREE
            return None if free else self._touch(write=False)
        last = position >= ACT + (ACTS - 1) * ACT_LENGTH
        acts = (self._act, self._restore if last else self._again, self._warm)
        return acts[(position - ACT) % ACT_LENGTH]()

    def _warm(self) -> ops.Operation:
        return self._touch(write=self.kind != "Touch")

    def _again(self) -> ops.Operation:
        return (None if self.kind == "Writeback" else self._restore()) or self._ready()

    def _touch(self, write: bool) -> ops.Operation:
        return ops.Touch(self.arena.mm, self.page, write, self.draw & 0xFFFF)

    def _map(self, file: str = "") -> ops.Operation:
        return ops.Mmap(self.arena.mm, *self.span, True, True, file, 0, bool(file))

    def _ready(self) -> ops.Operation:
        mm = self.arena.mm
        if self.kind == "Brk":
            return ops.Brk(mm, HEAP_BASE + self.arena.options.heap * PAGE_SIZE)
        if self.kind == "Writeback":
            return self._map(FILE)
        if self.kind == "Touch":
            return ops.MadviseDontneed(mm, *self.span)
        return self._touch(write=True)

    def _act(self) -> ops.Operation:
        mm, (address, length) = self.arena.mm, self.span
        to = self.arena.slot(self.actor + self.arena.options.cpus)
        acts: dict[str, ops.Operation] = {
            "Touch": self._touch(write=True),
            "Munmap": ops.Munmap(mm, address, length),
            "Mprotect": ops.Mprotect(mm, address, length, True, False),
            "MadviseDontneed": ops.MadviseDontneed(mm, address, length),
            "MadviseFree": ops.MadviseFree(mm, address, length),
            "Mmap": self._map(),
            "Mremap": ops.Mremap(mm, address, length, to, length),
            "Brk": ops.Brk(mm, HEAP_BASE),
            "MigratePages": ops.MigratePages(mm, self.page, PAGE_SIZE),
            PRIVATE_MOVED: ops.MigratePages(mm, self.page, PAGE_SIZE),
            "ClearRefs": ops.ClearRefs(mm),
            "Kswapd": ops.Kswapd(self.arena.options.slots * self.arena.options.pages),
            "Writeback": ops.Writeback(FILE),
        }
        return acts[self.kind]

    def _restore(self) -> ops.Operation | None:
        if self.kind in ("Munmap", "Mremap", "Writeback"):
            return self._map()
        if self.kind == "Mprotect":
            return ops.Mprotect(self.arena.mm, *self.span, True, True)
        return None


@dataclass(frozen=True, slots=True)
class Meetings:
    """All rounds of a run."""

    arena: Arena
    seed: int
    kinds: tuple[str, ...]
    """What is done, in turn."""
    processors: tuple[str, ...]
    devices: tuple[str, ...]
    """Programs that never act."""
    order: Rounds = field(init=False)

    def __post_init__(self) -> None:
        first = {f"cpu{n}": self.prelude(n) for n in range(self.arena.options.cpus)}
        first |= dict.fromkeys((*self.processors, *self.devices), 0)
        order = Rounds(first, dict.fromkeys(first, LENGTH), WARM + 1)
        object.__setattr__(self, "order", order)

    def prelude(self, number: int) -> int:
        """How many operations a CPU program does before the first round."""
        options = self.arena.options
        first = (1 + len(self.arena.private)) if number == 0 else 0
        return first + len(range(number, options.slots, options.cpus))

    def round(self, number: int) -> Round:
        """One of them."""
        actors = self.actors
        turn, actor = divmod(number, actors)
        kind = self.kinds[turn % len(self.kinds)]
        drawn = draw(self.seed, f"mixed/round/{number}")
        return Round(self.arena, number, 0 if kind == "Brk" else actor, kind, drawn)

    @property
    def actors(self) -> int:
        """CPU programs with a slot of their own."""
        cpus: int = self.arena.options.cpus
        return min(cpus, self.arena.options.slots)

    def after(self, program: str, round_: Round, position: int) -> tuple[str, ...]:
        """What an operation of a round comes after; nothing in one that not all come to end."""
        if round_.number >= self._whole_rounds():
            return ()
        if position == WARM:
            actor = f"cpu{round_.actor}"
            ready = self.order.operation(actor, round_.number, READY)
            return () if program == actor else (ready,)
        if position == ACT:
            return tuple(
                self.order.operation(other, round_.number, WARM)
                for other in self.order.first
                if other != program
            )
        return ()

    def _whole_rounds(self) -> float:
        operations = self.arena.options.operations
        return operations // LENGTH if operations else inf

    def step(self, program: str, round_: Round, position: int, operation: ops.Operation) -> Step:
        """The step of a program."""
        return Step(operation, self.after(program, round_, position))
