"""Who is beside the programs of a workload: rows of secondaries, and nodes that can be asked.

Which rows there are, what a node can be asked for, and what an access of it looks like, its
secondary declares (``Secondary.beside``, ``.made``, ``.drawn``); so a plug-in's takes part as the
built-in ones do.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Final

import msgspec

from mmurace.nodes import secondary
from mmurace.nodes.beside import Beside, NodeCount, Problem, Site
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondary import Drawn, Part, Secondary, by_node_order
from mmurace.nodes.world import World
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.program import Operation
from mmurace.scenarios.operations import op_name
from mmurace.scenarios.tables import Table

USUAL_WEIGHT: Final = 1
USUAL_NODES: Final = 1
"""Of each secondary that only says how one of it is made."""
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


def private_pages(world: World) -> tuple[int, ...]:
    """Pages that secondaries of a world have for themselves, each once."""
    return tuple({page: 0 for part in world.parts if (page := private_page(part)) is not None})


def private_page(part: Part) -> int | None:
    """The page that a row has for itself, if any."""
    private = secondary.of(part).private
    return private.page(part) if private is not None else None


# ---- rows --------------------------------------------------------------------------------------


def options_of(one: Secondary) -> dict[str, Any]:
    """The options that a secondary declares: name -> type."""
    if one.beside is not None:
        return {field.name: field.type for field in msgspec.structs.fields(one.beside)}
    return {one.key: NodeCount} if one.made is not None else {}


def problems_beside(options: Mapping[str, Any], kernel: Kernel | None) -> Iterator[Problem]:
    """What cannot be of options by name; of what depends on the kernel nothing without one."""
    for one in by_node_order():
        if one.beside is not None:
            yield from _told(one.beside, options).problems(kernel)


def parts_beside(options: Mapping[str, Any], site: Site) -> tuple[Part, ...]:
    """The rows of all secondaries; what no option says is as usual."""
    rows: list[Part] = []
    for one in by_node_order():
        if site.kernel.machine in one.machines:
            rows += _rows(one, options, site)
        if one.private is not None:  # a gap follows, so that neighbours share no VMA
            site = replace(site, private=site.private + 2 * PAGE_SIZE)
    return tuple(rows)


def _rows(one: Secondary, options: Mapping[str, Any], site: Site) -> Iterator[Part]:
    if one.beside is not None:
        yield from _told(one.beside, options).rows(site)
    elif one.made is not None:
        for n in range(options.get(one.key, USUAL_NODES)):
            yield one.made(f"{one.name}{n}", site.mm, site.cpu)


def _told(kind: type[Beside], options: Mapping[str, Any]) -> Beside:
    return kind(**{name: options[name] for name in kind.__struct_fields__ if name in options})


def apart(table: Table, names: frozenset[str]) -> tuple[Table, Table]:
    """(the rest of a table, what it has under these names)."""
    own = {key: value for key, value in table.items() if key in names}
    return {key: value for key, value in table.items() if key not in names}, own
