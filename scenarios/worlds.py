"""Worlds in TOML: the nodes of a run and their sizes."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from mmurace.broker.plan import NODE_NAME, impossible_names
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondary import Part, by_node_order
from mmurace.nodes.world import World
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import NODES_MAX
from mmurace.scenarios.tables import Table, TomlTable, convert, convert_each, sub_table

FRAMES_MAX: Final = 1 << 20
Levels = Annotated[int, msgspec.Meta(ge=1, le=5)]
Entries = Annotated[int, msgspec.Meta(ge=1, le=512)]
Frames = Annotated[int, msgspec.Meta(ge=1, le=FRAMES_MAX)]
Few = Annotated[int, msgspec.Meta(ge=1, le=4096)]
OneIn = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class WorldTable(TomlTable, frozen=True):
    """A world without its kernel; what is left out is as in ``nodes.world.World``."""

    cpus: tuple[str, ...] = ("cpu0", "cpu1")
    mms: tuple[str, ...] = ("mm0",)
    levels: Levels = 2
    entries: Entries = 8
    frames: Frames = 32
    gather_batch: Few = 8
    tlb_entries: Few = 64
    evict_one_in: OneIn = 0


def world_from(value: Any, kernel: Kernel, where: str) -> World:
    """The world of a ``[world]`` table under ``kernel``.  Raises ``UserError``."""
    rows = dict(sub_table(value, where))
    parts = tuple(
        part
        for secondary in by_node_order()
        for part in convert_each(
            rows.pop(secondary.key, []), secondary.part, f"{where}.{secondary.key}"
        )
    )
    table = convert(rows, WorldTable, where)
    sizes = {name: getattr(table, name) for name in WorldTable.__struct_fields__}
    world = World(kernel=kernel, parts=parts, **sizes)
    _check(world, where)
    return world


def world_to(world: World) -> Table:
    """The ``[world]`` table, without the kernel."""
    table: Table = {name: _plain(getattr(world, name)) for name in WorldTable.__struct_fields__}
    for secondary in by_node_order():
        table[secondary.key] = [msgspec.to_builtins(part) for part in secondary.parts(world)]
    return table


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check(world: World, where: str) -> None:
    """Names are there and are unique; sizes make sense."""
    names = world.nodes()
    if len(set(names)) != len(names):
        raise UserError(where, "two nodes have one name", "a different name for each node")
    for name in sorted(set(names) & set(world.mms)):
        raise UserError(where, f"a node and an mm are called {name!r}", "a different name for each")
    for name in impossible_names(names):
        raise UserError(where, f"a node cannot be called {name!r}", NODE_NAME.pattern)
    if len(names) > NODES_MAX:
        raise UserError(where, f"has {len(names)} nodes", f"at most {NODES_MAX}")
    if not world.cpus or not world.mms:
        raise UserError(where, "has no cpu or no mm", "at least one of each")
    if world.entries & (world.entries - 1) or world.entries < 2:
        raise UserError(f"{where}.entries", f"is {world.entries}", "a power of two")
    if world.frames <= len(world.mms):
        problem = f"is {world.frames}, too few for the zero page and the tables of all mms"
        raise UserError(f"{where}.frames", problem, f"more than {len(world.mms)}")
    for secondary in by_node_order():
        for index, part in enumerate(secondary.parts(world)):
            _check_part(part, world, f"{where}.{secondary.key}[{index}]")
        if secondary.parts(world) and world.kernel.machine not in secondary.machines:
            raise UserError(
                f"{where}.{secondary.key}", f"are there on {world.kernel.machine}",
                f"arch = {' or '.join(secondary.machines)}",
            )  # fmt: skip


def _check_part(part: Part, world: World, where: str) -> None:
    """The mms and cpus that a row names exist, and the rest of it makes sense."""
    for keys, known in ((part.MMS, world.mms), (part.CPUS, world.cpus)):
        for key in keys:
            named = getattr(part, key)
            _known((named,) if isinstance(named, str) else named, known, f"{where}.{key}")
    for key, problem, expected in part.problems(world):
        raise UserError(f"{where}.{key}", problem, expected)


def _known(names: tuple[str, ...], among: tuple[str, ...], where: str) -> None:
    for name in names:
        if name not in among:
            raise UserError(where, f"unknown name {name!r}", f"one of {', '.join(among)}")
