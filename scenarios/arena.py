"""The arena of the ``mixed`` workload: its options, and where things are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec

from mmurace.nodes.beside import NodeCount, Site
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondaries import BUILT_IN
from mmurace.nodes.secondary import Part, secondaries
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.scenarios.agents import options_of, parts_beside, problems_beside
from mmurace.scenarios.tables import TomlTable

Count = Annotated[int, msgspec.Meta(ge=1, le=64)]
Weight = Annotated[int, msgspec.Meta(ge=0, le=1000)]

FILE: Final = "data"
BASE: Final = 0x7F00_0000_0000
"""Where the arena begins."""
HEAP_BASE: Final = 0x5500_0000_0000
FRAMES: Final = 256
"""Frames of the pool: a few times the arena, so that a freed frame is reused at once."""

GATHER_BATCH: Final = 2
"""Pages of a gather: fewer than a slot has, so that frames are freed in the middle of a range."""


MORE_OFTEN: Final[Mapping[str, int]] = {
    "Brk": 2, "Mmap": 2, "Mprotect": 2, "Munmap": 1, "Touch": 4,
}  # fmt: skip
"""Operations with short windows: so many more rounds, for one of every other."""
PRIVATE_MORE_OFTEN: Final = 4
"""And so many of the private page: a frame is latched for a moment only."""
EVICT_ONE_IN: Final = 12
"""A guest whose TLB entry is evicted between the zap of its shadow entry and the kick faults early
enough to load the entry of the page table once more."""


class Mix(TomlTable, frozen=True):
    """Relative weights of what a CPU program does next."""

    touch: Weight = 25
    munmap: Weight = 8
    mprotect: Weight = 14
    dontneed: Weight = 8
    mmap: Weight = 4
    """Map over what is mapped."""
    brk: Weight = 6
    migrate: Weight = 10
    madvise_free: Weight = 0
    mremap: Weight = 0
    """Move a slot onto another.  Up to v6.5 a device may write to the old place too late (S2)."""
    kswapd: Weight = 0
    """Reclaim a few pages.  On arm64 from v6.6 to v6.15 others may return too early (S3), beside it
    as beside ``migrate``."""
    shrink_active_list: Weight = 0
    """Make a few pages old."""
    change_prot_numa: Weight = 0
    """Let whoever uses a part of a slot next fault, and take the page to him."""
    ksm_scan: Weight = 0
    """Merge pages of a slot that have the same content."""
    file: Weight = 0
    """Map over what is mapped, a part of one file that all slots share, shared or private."""
    writeback: Weight = 0
    """Write that file back.  Up to v6.1 a store beside an unmap may be lost (S9)."""
    clear_refs: Weight = 0
    """Write-protect everything.  From v5.6 to v5.11 the CPUs are not flushed (S3)."""
    pinned_access: Weight = 2
    """Pin a page, let a device store to its frame, unpin it."""


class _Cpus(TomlTable, frozen=True):
    """The nodes that every world has."""

    cpus: Annotated[int, msgspec.Meta(ge=1, le=8)] = 2


def _declared() -> Iterator[tuple[str, Any, Any]]:
    """(name, type, usual value) of what the built-in secondaries can be told, each once.

    Not of a plug-in's: this is a class, and the same one in every process.
    """
    declared = (one.beside for one in sorted(BUILT_IN, key=lambda one: one.place) if one.beside)
    fields = (field for beside in declared for field in msgspec.structs.fields(beside))
    yield from {field.name: (field.name, field.type, field.default) for field in fields}.values()


Counts: Any = msgspec.defstruct("Counts", _declared(), bases=(_Cpus,), frozen=True, module=__name__)
"""How many nodes of each kind: ``[nodes]`` of a world file."""


class MixedOptions(Counts, frozen=True):  # type: ignore[call-arg, misc]  # its fields are declared
    """Nodes, sizes and mix of the workload."""

    slots: Count = 6
    pages: Count = 4
    """Pages of a slot."""
    heap: Count = 8
    """Pages that the heap may grow to."""
    mix: Mix = Mix()
    operations: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Operations per program; 0: endless."""
    added: dict[str, NodeCount | bool] = {}
    """What a plug-in's secondaries are told, by name; for most how many: else one of each."""
    accesses: dict[str, Weight] = {}
    """Weights of accesses of secondaries by name, among those of the same node; else 1."""


@dataclass(frozen=True, slots=True)
class Arena:
    """Where things are."""

    options: MixedOptions
    mm: str = "mm0"
    private: tuple[int, ...] = ()
    """Pages that secondaries have for themselves."""

    def slot(self, index: int) -> int:
        """The address of a slot.  A gap follows each, so that neighbours share no VMA."""
        return BASE + index * (self.options.pages + 1) * PAGE_SIZE

    @property
    def end(self) -> int:
        """The first address behind all slots."""
        return self.slot(self.options.slots)

    def site(self, kernel: Kernel) -> Site:
        """What secondaries are told of it: they use all of it, and the heap."""
        heap = (HEAP_BASE, HEAP_BASE + self.options.heap * PAGE_SIZE)
        cpu = cpu_names(self.options.cpus)[-1]
        return Site(kernel, self.mm, cpu, (BASE, self.end), self.end + PAGE_SIZE, heap)

    def parts(self, kernel: Kernel) -> tuple[Part, ...]:
        """The secondaries that are there.  Raises ``UserError``."""
        options = told(self.options)
        for key, problem, expected in problems_beside(options, kernel):
            raise UserError(f"nodes.{key}", problem, expected)
        return parts_beside(options, self.site(kernel))

    def span(self, slot: int) -> tuple[int, int]:
        """(address, length) of a slot."""
        return self.slot(slot), self.options.pages * PAGE_SIZE

    def somewhere(self, number: int) -> int:
        """An address of a word in some slot, by a drawn number."""
        options = self.options
        page = self.slot(number % options.slots) + (number >> 8) % options.pages * PAGE_SIZE
        return page + (number >> 16) % 8 * 8


def cpu_names(count: int) -> tuple[str, ...]:
    """``cpu0``, ``cpu1``, ..."""
    return tuple(f"cpu{n}" for n in range(count))


def told(options: MixedOptions) -> dict[str, Any]:
    """What secondaries are told, a plug-in's too, by name."""
    return {name: getattr(options, name) for name in Counts.__struct_fields__} | options.added


def addable() -> dict[str, Any]:
    """What a plug-in's secondaries can be told: name -> type."""
    return {
        name: kind
        for one in secondaries()
        for name, kind in options_of(one).items()
        if name not in Counts.__struct_fields__
    }
