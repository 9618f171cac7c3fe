"""Who is beside the CPU programs of the ``mixed`` workload: nodes that secondaries let it ask.

What a node can be asked for, and what an access of it looks like, its secondary declares
(``Secondary.drawn``); so a plug-in's takes part as the built-in ones do.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from mmurace.nodes import secondary
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondary import Drawn, Part, Secondary
from mmurace.nodes.world import World
from mmurace.protocol.messages.program import Operation
from mmurace.scenarios.operations import op_name
from mmurace.scenarios.tables import Table

USUAL_WEIGHT: Final = 1
USUAL_NODES: Final = 1
"""Of each secondary of a plug-in."""
_KIND_SHIFT: Final = 48
"""Bits of a drawn number that nothing else is drawn from."""


@dataclass(frozen=True, slots=True)
class Agent:
    """A node, and what it can be asked for."""

    name: str
    row: Part
    accesses: tuple[tuple[int, type[Operation]], ...]
    """(weight, kind); a driver's function that makes one could not go to another process."""

    def draw(self, drawn: Drawn) -> Operation:
        """One of its accesses, by weight."""
        bounds = list(accumulate(weight for weight, _ in self.accesses))
        at = bisect_right(bounds, (drawn.number >> _KIND_SHIFT) % bounds[-1])
        return secondary.of(self.row).drawn[self.accesses[at][1]](self.row, drawn)


def agents(world: World, mix: Mapping[str, int]) -> tuple[list[Agent], list[Agent]]:
    """(devices, processors) of a world that have an access with a weight above 0."""
    found = {agent.name: agent for part in world.parts for agent in _agents_of(part, mix)}
    processors = [name for part in world.parts for name in part.processors() if name in found]
    devices = [name for name in world.nodes() if name in found and name not in processors]
    return [found[name] for name in devices], [found[name] for name in processors]


def _agents_of(part: Part, mix: Mapping[str, int]) -> list[Agent]:
    """In the order of the part's nodes."""
    of = secondary.of(part)
    weights = {kind: mix.get(op_name(kind), USUAL_WEIGHT) for kind in of.drawn}
    asked = {kind: of.accesses[kind](part) for kind, weight in weights.items() if weight}
    made = (
        (node, tuple((weights[kind], kind) for kind in asked if node in asked[kind]))
        for node in part.nodes()
    )
    return [Agent(node, part, accesses) for node, accesses in made if accesses]


def names_of_accesses() -> frozenset[str]:
    """What can have a weight, as ``mix`` names it."""
    return frozenset(op_name(kind) for one in secondary.secondaries() for kind in one.drawn)


def addable() -> dict[str, Secondary]:
    """Secondaries that a workload can make rows of, by their keys in world files."""
    return {one.key: one for one in secondary.secondaries() if one.made is not None}


def added_parts(
    nodes: Mapping[str, int], kernel: Kernel, cpus: tuple[str, ...]
) -> tuple[Part, ...]:
    """Rows of secondaries that the workload does not know: ``nic0``, ``nic1``, ...

    Each is given the first mm, and the last CPU for its faults, as the built-in devices are.
    """
    return tuple(
        one.made(f"{one.name}{n}", "mm0", cpus[-1])
        for key, one in addable().items()
        if one.made is not None and kernel.machine in one.machines
        for n in range(nodes.get(key, USUAL_NODES))
    )


def apart(table: Table, names: frozenset[str]) -> tuple[Table, Table]:
    """(the rest of a table, what it has under these names)."""
    own = {key: value for key, value in table.items() if key in names}
    return {key: value for key, value in table.items() if key not in names}, own
