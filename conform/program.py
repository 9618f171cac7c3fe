"""A row's operations as a program: one after the other, in a world with one guest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mmurace.broker.programs import Program, Step
from mmurace.conform.table import Called, Row, Table
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.messages import GuestTouch
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.world import World
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as ops
from mmurace.protocol.messages.program import Operation

MM: Final = "mm0"
CHILD: Final = "mm1"
FILE: Final = "file"
ENTRIES: Final = 64
START: Final = ENTRIES * PAGE_SIZE
"""The memory begins a leaf table, which another VMA behind it keeps in use."""
BESIDE: Final = START + (ENTRIES - 2) * PAGE_SIZE
AWAY: Final = 2 * START
"""``mremap_away`` moves pages into the next table, each to a page of its own."""
SHARED: Final = {"anon": None, "fshared": True, "fprivate": False}
"""What can back the memory: whether it is shared, where it is of a file."""


class Unsaid(Exception):  # noqa: N818 - a finding, not an error
    """A row that cannot be said, and why."""


@dataclass(frozen=True, slots=True)
class Said:
    """A row as something to run."""

    world: World
    programs: tuple[Program, ...]
    names: tuple[tuple[str, ...], ...]
    """Of each operation of the row: the operations (``program/index``) that it became."""
    pages: int
    """Of the memory."""


class Maker:
    """Makes the operations of one row."""

    def __init__(self, row: Row, pages: int) -> None:
        if row.memory not in SHARED:
            raise Unsaid(f"memory of kind {row.memory}")
        self.row, self.pages = row, pages
        self.shared = SHARED[row.memory]
        self.mapped = set(range(pages))
        """Pages that a VMA covers."""
        self.moved = 0
        self.value = 0

    def made(self, called: Called) -> list[Operation]:
        """What one operation of the row is here.  Raises ``Unsaid``."""
        if called.name not in SAID:
            raise Unsaid(called.name)
        return SAID[called.name](self, called)

    def mmap(self, called: Called) -> list[Operation]:
        """Fresh pages of the row's kind; of a file, its pages with these numbers."""
        self.mapped |= set(range(called.page, called.page + called.pages))
        file = "" if self.shared is None else FILE
        address, length = span(called)
        offset = address - START if file else 0
        return [ops.Mmap(MM, address, length, True, True, file, offset, bool(self.shared))]

    def munmap(self, called: Called) -> list[Operation]:
        """No VMA is there afterwards."""
        self.mapped -= set(range(called.page, called.page + called.pages))
        return [ops.Munmap(MM, *span(called))]

    def each(self, called: Called, access: Callable[[int, int], Operation]) -> list[Operation]:
        """An access to each of the pages; all store other values."""
        first = self.value + 1
        self.value += called.pages
        return [access(called.page + n, first + n) for n in range(called.pages)]

    def away(self, called: Called) -> list[Operation]:
        """The page moves to where nothing is, and a fresh one comes in its place.

        mremap of what no VMA covers says -EFAULT, and then nothing comes.
        """
        there = called.page in self.mapped
        address, length = span(called)
        target = AWAY + self.moved * PAGE_SIZE
        self.moved += called.pages
        fresh = self.mmap(called) if there else []
        return [ops.Mremap(MM, address, length, target, length), *fresh]

    def of_file(self, *made: Operation) -> list[Operation]:
        """What needs a file.  Raises ``Unsaid``."""
        if self.shared is None:
            raise Unsaid(f"a file of {self.row.memory}")
        return list(made)


Make = Callable[[Maker, Called], list[Operation]]


def span(called: Called) -> tuple[int, int]:
    """Address and length."""
    return START + called.page * PAGE_SIZE, called.pages * PAGE_SIZE


def _guest(write: bool) -> Make:
    return lambda make, called: make.each(
        called, lambda page, value: GuestTouch(page * PAGE_SIZE, write, value)
    )


