"""The world of a run: which nodes there are and what each is made of.

A ``World`` is plain data, so that ``run.toml`` can hold it and any process can rebuild its node
from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.kernel.variant.kernel import make
from mmurace.nodes.secondary import Part, of, secondaries

MEMORY = "memory"
P = TypeVar("P", bound=Part)


class World(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All nodes of a run and their sizes."""

    kernel: Kernel
    cpus: tuple[str, ...] = ("cpu0", "cpu1")
    mms: tuple[str, ...] = ("mm0",)
    parts: tuple[Part, ...] = ()
    """Its secondaries, in the order of their nodes."""
    levels: int = 2
    """Levels of the page table; the leaf level is 0."""
    entries: int = 8
    """Entries in a table of each level; a power of two."""
    frames: int = 32
    """Frames in the pool, page-table pages and the zero page included."""
    gather_batch: int = 8
    """Pages that an ``mmu_gather`` holds before it must flush (``MAX_GATHER_BATCH``)."""
    tlb_entries: int = 64
    """Translations that a translation cache holds before it evicts one."""
    evict_one_in: int = 0
    """A cache also evicts by its own choice, once in so many fills; 0: never."""

    def nodes(self) -> tuple[str, ...]:
        """Names of all nodes, in a fixed order."""
        return (MEMORY, *self.cpus, *(name for part in self.parts for name in part.nodes()))

    def processors(self) -> tuple[str, ...]:
        """Every node that runs host threads: CPUs, and others that do."""
        return (*self.cpus, *(name for part in self.parts for name in part.processors()))

    def parts_of(self, kind: type[P]) -> tuple[P, ...]:
        """Its secondaries of one kind."""
        return tuple(part for part in self.parts if isinstance(part, kind))

    def with_parts(self, kind: type[P], parts: Iterable[P]) -> World:
        """The same world with others in the place of all of that kind."""
        replaced: tuple[Part, ...] = (
            *parts,
            *(part for part in self.parts if not isinstance(part, kind)),
        )
        ordered: list[Part] = sorted(replaced, key=lambda part: of(part).place)
        return msgspec.structs.replace(self, parts=tuple(ordered))

    def part_of(self, node: str) -> Part | None:
        """The secondary that a node belongs to, if any."""
        return next((part for part in self.parts if node in part.nodes()), None)

    def shift(self, level: int) -> int:
        """log2 of the bytes that one entry of a table at ``level`` maps."""
        return 12 + level * (self.entries.bit_length() - 1)

    def address_end(self) -> int:
        """The first address that the page table cannot map."""
        return 1 << self.shift(self.levels)

    def pgd(self, mm: str) -> int:
        """The frame of an mm's top-level table; frame 0 is the zero page."""
        return 1 + self.mms.index(mm)

    def subscribers(self, mm: str) -> tuple[tuple[str, str], ...]:
        """The notifier list of an mm: (driver, node), newest first as hlist_add_head does."""
        oldest_first = [
            (secondary.name, part.name)
            for secondary in secondaries()
            if secondary.on_lists(self.kernel)
            for part in secondary.parts(self)
            if mm in part.subscribed(self.kernel)
        ]
        return tuple(reversed(oldest_first))

    def intervals(self, mm: str) -> tuple[tuple[str, str], ...]:
        """Interval notifiers of all of an mm that are there from the start: (driver, node)."""
        return tuple(
            (secondary.name, part.name)
            for secondary in secondaries()
            if not secondary.on_lists(self.kernel)
            for part in secondary.parts(self)
            if mm in part.subscribed(self.kernel)
        )

    def has_itrees(self) -> bool:
        """Whether some part of it may have interval notifiers."""
        return any(one.interval is not None and one.parts(self) for one in secondaries())


# ---- as plain values, for another process --------------------------------------------------------


def to_plain(world: World) -> dict[str, Any]:
    """The world as builtins; ``from_plain`` makes it again, if the same secondaries are known."""
    kernel = world.kernel
    return {
        "kernel": [kernel.release, kernel.machine, kernel.profiles, kernel.patches],
        "switches": kernel.switches(),
        "parts": [[of(part).key, msgspec.to_builtins(part)] for part in world.parts],
        "sizes": {name: getattr(world, name) for name in _sizes()},
    }


def from_plain(plain: Mapping[str, Any]) -> World:
    """Raises ``msgspec.ValidationError``, ``KeyError`` or ``ValueError`` if it does not fit."""
    release, machine, profiles, patches = plain["kernel"]
    kernel = make(release, machine, plain["switches"], tuple(profiles), tuple(patches))
    kinds = {secondary.key: secondary.part for secondary in secondaries()}
    parts = tuple(msgspec.convert(row, kinds[key]) for key, row in plain["parts"])
    sizes = {name: _frozen(value) for name, value in plain["sizes"].items()}
    return World(kernel=kernel, parts=parts, **sizes)


def _sizes() -> tuple[str, ...]:
    return tuple(name for name in World.__struct_fields__ if name not in ("kernel", "parts"))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
