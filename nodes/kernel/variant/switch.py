"""Switches: what a kernel does, each on its own, with the releases that do it.

A switch is a field of its owner's class, named for what the kernel does and never for the harm that
follows.  Its type lists the values, ``switch(...)`` says where the code is and with which
release and commit each value came:

    end_calls_ir: bool = switch(
        "mm/mmu_notifier.c", "mn_hlist_invalidate_end",
        since(True, "v3.19", "0f0a327fa12c"), since(False, "v6.6", "ec8832d007cb"),
    )

Core code, drivers and plug-ins declare theirs in the same way; a preset is computed from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Literal,
    Self,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from mmurace.nodes.kernel.variant import release as releases
from mmurace.nodes.kernel.variant.release import Release
from mmurace.protocol.errors import EmulatorError

if TYPE_CHECKING:
    from mmurace.nodes.kernel.variant.kernel import Kernel

Value = bool | int | str


@dataclass(frozen=True, slots=True)
class Since:
    """A value, and the release that brought it."""

    value: Value
    release: Release
    commit: str
    on: frozenset[str]
    """Architectures or driver profiles; none: all."""
    backports: tuple[Release, ...]
    """Point releases that have it too, one for each stable tree."""

    def reached(self, release: Release, on: frozenset[str]) -> bool:
        """Whether a kernel has come so far."""
        if self.on and not self.on & on:
            return False
        return release >= self.release or any(
            release.series == back.series and release >= back for back in self.backports
        )


@dataclass(frozen=True, slots=True)
class Unreleased:
    """A value that no release has: a patch that was never merged, or a mistake to be tried."""

    value: Value
    why: str


Origin = Since | Unreleased


@dataclass(frozen=True, slots=True)
class Switch:
    """Where a kernel decides something, and the history of how."""

    file: str
    """Path in the kernel's tree."""
    function: str
    history: tuple[Origin, ...]
    """Oldest first; of those that apply the last one counts."""
    hardware: bool = False
    """It is a property of the machine, not of the kernel."""

    def value_in(self, release: Release, on: frozenset[str]) -> Value:
        """The value in a release, on an architecture and with these driver profiles."""
        return self.origin_in(release, on).value

    def origin_in(self, release: Release, on: frozenset[str]) -> Since:
        """What that value came with."""
        reached = [o for o in self.history if isinstance(o, Since) and o.reached(release, on)]
        if not reached:
            raise EmulatorError(f"{self.function} ({self.file}) has no value in {release}")
        return reached[-1]

    def origins_of(self, value: Value) -> list[Origin]:
        """Everything that is known of a value."""
        return [origin for origin in self.history if origin.value == value]


ALWAYS: Final = "v2.6.12"
"""The first release in git: what is older has no commit."""


def since(
    value: Value, release: str = ALWAYS, commit: str = "", on: str = "", backports: str = ""
) -> Since:
    """``value`` came with ``commit`` in ``release``.

    ``on``: architectures or driver profiles, with blanks between them; ``backports``: point
    releases likewise.
    """
    back = tuple(releases.parse(name) for name in backports.split())
    return Since(value, releases.parse(release), commit, frozenset(on.split()), back)


def unreleased(value: Value, why: str) -> Unreleased:
    """No release has ``value``."""
    return Unreleased(value, why)


def switch(file: str, function: str, *history: Origin, hardware: bool = False) -> Any:
    """What stands behind a switch's field, in the place of a default, which it has none."""
    return Switch(file, function, history, hardware)


class Switches(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what one owner decides.  Plain values."""

    OWNER: ClassVar[str] = ""
    PROFILES: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Machine -> the drivers that it may have, the usual one first."""

    @classmethod
    def of(cls, kernel: Kernel) -> Self:
        """This owner's part of a kernel; its place there is that among the owners."""
        place = _PLACES.get(cls, len(kernel.groups))
        group = kernel.groups[place] if place < len(kernel.groups) else None
        if isinstance(group, cls):
            return group
        raise EmulatorError(f"{kernel.release} was made without {cls.OWNER}")

    def contradictions(self, kernel: Kernel) -> Iterator[tuple[str, str]]:  # noqa: ARG002
        """(problem, what was expected) for values that exclude each other."""
        yield from ()


_OWNERS: Final[dict[str, type[Switches]]] = {}
_PLACES: Final[dict[type[Switches], int]] = {}


def declare(owner: type[Switches]) -> type[Switches]:
    """Add an owner's switches to what kernels are made of.  Raises ``EmulatorError`` on a clash."""
    taken = {name for other in _OWNERS.values() for name in other.__struct_fields__}
    twice = sorted(taken & set(owner.__struct_fields__))
    if owner.OWNER in _OWNERS or twice:
        what = f"switch {twice[0]!r}" if twice else f"owner {owner.OWNER!r}"
        raise EmulatorError(f"{what} is declared twice")
    _PLACES[owner] = len(_OWNERS)
    _OWNERS[owner.OWNER] = owner
    return owner


def owners() -> tuple[type[Switches], ...]:
    """Everybody who has declared switches, in the order in which they did."""
    return tuple(_OWNERS.values())


@dataclass(frozen=True, slots=True)
class Field:
    """A switch with its name, its owner and its values."""

    name: str
    owner: type[Switches]
    hint: Any
    switch: Switch

    @property
    def values(self) -> tuple[Value, ...]:
        """Everything that it can be."""
        if get_origin(self.hint) is Literal:
            return get_args(self.hint)
        if self.hint is bool:
            return False, True
        return tuple(dict.fromkeys(origin.value for origin in self.switch.history))


@cache
def fields_of(owner: type[Switches]) -> tuple[Field, ...]:
    """The switches of an owner, in the order in which they are declared."""
    hints = get_type_hints(owner)
    return tuple(
        Field(field.name, owner, hints[field.name], field.default)
        for field in msgspec.structs.fields(owner)
    )


def fields() -> Iterator[Field]:
    """Every switch there is."""
    for owner in owners():
        yield from fields_of(owner)
