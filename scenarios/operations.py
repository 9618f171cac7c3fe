"""Operations in TOML: ``{ op = "munmap", address = 0x10000, pages = 4, after = ["cpu1/2"] }``.

The tables are derived from the messages of ``protocol.messages.program``: ``op`` is the class
name in small letters, ``length`` becomes ``pages``, ``read`` and ``write`` of a mapping become
``prot`` (``none``, ``r`` or ``rw``), and ``mm`` may be left out in a world with one.
``repeat = 8`` stands for eight steps, numbered one by one, of which the first has the ``after``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Final, Literal

import msgspec

from mmurace.broker.programs import Program, Step
from mmurace.nodes.secondary import Number, secondaries
from mmurace.nodes.world import World
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.program import Operation, operation_kinds
from mmurace.protocol.names import perhaps
from mmurace.scenarios.ends import check_begins, check_ends
from mmurace.scenarios.tables import (
    Table,
    TomlTable,
    array,
    convert,
    convert_each,
    deeper,
    sub_table,
)

Prot = Literal["none", "r", "rw"]
Pages = Annotated[int, msgspec.Meta(ge=1)]
Times = Annotated[int, msgspec.Meta(ge=1, le=10_000)]

_RIGHTS: Final[dict[str, tuple[bool, bool]]] = {
    "none": (False, False), "r": (True, False), "rw": (True, True),
}  # fmt: skip
_PROT: Final = {rights: name for name, rights in _RIGHTS.items()}
_NAME: Final = re.compile(r"^[A-Za-z0-9_-]+$")
_EVERYWHERE: Final[list[Any]] = [
    ("op", str), ("mm", str, ""), ("after", tuple[str, ...], ()), ("repeat", Times, 1),
]  # fmt: skip
"""Keys that every step can have, with types and what they are if they are left out."""


class ProgramTable(TomlTable, frozen=True):
    """``[[program]]``: what one node is asked to do, in order."""

    node: str
    steps: list[Any]
    name: str = ""
    """Empty: the node's name."""


