"""Smaller cases: fewer operations, fewer nodes, shorter ranges; everything keeps its meaning.

A program counts its operations, so taking one out renames those behind it; order, choices and
faults follow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from mmurace.broker.programs import Program, Step
from mmurace.explorer.shrink.case import Case, operation_in
from mmurace.explorer.shrink.deaths import moved, moved_back
from mmurace.nodes.secondary import Part, secondaries
from mmurace.nodes.world import World
from mmurace.oracle.violation import Violation
from mmurace.protocol.envelope import operation_of
from mmurace.protocol.limits import PAGE_SHIFT, PAGE_SIZE
from mmurace.protocol.messages.program import Brk, Operation
from mmurace.scenarios.workloads import Script

LEVELS_MIN = 2
"""A page table has leaves, and something that leads to them."""
ADDRESSES = ("address", "new_address")
"""Fields of operations that hold host addresses."""
Pages = set[tuple[str, int]]
"""(mm, page number) pairs."""


def with_programs(case: Case, programs: Iterable[Program]) -> Case:
    """The case with other programs."""
    kept = tuple(p for p in programs if tuple(p.steps))
    return replace(case, spec=replace(case.spec, workload=Script(kept)))


def with_world(case: Case, world: World) -> Case:
    """The case in another world."""
    return replace(case, spec=replace(case.spec, world=world))


def with_order(case: Case, order: tuple[str, ...]) -> Case:
    """The case with only some deliveries of its order; deaths after others move back."""
    return replace(case, order=order, deaths=moved_back(case.deaths, case.order, set(order)))


# ---- operations --------------------------------------------------------------------------------


def keep_operations(case: Case, keep: Collection[str]) -> Case:
    """Only these operations (``program/index``), renamed; and what is done about deaths."""
    new_names = {op: op for p in case.aftermath for op in _operations(p)}
    for program in case.programs:
        kept = [at for at, _ in enumerate(program.steps) if f"{program.name}/{at}" in keep]
        new_names |= {f"{program.name}/{at}": f"{program.name}/{i}" for i, at in enumerate(kept)}
    programs = [replace(p, steps=_kept_steps(p, new_names)) for p in case.programs]
    cut = with_programs(case, programs)
    names = [(name, _renamed(name, new_names)) for name in case.order]
    return replace(
        cut,
        order=tuple(new for _, new in names if new),
        deaths=moved(case.deaths, names),
        choices={n: w for name, w in case.choices.items() if (n := _renamed(name, new_names))},
        faults={
            (n, nth): kind
            for (name, nth), kind in case.faults.items()
            if (n := _renamed(name, new_names))
        },
    )


def _operations(program: Program) -> list[str]:
    return [f"{program.name}/{at}" for at, _ in enumerate(program.steps)]


def _kept_steps(program: Program, new_names: Mapping[str, str]) -> tuple[Step, ...]:
    return tuple(
        Step(step.operation, tuple(new_names[a] for a in step.after if a in new_names))
        for at, step in enumerate(program.steps)
        if f"{program.name}/{at}" in new_names
    )


def _renamed(name: str, new_names: Mapping[str, str]) -> str:
    """The name under its operation's new name; empty if that is gone.

    Names and identities of choices both begin with the operation.
    """
    old = operation_in(name)
    program, _, rest = old.partition("/")
    index, slash, tail = rest.partition("/")  # a choice of the operation itself
    new = new_names.get(f"{program}/{index}", "")
    return new and new + slash + tail + name[len(old) :]


def events_operations(violation: Violation) -> set[str]:
    """The operations of every event that a violation names."""
    named = (violation.read, violation.filled, violation.changed, violation.deadline)
    return {operation_of(e.id) for e in (*named, *violation.racing) if e is not None}


def related(case: Case, violation: Violation, rounds: int) -> set[str]:
    """A guess at what a violation needs: its own operations and all that share their pages.

    Each further round adds what shares pages with those found so far.
    """
    world = case.spec.world
    steps = {
        f"{p.name}/{at}": (p, step.operation)
        for p in case.programs
        for at, step in enumerate(p.steps)
    }
    pages_of = {name: pages(operation, p.node, world) for name, (p, operation) in steps.items()}
    chosen = events_operations(violation) & set(steps)
    for _ in range(rounds):
        wanted: Pages = set().union(*(pages_of[name] for name in sorted(chosen)))
        chosen |= {
            name
            for name, (_, operation) in steps.items()
            if isinstance(operation, Brk) or pages_of[name] & wanted
        }
    return chosen


def pages(operation: Operation, node: str, world: World) -> Pages:
    """The pages of an mm that an operation names; addresses of a node's own are looked up."""
    start = getattr(operation, "address", -1)
    if start < 0:
        own = operation.OWN_ADDRESS
        return _own_pages(getattr(operation, own) if own else 0, node, world)
    end = min(start + max(getattr(operation, "length", 1), 1), world.address_end())
    mm = getattr(operation, "mm", "")
    return {(mm, page) for page in range(start >> PAGE_SHIFT, (end - 1 >> PAGE_SHIFT) + 1)}


