"""Small changes of a draft: an operation more, less, another one, another size of the world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec

from mmurace.campaign.hunt.draft import Draft, Party
from mmurace.campaign.hunt.programs import RACE_MAX, Drawer, Sketch
from mmurace.campaign.hunt.scene import Scene
from mmurace.nodes.secondary import of
from mmurace.protocol.messages.program import Operation

CHANGES_MAX = 3


def mutated(drawer: Drawer, sketch: Sketch) -> Sketch:
    """The draft with one to three small changes; whether it is legal, ``checked`` says."""
    scene = replace(sketch.scene, ground=replace(sketch.scene.ground, below=drawer.chance.below))
    draft = sketch.draft
    for _ in range(1 + drawer.chance.below(CHANGES_MAX)):
        draft = drawer.chance.choice(WAYS)(drawer, scene, draft)
    return Sketch(replace(scene, world=draft.world), draft)


def _with(draft: Draft, number: int, race: tuple[Operation, ...]) -> Draft:
    parties = list(draft.parties)
    parties[number] = replace(parties[number], race=race)
    return replace(draft, parties=tuple(parties))


def _fresh(drawer: Drawer, scene: Scene, draft: Draft, party: Party) -> Operation | None:
    """Another operation that the party's node can be asked for."""
    part = draft.world.part_of(party.node)
    if part is None:
        return drawer.on_cpu(scene, draft.setup)
    fitting = [kind for kind, nodes in of(part).accesses.items() if party.node in nodes(part)]
    return drawer.on_node(scene, part, fitting)


def _another(drawer: Drawer, scene: Scene, draft: Draft) -> Draft:
    """One more, or another in the place of one."""
    number = drawer.chance.below(len(draft.parties))
    party = draft.parties[number]
    made = _fresh(drawer, scene, draft, party)
    if made is None:
        return draft
    at = drawer.chance.below(len(party.race) + 1)
    over = drawer.chance.one_in(2) or len(party.race) >= RACE_MAX
    return _with(draft, number, (*party.race[:at], made, *party.race[at + over :]))


def _one_less(drawer: Drawer, _: Scene, draft: Draft) -> Draft:
    number = drawer.chance.below(len(draft.parties))
    race = draft.parties[number].race
    at = drawer.chance.below(len(race) or 1)
    return _with(draft, number, (*race[:at], *race[at + 1 :]))


def _again(drawer: Drawer, _: Scene, draft: Draft) -> Draft:
    """The same operation once more."""
    number = drawer.chance.below(len(draft.parties))
    race = draft.parties[number].race
    if not race or len(race) >= RACE_MAX:
        return draft
    at = drawer.chance.below(len(race))
    return _with(draft, number, (*race[: at + 1], *race[at:]))


def _moved(drawer: Drawer, _: Scene, draft: Draft) -> Draft:
    """Somebody does an operation of another processor's."""
    cpus = [n for n, party in enumerate(draft.parties) if party.node in draft.world.cpus]
    one, other = drawer.chance.choice(cpus), drawer.chance.choice(cpus)
    race = draft.parties[one].race
    if one == other or not race:
        return draft
    at = drawer.chance.below(len(race))
    moved = _with(draft, one, (*race[:at], *race[at + 1 :]))
    return _with(moved, other, (*moved.parties[other].race, race[at]))


def _eagerness(drawer: Drawer, _: Scene, draft: Draft) -> Draft:
    number = drawer.chance.below(len(draft.parties))
    parties = list(draft.parties)
    parties[number] = replace(parties[number], eager=not parties[number].eager)
    return replace(draft, parties=tuple(parties))


def _batch(drawer: Drawer, _: Scene, draft: Draft) -> Draft:
    """Another size of the gather."""
    batch = drawer.chance.choice((1, 2, 8))
    world = msgspec.structs.replace(draft.world, gather_batch=batch)
    return replace(draft, world=world)


WAYS: tuple[Callable[[Drawer, Scene, Draft], Draft], ...] = (
    _another, _another, _another, _one_less, _again, _moved, _eagerness, _batch,
)  # fmt: skip
