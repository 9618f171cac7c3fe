"""Secondaries beside a workload that makes its own world: its options, and rows made by them.

What a secondary can be told there (how many, how large), and what its rows then are, it declares
with its options (``Secondary.beside``); ``[nodes]`` of a world file has the keys of all.

Small worlds are another matter (``nodes.ground``): what is here follows from options, what is there
from chance, and it may be of no use to a workload: a row with nothing bound, an access that fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

if TYPE_CHECKING:
    from mmurace.nodes.kernel.variant import Kernel
    from mmurace.nodes.secondary import Part

NODES_OF_A_KIND = 8
NodeCount = Annotated[int, msgspec.Meta(ge=0, le=NODES_OF_A_KIND)]
OwnerCount = Annotated[int, msgspec.Meta(ge=1, le=NODES_OF_A_KIND)]
"""Of those who share out others among themselves."""
Problem = tuple[str, str, str]
"""(key, problem, what was expected)."""


@dataclass(frozen=True, slots=True)
class Site:
    """The world that a workload makes, before any secondary is in it.  All addresses in bytes."""

    kernel: Kernel
    mm: str
    """Whose memory they use."""
    cpu: str
    """Where their drivers' work is done."""
    memory: tuple[int, int]
    """From where to where everybody uses it."""
    private: int
    """A page behind that; each secondary that asks for one (``Secondary.private``) has another."""
    heap: tuple[int, int] | None = None
    """From where to where the heap may grow."""
    device: str = ""
    """What programs call a device that is a row by itself, before its number; empty: as its
    secondary calls it."""


class Beside(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of one secondary: subclasses add fields, each with a default.

    A field of the same name in two of them is one option, and both are told.
    """

    def problems(self, kernel: Kernel | None) -> Iterator[Problem]:  # noqa: ARG002
        """What cannot be; of what depends on the kernel nothing without one."""
        yield from ()

    def rows(self, site: Site) -> Iterator[Part]:  # noqa: ARG002
        """The rows."""
        yield from ()


@dataclass(frozen=True, slots=True)
class Private:
    """A page that a secondary has for itself, at ``Site.private``; the kernel migrates it.

    An access is drawn (``Secondary.drawn``) as any other, with that page.
    """

    name: str
    """What a log's options call it, as its draws."""
    percent: int
    """After so many of a log's calls it is used, if no option says otherwise."""
    page: Callable[[Any], int | None]
    """(row) -> its host address, if the row has one."""


def shared_out(name: str, count: int, among: int) -> list[tuple[str, ...]]:
    """``name0``, ``name1``, ... in turn to each of so many; who gets nothing is left out."""
    names = [f"{name}{n}" for n in range(count)]
    return [tuple(names[n::among]) for n in range(min(among, count))]


def too_many(owners: str, parts: str, options: Beside) -> Iterator[Problem]:
    """Every owner has one of what is shared out."""
    held, shared = getattr(options, owners), getattr(options, parts)
    if held > max(shared, 1):
        yield owners, f"is {held}, with {shared} {parts}", f"at most {parts}"
