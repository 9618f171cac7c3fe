"""Smaller cases: fewer operations, fewer nodes, shorter ranges; everything keeps its meaning.

A program counts its operations, so taking one out renames those behind it; order, choices and
faults follow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from broker.programs import Program, Step
from explorer.case import Case, operation_in
from nodes.world import Unit, Vm, World
from oracle.violation import Violation
from protocol.envelope import operation_of
from protocol.limits import PAGE_SHIFT, PAGE_SIZE
from protocol.messages.program import Brk, Operation
from scenarios.workloads import Script

Pages = set[tuple[str, int]]
"""(mm, page number) pairs."""


def with_programs(case: Case, programs: Iterable[Program]) -> Case:
    """The case with other programs."""
    kept = tuple(p for p in programs if tuple(p.steps))
    return replace(case, spec=replace(case.spec, workload=Script(kept)))


def with_world(case: Case, world: World) -> Case:
    """The case in another world."""
    return replace(case, spec=replace(case.spec, world=world))


# ---- operations --------------------------------------------------------------------------------


def keep_operations(case: Case, keep: Collection[str]) -> Case:
    """Only these operations (``program/index``), renamed."""
    new_names: dict[str, str] = {}
    for program in case.programs:
        kept = [at for at, _ in enumerate(program.steps) if f"{program.name}/{at}" in keep]
        new_names |= {f"{program.name}/{at}": f"{program.name}/{i}" for i, at in enumerate(kept)}
    programs = [replace(p, steps=_kept_steps(p, new_names)) for p in case.programs]
    cut = with_programs(case, programs)
    return replace(
        cut,
        order=tuple(n for name in case.order if (n := _renamed(name, new_names))),
        choices={n: w for name, w in case.choices.items() if (n := _renamed(name, new_names))},
        faults={
            (n, nth): kind
            for (name, nth), kind in case.faults.items()
            if (n := _renamed(name, new_names))
        },
    )


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
    """The pages of an mm that an operation names; guest addresses go through the memslots."""
    start = getattr(operation, "address", -1)
    if start < 0:
        return _guest_pages(getattr(operation, "gpa", 0), node, world)
    end = start + max(getattr(operation, "length", 1), 1)
    mm = getattr(operation, "mm", "")
    return {(mm, page) for page in range(start >> PAGE_SHIFT, (end - 1 >> PAGE_SHIFT) + 1)}


def _guest_pages(gpa: int, node: str, world: World) -> Pages:
    gfn = gpa >> PAGE_SHIFT
    return {
        (vm.mm, (slot.hva >> PAGE_SHIFT) + gfn - slot.gfn)
        for vm in world.vms
        if node in vm.vcpus
        for slot in vm.slots
        if slot.gfn <= gfn < slot.gfn + slot.pages
    }


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
    """The case without one part of its world that runs no program, in every way."""
    world, used = case.spec.world, {program.node for program in case.programs}
    for smaller in (
        *_fewer_vms(world, used),
        *_fewer_units(world, used),
        *_fewer_cpus(world, used),
    ):
        yield with_world(case, smaller)


def _fewer_vms(world: World, used: Collection[str]) -> Iterator[World]:
    change = msgspec.structs.replace
    for vm in world.vms:
        others = tuple(other for other in world.vms if other is not vm)
        if not any(vcpu in used for vcpu in vm.vcpus):
            yield change(world, vms=others)
            continue
        for vcpu in vm.vcpus:
            if vcpu not in used:
                left: Vm = change(vm, vcpus=tuple(v for v in vm.vcpus if v != vcpu))
                yield change(world, vms=tuple(left if v is vm else v for v in world.vms))


def _fewer_units(world: World, used: Collection[str]) -> Iterator[World]:
    change = msgspec.structs.replace
    for unit in world.units:
        others = tuple(other for other in world.units if other is not unit)
        if not any(device in used for device in unit.devices):
            yield change(world, units=others)
            continue
        for device in unit.devices:
            if device not in used:
                left: Unit = change(unit, devices=tuple(d for d in unit.devices if d != device))
                yield change(world, units=tuple(left if u is unit else u for u in world.units))


def _fewer_cpus(world: World, used: Collection[str]) -> Iterator[World]:
    change = msgspec.structs.replace
    for cpu in world.cpus:
        others = tuple(other for other in world.cpus if other != cpu)
        if cpu in used or not others:
            continue
        units = tuple(
            change(u, iopf_cpu=others[0]) if u.iopf_cpu == cpu else u for u in world.units
        )
        yield change(world, cpus=others, units=units)
