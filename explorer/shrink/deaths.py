"""Deaths in a case: each begins after a delivery that is named, as everything in a case is.

A number would mean another moment as soon as something unrelated is left out.  Where the named
delivery itself is left out, the death moves back to the last one before it that is kept.  The
node is gone as soon as it has done what it has to do, as in the simulator.

Only deaths that a run survives are in a case (``kills.death_of``).  With any other the run ends,
and so does the schedule: there is nothing to say about it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from mmurace.broker.kills import Note, death_of, tasks
from mmurace.broker.programs import Program
from mmurace.nodes.world import World
from mmurace.protocol.errors import UserError


@dataclass(frozen=True, slots=True)
class Death:
    """A node dies."""

    node: str
    after: str = ""
    """The delivery after which that begins, by name; empty: before any."""


def programs_of(deaths: Iterable[Death], world: World) -> tuple[Program, ...]:
    """What the kernel does about them."""
    found = {p.name: p for death in deaths for p in tasks(death.node, world, ())}
    return tuple(found.values())


def moved(deaths: Iterable[Death], order: Iterable[tuple[str, str]]) -> tuple[Death, ...]:
    """The deaths in another order; ``order``: old names, and new ones or empty for left out.

    One that the order does not name stays as it is.
    """
    places = {"": ""}
    last = ""
    for old, new in order:
        last = new or last
        places[old] = last
    return tuple(replace(d, after=places.get(d.after, d.after)) for d in deaths)


def moved_back(
    deaths: Iterable[Death], order: Iterable[str], kept: Collection[str]
) -> tuple[Death, ...]:
    """The deaths where of an order only some deliveries are kept."""
    return moved(deaths, ((name, name if name in kept else "") for name in order))


def recorded(
    begun: Iterable[tuple[int, str]],
    gone: Iterable[tuple[int, str]],
    order: Sequence[str],
    world: World,
) -> tuple[Death, ...]:
    """The deaths of a record: (number, node) of each beginning and end; ``order``: all deliveries.

    On processes a device that is to die still handles what it was given, and what comes of that
    is delivered: it is dead from its end on.  Any other death begins before the node is gone, and
    what the kernel does about it lies between.
    """
    ends = {node: number for number, node in gone}
    deaths = []
    for number, node in begun:
        dies = death_of(node, world)
        if dies is None:
            continue
        at = ends.get(node, number) if dies.at_once else number
        if at <= len(order):
            deaths.append(Death(node, order[at - 1] if at else ""))
    return tuple(deaths)


class NamedDeaths:
    """The deaths of a case while it is played.  A ``KillSource``."""

    def __init__(self, deaths: Iterable[Death], world: World) -> None:
        self._after: dict[str, list[str]] = {}
        for death in deaths:
            self._after.setdefault(death.after, []).append(death.node)
        self.world = world if self._after else None
        self.note: Note | None = None
        self.begun: dict[str, int] = {}
        """Nodes that have begun to die -> the delivery after which."""
        self._due = self._after.pop("", [])

    def delivered(self, name: str) -> None:
        """A message was delivered."""
        self._due += self._after.pop(name, ())

    def begin(self, number: int, begun: Collection[str]) -> Sequence[str]:  # noqa: ARG002 - see KillSource
        """Whose delivery was the last one."""
        due, self._due = self._due, []
        self.begun |= dict.fromkeys(due, number)
        return due

    def gone(self, number: int, ready: Sequence[str]) -> Sequence[str]:  # noqa: ARG002 - see KillSource
        """Whoever can be."""
        return ready

    def heal(self) -> None:
        """The case has everything."""


def check_deaths(deaths: Sequence[Death], order: Collection[str], world: World, where: str) -> None:
    """Whether a file's deaths can be.  Raises ``UserError``."""
    mortal = [node for node in world.nodes() if death_of(node, world)]
    seen: set[str] = set()
    for at, death in enumerate(deaths):
        here = f"{where}: death[{at}]"
        if death.node not in mortal:
            known = "cannot die" if death.node in world.nodes() else "is not in this run"
            raise UserError(f"{here}.node", f"{death.node!r} {known}", ", ".join(mortal) or "none")
        if death.node in seen:
            raise UserError(f"{here}.node", f"{death.node!r} dies twice", "each node once")
        if death.after and death.after not in order:
            raise UserError(f"{here}.after", f"{death.after!r} is not in the order", "a delivery")
        seen.add(death.node)
