"""A small program before it is written out: what is prepared, and who then does what at once.

    setup     one program maps, stores, forks, ...
    warm      each party fills its cache; after the setup
    race      each party does its few operations; after everybody is warm

As steps it is what anybody could write into a race's file: whoever ends a process, or a
part of the world, comes after all who need it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from mmurace.broker.programs import Program, Step
from mmurace.nodes.secondary import secondaries
from mmurace.nodes.world import World
from mmurace.protocol.messages.program import Execve, Exit, Fork, Operation
from mmurace.scenarios.ends import Steps, before, steps_by_name

Place = tuple[int, int]
"""(party, step of its program)."""


@dataclass(frozen=True, slots=True)
class Party:
    """A program of one node: the first party's begins with the setup."""

    name: str
    node: str
    warm: tuple[Operation, ...] = ()
    race: tuple[Operation, ...] = ()
    eager: bool = False
    """It does not wait until the others are warm."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A world and what goes on in it."""

    world: World
    setup: tuple[Operation, ...]
    parties: tuple[Party, ...]

    def programs(self) -> tuple[Program, ...]:
        """Step by step."""
        return _Writer(self).programs()

    def operations(self) -> Iterator[Operation]:
        """All of them."""
        yield from self.setup
        for party in self.parties:
            yield from (*party.warm, *party.race)

    def raced(self) -> Iterator[tuple[str, Operation]]:
        """(node, operation) of all that is done at once."""
        return ((party.node, op) for party in self.parties for op in party.race)


class _Writer:
    """Finds out what comes after what."""

    def __init__(self, draft: Draft) -> None:
        self.draft, self.world = draft, draft.world
        self.steps = [
            ((draft.setup if number == 0 else ()) + party.warm + party.race)
            for number, party in enumerate(draft.parties)
        ]
        self.after: dict[Place, list[Place]] = {}

    def programs(self) -> tuple[Program, ...]:
        self._phases()
        for place, operation in list(self._all()):
            self._forked(place, operation)
            self._ends(place, operation)
        return tuple(
            Program(party.name, party.node, self._written(number))
            for number, party in enumerate(self.draft.parties)
            if self.steps[number]
        )

    def _all(self) -> Iterator[tuple[Place, Operation]]:
        for number, steps in enumerate(self.steps):
            for at, operation in enumerate(steps):
                yield (number, at), operation

    def _written(self, number: int) -> tuple[Step, ...]:
        return tuple(
            Step(operation, tuple(dict.fromkeys(map(self._name, self._waits((number, at))))))
            for at, operation in enumerate(self.steps[number])
        )

    def _waits(self, place: Place) -> list[Place]:
        """What a step has to wait for; what its own program has done before is no news."""
        wanted = self.after.get(place, [])
        latest = {party: max(at for p, at in wanted if p == party) for party, _ in wanted}
        return [(party, at) for party, at in sorted(latest.items()) if party != place[0]]

    def _name(self, place: Place) -> str:
        return f"{self.draft.parties[place[0]].name}/{place[1]}"

    def _wait(self, place: Place, for_: Place) -> None:
        self.after.setdefault(place, []).append(for_)

    def _phases(self) -> None:
        setup = len(self.draft.setup)
        warm = {
            number: (number, len(party.warm) - 1 + (setup if number == 0 else 0))
            for number, party in enumerate(self.draft.parties)
            if party.warm
        }
        for number, party in enumerate(self.draft.parties):
            first = setup if number == 0 else 0
            if number and setup and self.steps[number]:
                self._wait((number, 0), (0, setup - 1))
            if party.race and not party.eager:
                for other in warm.values():
                    self._wait((number, first + len(party.warm)), other)

    def _forked(self, place: Place, operation: Operation) -> None:
        """A child does nothing before it is born."""
        if not isinstance(operation, Fork):
            return
        for number, steps in enumerate(self.steps):
            theirs = (at for at, op in enumerate(steps) if getattr(op, "mm", "") == operation.child)
            first = next(theirs, None)
            if number != place[0] and first is not None:
                self._wait((number, first), place)

    def _ends(self, place: Place, operation: Operation) -> None:
        """The last thread of a process exits it; the last reference to a part ends that."""
        for other, theirs in self._all():
            node = self.draft.parties[other[0]].node
            if other[0] != place[0] and ends(operation, node, theirs, self.world):
                self._wait(place, other)


def ends(operation: Operation, node: str, theirs: Operation, world: World) -> bool:
    """Whether an operation ends what another one, at ``node``, needs."""
    return _ends_process(operation, node, theirs, world) or any(
        part.ended_by(operation) and (part.needed_by(node, theirs) or part.let_go_by(theirs))
        for part in world.parts
    )


def _ends_process(operation: Operation, node: str, theirs: Operation, world: World) -> bool:
    """A process's own threads are there until it exits, and so are its guests."""
    if not isinstance(operation, (Exit, Execve)) or node not in world.processors():
        return False
    if operation.mm in (getattr(theirs, "mm", ""), getattr(theirs, "child", "")):
        return True
    part = world.part_of(node)
    mms = [getattr(part, key) for key in part.MMS] if part is not None else []
    return any(operation.mm in ((mm,) if isinstance(mm, str) else mm) for mm in mms)


def in_order(programs: Sequence[Program], world: World) -> bool:
    """Whether whoever ends something comes after all who need it, a child after its birth, and
    what a process does with a file of a driver one after the other."""
    steps = steps_by_name(programs)
    lives = all(
        _in_order(name, other, steps, world)
        for name, (_, step) in steps.items()
        if isinstance(step.operation, (Exit, Execve, Fork))
        or any(part.ended_by(step.operation) for part in world.parts)
        for other in steps
    )
    return lives and _files_in_order(steps)


def _files_in_order(steps: Steps) -> bool:
    """A file is open when the call that opens it has returned, and not before."""
    calls: dict[tuple[str, ...], list[str]] = {}
    for name, (_, step) in steps.items():
        for one in secondaries():
            if type(step.operation) in one.calls and hasattr(step.operation, "mm"):
                whose = (getattr(step.operation, key, "") for key in ("mm", *one.named_by))
                calls.setdefault((one.name, *whose), []).append(name)
    return all(
        a in before(b, steps) or b in before(a, steps)
        for of_one_file in calls.values()
        for a, b in combinations(of_one_file, 2)
    )


def _in_order(name: str, other: str, steps: Steps, world: World) -> bool:
    """The same of two operations; those of one program are."""
    operation, (node, step) = steps[name][1].operation, steps[other]
    if name.rpartition("/")[0] == other.rpartition("/")[0]:
        return True
    if isinstance(operation, Fork):
        child = getattr(step.operation, "mm", "") == operation.child
        return not child or name in before(other, steps)
    return not ends(operation, node, step.operation, world) or other in before(name, steps)