def _host(write: bool) -> Make:
    return lambda make, called: make.each(
        called, lambda page, value: ops.Touch(MM, START + page * PAGE_SIZE, write, value)
    )


def _protect(read: bool, write: bool) -> Make:
    return lambda _, called: [ops.Mprotect(MM, *span(called), read, write)]


SAID: Final[dict[str, Make]] = {
    "guest_read": _guest(False),
    "guest_write": _guest(True),
    "host_read": _host(False),
    "host_write": _host(True),
    "madvise_dontneed": lambda _, called: [ops.MadviseDontneed(MM, *span(called))],
    "madvise_free": lambda _, called: [ops.MadviseFree(MM, *span(called))],
    "mprotect_ro": _protect(True, False),
    "mprotect_rw": _protect(True, True),
    "mprotect_none": _protect(False, False),
    "fork": lambda _, __: [ops.Fork(MM, CHILD), ops.Exit(CHILD)],
    "mremap_away": Maker.away,
    "munmap": Maker.munmap,
    "mmap": Maker.mmap,
    "truncate": lambda make, called: make.of_file(
        ops.Truncate(FILE, called.page * PAGE_SIZE), ops.Truncate(FILE, make.pages * PAGE_SIZE)
    ),
    "fsync": lambda make, _: make.of_file(ops.Writeback(FILE)),
    "move_node": lambda _, called: [ops.MigratePages(MM, *span(called))],
    "soft_dirty": lambda _, __: [ops.ClearRefs(MM)],
}
"""Name of an operation in a table -> what it is here."""


def said(row: Row, table: Table, kernel: Kernel) -> Said:
    """The row as a program.  Raises ``Unsaid``."""
    make = Maker(row, table.pages)
    steps = list(_ground(make))
    places: list[tuple[int, int]] = []
    for called in row.operations:
        made = make.made(called)
        places.append((len(steps), len(steps) + len(made)))
        steps += made
    names, programs = _in_turn(steps)
    of_each = tuple(tuple(names[first:last]) for first, last in places)
    return Said(_world(table.pages, kernel), programs, of_each, table.pages)


def _ground(make: Maker) -> list[Operation]:
    """The file's size, the memory, and a page beside it that is in use, of the same leaf table.

    The measuring program wants no huge pages in its memory, so fresh pages do not merge with it.
    """
    sized = [] if make.shared is None else [ops.Truncate(FILE, make.pages * PAGE_SIZE)]
    whole = Called("mmap", 0, make.pages)
    memory = [*make.mmap(whole), ops.MadviseNohugepage(MM, *span(whole))]
    beside = ops.Mmap(MM, BESIDE, PAGE_SIZE, True, True)
    return [*sized, *memory, beside, ops.Touch(MM, BESIDE, True, 1)]


def _in_turn(steps: list[Operation]) -> tuple[list[str], tuple[Program, ...]]:
    """Each after the one before, whichever node has it."""
    names: list[str] = []
    by_node: dict[str, list[Step]] = {}
    for operation in steps:
        node = "vcpu0" if isinstance(operation, GuestTouch) else "cpu0"
        mine = by_node.setdefault(node, [])
        mine.append(Step(operation, tuple(names[-1:])))
        names.append(f"{node}/{len(mine) - 1}")
    return names, tuple(Program(node, node, tuple(mine)) for node, mine in by_node.items())


def _world(pages: int, kernel: Kernel) -> World:
    """One VMM, its guest, and a unit that walks its page table and is told, but never used."""
    unit = Unit("iommu0", ("device0",), (MM,), "cpu0")
    guest = Vm("kvm0", ("vcpu0",), MM, (Slot(0, pages, START),))
    return World(
        kernel=kernel, cpus=("cpu0",), mms=(MM, CHILD), parts=(unit, guest), levels=3,
        entries=ENTRIES, frames=256, gather_batch=64,
    )  # fmt: skip