def _own_pages(address: int, node: str, world: World) -> Pages:
    part = world.part_of(node)
    found = part.host_page(address) if part is not None else None
    return {(found[0], found[1] >> PAGE_SHIFT)} if found is not None else set()


def shorter_ranges(case: Case) -> Iterator[Case]:
    """The case with one operation on half of its range, in every way."""
    for which, program in enumerate(case.programs):
        steps = tuple(program.steps)
        for at, step in enumerate(steps):
            for operation in halves(step.operation):
                new = (*steps[:at], Step(operation, step.after), *steps[at + 1 :])
                programs = list(case.programs)
                programs[which] = replace(program, steps=new)
                yield with_programs(case, programs)


def halves(operation: Any) -> list[Operation]:
    """The operation on either half of its range, in whole pages; none if it has one page."""
    length = getattr(operation, "length", 0)
    first = (length // PAGE_SIZE + 1) // 2 * PAGE_SIZE
    if length <= PAGE_SIZE:
        return []
    change = msgspec.structs.replace
    return [
        change(operation, length=first),
        change(operation, address=operation.address + first, length=length - first),
    ]


# ---- nodes -------------------------------------------------------------------------------------


def smaller_worlds(case: Case) -> Iterator[Case]:
    """The case without one part of its world that no program needs, in every way."""
    world, used = case.spec.world, {program.node for program in case.programs}
    used |= {death.node for death in case.deaths}
    for name in {name for one in secondaries() for name in one.named_by}:
        used |= {getattr(s.operation, name, "") for p in case.programs for s in p.steps}
    for smaller in (
        *_smaller_parts(world, used),
        *_fewer_cpus(world, used),
    ):
        yield with_world(case, smaller)
    yield from _fewer_levels(case)


def _fewer_levels(case: Case) -> Iterator[Case]:
    """With fewer levels of page tables, all addresses as far down as leaf tables allow."""
    low, end = _addresses(case)
    base = low >> case.spec.world.shift(1) << case.spec.world.shift(1)
    for levels in range(LEVELS_MIN, case.spec.world.levels):
        world = msgspec.structs.replace(case.spec.world, levels=levels)
        if end - base <= world.address_end():
            yield _moved(with_world(case, world), base)


def _addresses(case: Case) -> tuple[int, int]:
    """The lowest and the end of all host addresses that operations and secondaries name."""
    operations = [step.operation for program in case.programs for step in program.steps]
    named = [(o, field) for o in operations for field in ADDRESSES if hasattr(o, field)]
    ranges = [(getattr(o, field), getattr(o, "length", 1)) for o, field in named]
    own = (range_ for part in case.spec.world.parts for range_ in part.ranges())
    ranges += [(host, size) for _, _, host, size in own]
    low = min((start for start, _ in ranges), default=0)
    return low, max((start + max(length, 1) for start, length in ranges), default=1)


def _moved(case: Case, down: int) -> Case:
    """The case with every host address so much lower."""
    change = msgspec.structs.replace

    def moved(operation: Operation) -> Operation:
        there = {field for field in ADDRESSES if hasattr(operation, field)}
        return change(operation, **{field: getattr(operation, field) - down for field in there})

    world = case.spec.world
    programs = [
        replace(p, steps=tuple(Step(moved(s.operation), s.after) for s in p.steps))
        for p in case.programs
    ]
    there = change(world, parts=tuple(part.moved(down) for part in world.parts))
    return with_programs(with_world(case, there), programs)


def _smaller_parts(world: World, used: Collection[str]) -> Iterator[World]:
    """With a secondary, or a node of one, less."""
    for secondary in secondaries():
        for part in secondary.parts(world):
            for left in part.smaller(used):
                others = (left if other is part else other for other in world.parts)
                parts = tuple(other for other in others if other is not None)
                yield msgspec.structs.replace(world, parts=parts)


def _fewer_cpus(world: World, used: Collection[str]) -> Iterator[World]:
    for cpu in world.cpus:
        others = tuple(other for other in world.cpus if other != cpu)
        if cpu not in used and others:
            parts = tuple(_served_by(part, cpu, others[0]) for part in world.parts)
            yield msgspec.structs.replace(world, cpus=others, parts=parts)


def _served_by(part: Part, old: str, new: str) -> Part:
    """The secondary with another processor in the place of one."""
    changed = {key: new for key in part.CPUS if getattr(part, key) == old}
    return msgspec.structs.replace(part, **changed) if changed else part
