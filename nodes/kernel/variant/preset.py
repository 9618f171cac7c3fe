"""Presets: what a release does on a machine, computed from the history of each switch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, Final

import msgspec

from mmurace.nodes.kernel.variant.kernel import MACHINES, Kernel, make
from mmurace.nodes.kernel.variant.release import Release, known
from mmurace.nodes.kernel.variant.switch import Field, Since, Value, fields, owners
from mmurace.protocol.errors import UserError

NEAR: Final = 3
"""How many names an error suggests."""


def preset(
    release: str,
    machine: str = "x86",
    overrides: Mapping[str, Any] | None = None,
    where: str = "--kernel",
    profiles: Iterable[str] = (),
    patches: Iterable[str] = (),
) -> Kernel:
    """The kernel of a release on a machine, with some switches set otherwise.

    Raises ``UserError`` for an unknown release, machine, driver profile, switch or value.
    """
    number = known(release, where)
    if machine not in MACHINES:
        raise UserError(where, f"unknown architecture {machine!r}", f"one of {', '.join(MACHINES)}")
    chosen = drivers_of(machine, profiles, where)
    on = frozenset((machine, *chosen))
    values = _values(tuple(fields()), number, on)
    for name in overrides or {}:
        field_named(name, where)
    try:
        all_values = {**values, **(overrides or {})}
        return make(release, machine, all_values, chosen, tuple(patches)).validate(where)
    except msgspec.ValidationError as error:
        raise UserError(where, str(error)) from None


@cache
def _values(known: tuple[Field, ...], number: Release, on: frozenset[str]) -> Mapping[str, Value]:
    """Every switch's value in a release on a machine with these drivers."""
    return {field.name: field.switch.value_in(number, on) for field in known}


def drivers_of(machine: str, asked: Iterable[str], where: str) -> tuple[str, ...]:
    """The driver profile of each owner that has several: the one asked for, else the usual one.

    Raises ``UserError`` for one that the machine has not, with the nearest names, and for two of
    one owner.
    """
    wanted, offers = set(asked), offered(machine)
    there = [profile for profiles in offers.values() for profile in profiles]
    for name in sorted(wanted - set(there)):
        near = get_close_matches(name, there, NEAR, 0)
        problem, perhaps = f"no driver {name!r} on {machine}", f"perhaps {', '.join(near)}"
        raise UserError(where, problem, perhaps if near else "none has another driver")
    chosen: list[str] = []
    for owner, profiles in offers.items():
        named = [profile for profile in profiles if profile in wanted]
        if len(named) > 1:
            problem = f"{' and '.join(named)} are both drivers of {owner}"
            raise UserError(where, problem, "one of them")
        chosen += named or profiles[:1]
    return tuple(chosen)


def offered(machine: str) -> dict[str, tuple[str, ...]]:
    """Owners that have profiles on a machine -> those, the usual one first."""
    known = {owner.OWNER: owner.PROFILES.get(machine, ()) for owner in owners()}
    return {owner: profiles for owner, profiles in known.items() if profiles}


def field_named(name: str, where: str) -> Field:
    """The switch of that name.  Raises ``UserError`` with the nearest names."""
    there = {field.name: field for field in fields()}
    if name not in there:
        near = get_close_matches(name, there, NEAR, 0)
        raise UserError(where, f"unknown switch {name!r}", f"perhaps {', '.join(near)}")
    return there[name]


def usual(kernel: Kernel) -> Kernel:
    """The preset of a kernel's own release, machine and drivers."""
    return preset(kernel.release, kernel.machine, profiles=kernel.profiles)


def differences(kernel: Kernel, other: Kernel) -> Iterator[tuple[Field, Value, Value]]:
    """(switch, its value in ``kernel``, its value in ``other``) where the two differ."""
    here, there = kernel.switches(), other.switches()
    for field in fields():
        if here[field.name] != there[field.name]:
            yield field, here[field.name], there[field.name]


def origin(field: Field, kernel: Kernel) -> Since:
    """What a release's own value came with."""
    on = frozenset((kernel.machine, *kernel.profiles))
    return field.switch.origin_in(known(kernel.release, "kernel"), on)
