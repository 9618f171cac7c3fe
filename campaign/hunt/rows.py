"""Rows of secondaries in small worlds, and which secondaries a kernel has."""

from __future__ import annotations

from typing import Any

import msgspec

from mmurace.campaign.hunt.scene import MMS, QUIET, START
from mmurace.nodes.ground import Ground
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondary import Part, Secondary, by_node_order
from mmurace.nodes.world import World
from mmurace.protocol.errors import UserError
from mmurace.protocol.messages.program import Operation


def names_of_secondaries(kernel: Kernel) -> list[str]:
    """Those that a machine has, and that a kernel has a driver for."""
    return [
        one.name
        for one in by_node_order()
        if kernel.machine in one.machines and _is_driven(one, kernel)
    ]


def calls_of(one: Secondary, kernel: Kernel) -> list[type[Operation]]:
    """Operations of its driver that processors can be asked for, if they can of some row."""
    world, part = _sample(one, kernel)
    ground = _ground(kernel, world)
    return [kind for kind in one.calls if kind not in one.given or one.given[kind](ground, part)]


def _is_driven(one: Secondary, kernel: Kernel) -> bool:
    """Whether a world under this kernel can have a row of it."""
    world, part = _sample(one, kernel)
    return not list(part.problems(world))


def _sample(one: Secondary, kernel: Kernel) -> tuple[World, Part]:
    ground = _ground(kernel, None)
    part = row_of(one, ground, 0)
    return World(kernel=kernel, cpus=ground.cpus, mms=MMS, parts=(part,)), part


def _ground(kernel: Kernel, world: World | None) -> Ground:
    return Ground(MMS, ("cpu0", "cpu1"), START, 1, QUIET, kernel.machine, lambda _: 0, world)


def row_of(one: Secondary, ground: Ground, number: int) -> Part:
    """A row of a small world.  Raises ``UserError`` if nobody says what it looks like."""
    if one.row is None:
        return _plain_row(one, ground, number)
    drawn: Part = one.row(ground, number)
    return drawn


def _plain_row(one: Secondary, ground: Ground, number: int) -> Part:
    """A row by the kinds of its fields.  Raises ``UserError`` if they do not tell."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(one.part):
        if field.name == "name":
            values["name"] = f"{one.name}{number}"
        elif field.name in (*one.part.MMS, *one.part.CPUS):
            value = ground.mm if field.name in one.part.MMS else ground.cpus[-1]
            values[field.name] = value if field.type is str else (value,)
        elif field.type is bool:
            values[field.name] = ground.one_in(2)
        elif field.required:
            problem = f"does not say what its {field.name!r} can be"
            raise UserError(f"secondary {one.name}", problem, "row = ... in its declaration")
    return one.part(**values)