def op_name(kind: type[Operation]) -> str:
    """``MadviseDontneed`` is ``madvise_dontneed`` in a file."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def _has_prot(kind: type[Operation]) -> bool:
    return "read" in kind.__struct_fields__


def _table_kind(kind: type[Operation]) -> type[Any]:
    """The struct of a table for ``kind``."""
    fields = list(_EVERYWHERE)
    for field in msgspec.structs.fields(kind):
        name = field.name
        if name == "length":
            fields.append(("pages", Pages))
        elif name == "new_length":
            fields.append(("new_pages", Pages))
        elif name in ("read", "write") and _has_prot(kind):
            fields += [("prot", Prot, "rw")] if name == "read" else []
        elif name == "write" and field.required:
            fields.append((name, bool, False))
        elif name != "mm":
            known = Number if field.type is int else field.type
            fields.append((name, known) if field.required else (name, known, field.default))
    return msgspec.defstruct(
        op_name(kind), fields, frozen=True, forbid_unknown_fields=True, kw_only=True
    )


@cache
def _named(kinds: tuple[type[Operation], ...]) -> Mapping[str, type[Operation]]:
    return {op_name(kind): kind for kind in kinds}


def operations() -> Mapping[str, type[Operation]]:
    """Every operation that a program can have by now, by its name in a file."""
    return _named(tuple(operation_kinds()))


@cache
def table_of(kind: type[Operation]) -> type[Any]:
    """The struct of a table for an operation."""
    return _table_kind(kind)


def operation_keys(name: str) -> list[tuple[str, bool, Any]]:
    """The keys that an operation has for itself: name, whether it must be given, else its value."""
    own = msgspec.structs.fields(table_of(operations()[name]))[len(_EVERYWHERE) :]
    return [(f.name, f.required, None if f.required else f.default) for f in own]


def steps_from(value: Any, mm: str, where: str) -> list[Step]:
    """The steps of one table.  Raises ``UserError``; ``mm`` is meant where none is named."""
    table = sub_table(value, where)
    name, known = table.get("op"), operations()
    if name is None:
        raise UserError(where, "missing key 'op'", f"one of {', '.join(known)}")
    if not isinstance(name, str) or name not in known:
        every = f"one of {', '.join(known)}"
        near = perhaps(name, known, every) if isinstance(name, str) else every
        raise UserError(deeper(where, "op"), f"unknown op {name!r}", near)
    checked = convert(table, table_of(known[name]), where)
    operation = _operation(known[name], checked, mm, where)
    return [Step(operation, checked.after), *[Step(operation)] * (checked.repeat - 1)]


def _operation(kind: type[Operation], checked: Any, mm: str, where: str) -> Operation:
    values: dict[str, Any] = {}
    for name in kind.__struct_fields__:
        if name == "mm":
            values[name] = checked.mm or mm
        elif name == "length":
            values[name] = checked.pages * PAGE_SIZE
        elif name == "new_length":
            values[name] = checked.new_pages * PAGE_SIZE
        elif name in ("read", "write") and _has_prot(kind):
            values[name] = _RIGHTS[checked.prot][name == "write"]
        else:
            values[name] = getattr(checked, name)
    if "length" in values and values["address"] % PAGE_SIZE:
        raise UserError(deeper(where, "address"), "is not page aligned", "a multiple of 0x1000")
    return kind(**values)


def step_to(step: Step) -> Table:
    """A step as a table that ``steps_from`` reads back."""
    operation = step.operation
    kind = type(operation)
    table: Table = {"op": op_name(kind)}
    for name in kind.__struct_fields__:
        value = getattr(operation, name)
        if name == "length":
            table["pages"] = value // PAGE_SIZE
        elif name == "new_length":
            table["new_pages"] = value // PAGE_SIZE
        elif name in ("read", "write") and _has_prot(kind):
            table["prot"] = _PROT[getattr(operation, "read"), getattr(operation, "write")]  # noqa: B009
        else:
            table[name] = value
    return table | ({"after": list(step.after)} if step.after else {})


def programs_from(value: Any, world: World, where: str) -> tuple[Program, ...]:
    """``[[program]]`` tables as programs, checked against the world.  Raises ``UserError``."""
    programs = []
    places: dict[str, str] = {}
    for index, table in enumerate(convert_each(value, ProgramTable, where)):
        place = f"{where}[{index}]"
        if table.node not in world.nodes():
            raise UserError(
                f"{place}.node",
                f"unknown node {table.node!r}",
                f"one of {', '.join(world.nodes())}",
            )
        if not _NAME.match(table.name or table.node):
            raise UserError(f"{place}.name", f"is {table.name!r}", "letters, digits, - and _")
        steps: list[Step] = []
        for number, item in enumerate(array(table.steps, f"{place}.steps")):
            here = f"{place}.steps[{number}]"
            found = steps_from(item, world.mms[0], here)
            _check_step(found[0], table.node, world, here)
            first = len(steps)
            steps += found
            for at in range(first, len(steps)):
                places[f"{table.name or table.node}/{at}"] = here
        programs.append(Program(table.name or table.node, table.node, tuple(steps)))
    _check_order(programs, where)
    check_begins(programs, world, places)
    check_ends(programs, world, places)
    return tuple(programs)


def programs_to(programs: Iterable[Program]) -> list[Table]:
    """Programs with finitely many steps as ``[[program]]`` tables."""
    return [
        {"name": p.name, "node": p.node, "steps": [step_to(step) for step in p.steps]}
        for p in programs
    ]


def _check_step(step: Step, node: str, world: World, where: str) -> None:
    """The operation suits the node, and its mm and address exist."""
    operation = step.operation
    fits = node in _places(type(operation), world)
    name = op_name(type(operation))
    if not fits:
        raise UserError(f"{where}.op", f"{node} cannot do {name!r}", "an operation of that node")
    for key in ("mm", "child"):
        mm = getattr(operation, key, world.mms[0])
        if mm not in world.mms:
            known = ", ".join(world.mms)
            raise UserError(f"{where}.{key}", f"unknown mm {mm!r}", f"one of {known}")
    if getattr(operation, "child", "") == getattr(operation, "mm", None):
        raise UserError(
            f"{where}.child", "is the parent itself", "an mm in which nothing is mapped"
        )
    for secondary in secondaries():
        for key, names in secondary.named_by.items():
            named = getattr(operation, key, None)
            fit = (name for part in secondary.parts(world) for name in names(part))
            known = ", ".join(fit) or "none"
            if named is not None and named not in known.split(", "):
                problem = f"unknown name {named!r} in {secondary.key}"
                raise UserError(f"{where}.{key}", problem, f"one of {known}")
    for part in world.parts:
        if misused := part.misused_by(node, operation):
            raise UserError(f"{where}.{misused[0]}", *misused[1:])
    end = getattr(operation, "address", 0) + getattr(operation, "length", 0)
    if end > world.address_end() and not operation.REFUSES_RANGES:
        raise UserError(
            f"{where}.address", f"ends at {end:#x}", f"at most {world.address_end():#x}"
        )


def _places(kind: type[Operation], world: World) -> tuple[str, ...]:
    """Nodes that can be asked for an operation."""
    for secondary in secondaries():
        if kind in secondary.accesses:
            nodes = secondary.accesses[kind]
            return tuple(node for part in secondary.parts(world) for node in nodes(part))
    return world.cpus


def _check_order(programs: list[Program], where: str) -> None:
    """Everything that a step comes after exists, and there is an order that satisfies all."""
    steps = {p.name: tuple(p.steps) for p in programs}
    if len(steps) != len(programs):
        raise UserError(where, "two programs have one name", "a different name for each")
    known = {f"{name}/{index}" for name, own in steps.items() for index in range(len(own))}
    for number, program in enumerate(programs):
        for index, step in enumerate(steps[program.name]):
            for wanted in step.after:
                if wanted not in known:
                    place = f"{where}[{number}].steps[{index}].after"
                    raise UserError(place, f"unknown operation {wanted!r}", "program/index")
    stuck = _never_started(steps)
    if stuck:
        raise UserError(where, f"{', '.join(stuck)} wait for each other", "an order without cycles")


def _never_started(steps: dict[str, tuple[Step, ...]]) -> list[str]:
    """The next operation of every program that cannot run to its end."""
    done: set[str] = set()
    position = dict.fromkeys(steps, 0)
    moved = True
    while moved:
        moved = False
        for name, own in steps.items():
            while position[name] < len(own) and done.issuperset(own[position[name]].after):
                done.add(f"{name}/{position[name]}")
                position[name] += 1
                moved = True
    return [f"{name}/{at}" for name, at in position.items() if at < len(steps[name])]
