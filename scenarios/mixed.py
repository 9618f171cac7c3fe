"""The ``mixed`` workload: every memory call, all agents, a small arena, for ever.

The arena is a row of slots.  A CPU program owns every n-th slot and maps, unmaps and protects
only those, but touches all of them; the device and the guest use all of them too and ask nobody.
So translations are held of nearly everything that is taken away, freed frames are reused at
once, and now and then an access finds nothing mapped, which is a legal outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import msgspec

from mmurace.broker.programs import Program, Step
from mmurace.nodes.driver import draw
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.messages import GuestApic, GuestTouch
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.secondaries.ocxl.messages import AfuTouch
from mmurace.nodes.secondaries.ocxl.part import Link
from mmurace.nodes.world import World
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import PAGE_SHIFT, PAGE_SIZE
from mmurace.protocol.messages import program as ops
from mmurace.scenarios.tables import Table, TomlTable, convert

Count = Annotated[int, msgspec.Meta(ge=1, le=64)]
Weight = Annotated[int, msgspec.Meta(ge=0, le=1000)]

FILE: Final = "data"
GUEST_BASE: Final = 0x7F00_0000_0000
"""Where the arena begins."""
HEAP_BASE: Final = 0x5500_0000_0000
FRAMES: Final = 256
"""Frames of the pool: a few times the arena, so that a freed frame is reused at once."""


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
    file: Weight = 0
    """Map over what is mapped, a part of one file that all slots share, shared or private."""
    writeback: Weight = 0
    """Write that file back.  Up to v6.1 a store beside an unmap may be lost (S9)."""


class Counts(TomlTable, frozen=True):
    """How many nodes of each kind; devices and vCPUs are shared out evenly."""

    cpus: Annotated[int, msgspec.Meta(ge=1, le=8)] = 2
    iommus: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1
    devices: Annotated[int, msgspec.Meta(ge=0, le=8)] = 1
    """Behind all IOMMUs together; without any there is no IOMMU either."""
    ats: bool = False
    """Devices have translation caches of their own."""
    vms: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1
    vcpus: Annotated[int, msgspec.Meta(ge=0, le=8)] = 1
    """Of all VMs together; without any there is no VM either."""
    links: Annotated[int, msgspec.Meta(ge=0, le=8)] = 0
    """OpenCAPI links, on ppc only, which has no IOMMUs; 0: as many as ``devices`` there."""


class MixedOptions(Counts, frozen=True):
    """Nodes, sizes and mix of the workload."""

    slots: Count = 6
    pages: Count = 4
    """Pages of a slot."""
    heap: Count = 8
    """Pages that the heap may grow to."""
    mix: Mix = Mix()
    operations: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Operations per program; 0: endless."""


@dataclass(frozen=True, slots=True)
class Arena:
    """Where things are."""

    options: MixedOptions
    mm: str = "mm0"

    def slot(self, index: int) -> int:
        """The address of a slot.  A gap follows each, so that neighbours share no VMA."""
        return GUEST_BASE + index * (self.options.pages + 1) * PAGE_SIZE

    @property
    def end(self) -> int:
        """The first address behind all slots."""
        return self.slot(self.options.slots)

    @property
    def apic(self) -> int:
        """The VMM's address of KVM's APIC-access page."""
        return self.end + PAGE_SIZE

    @property
    def apic_gpa(self) -> int:
        """The guest's address of it."""
        return self.apic - GUEST_BASE

    def memslots(self) -> tuple[Slot, ...]:
        """The whole arena is guest memory."""
        pages = (self.end - GUEST_BASE) >> PAGE_SHIFT
        return (
            Slot(0, pages, GUEST_BASE),
            Slot(self.apic_gpa >> PAGE_SHIFT, 1, self.apic, True),
        )

    def somewhere(self, number: int) -> int:
        """An address of a word in some slot, by a drawn number."""
        options = self.options
        page = self.slot(number % options.slots) + (number >> 8) % options.pages * PAGE_SIZE
        return page + (number >> 16) % 8 * 8


@dataclass(slots=True)
class _CpuState:
    """What a CPU program knows of its own slots."""

    rights: dict[int, str] = field(default_factory=dict)
    """Mapped slots -> ``rw`` or ``r``."""
    heap: int = 0
    """End of the heap in pages; -1: the heap's base is not set yet."""


@dataclass(frozen=True, slots=True)
class CpuSteps:
    """The endless steps of CPU program ``number``; every iteration gives the same ones."""

    arena: Arena
    number: int
    seed: int

    def __iter__(self) -> Iterator[Step]:
        options = self.arena.options
        state = _CpuState(heap=-1)
        yield from map(Step, self._prelude(state))
        index = 0
        while options.operations == 0 or index < options.operations:
            yield Step(self._next(state, self._draw(index)))
            index += 1

    def _draw(self, index: int) -> int:
        return draw(self.seed, f"mixed/cpu{self.number}/{index}")

    def _owned(self) -> list[int]:
        options = self.arena.options
        return list(range(self.number, options.slots, options.cpus))

    def _prelude(self, state: _CpuState) -> Iterator[ops.Operation]:
        """Map the APIC page (the first program) and one's own slots."""
        if self.number == 0:
            if self.arena.options.vcpus:
                yield ops.Mmap(self.arena.mm, self.arena.apic, PAGE_SIZE, True, True)
            yield ops.Brk(self.arena.mm, HEAP_BASE)
            state.heap = 0
        for slot in self._owned():
            yield self._mmap(state, slot)

    def _next(self, state: _CpuState, number: int) -> ops.Operation:
        """One operation, by a drawn number; it also takes its details from that number."""
        mix = self.arena.options.mix
        owned = self._owned()
        detail = number >> 16
        unmapped = [slot for slot in owned if slot not in state.rights]
        if unmapped and number & 3:
            return self._mmap(state, unmapped[detail % len(unmapped)])
        mapped = list(state.rights)
        weights: list[tuple[int, Callable[[_CpuState, int, int], ops.Operation]]] = [
            (mix.munmap, self._munmap), (mix.mprotect, self._mprotect),
            (mix.dontneed, self._dontneed), (mix.mmap, self._map_over),
            (mix.madvise_free, self._free), (mix.mremap, self._mremap),
            (mix.file, self._map_file),
        ]  # fmt: skip
        others = mix.touch + mix.migrate + mix.brk + mix.kswapd + mix.writeback
        at = (number >> 8) % (sum(w for w, _ in weights) + others or 1)
        for weight, make in weights:
            if at < weight and mapped:
                return make(state, mapped[detail % len(mapped)], detail >> 8)
            at -= weight
        if 0 <= at < mix.migrate:
            return self._migrate(detail)
        if mix.migrate <= at < mix.migrate + mix.brk and state.heap >= 0:
            return self._brk(state, detail)
        if 0 <= at - mix.migrate - mix.brk < mix.kswapd:
            return ops.Kswapd(1 + detail % 4)
        if 0 <= at - mix.migrate - mix.brk - mix.kswapd < mix.writeback:
            return ops.Writeback(FILE)
        return self._touch(state, detail)

    def _span(self, slot: int, detail: int) -> tuple[int, int]:
        """(address, length) of a slot, or of a part of it one time in two."""
        pages = self.arena.options.pages
        start, end = (detail >> 1) % pages, pages
        if detail & 1:
            start = 0
        return self.arena.slot(slot) + start * PAGE_SIZE, (end - start) * PAGE_SIZE

    def _mmap(self, state: _CpuState, slot: int) -> ops.Operation:
        state.rights[slot] = "rw"
        length = self.arena.options.pages * PAGE_SIZE
        return ops.Mmap(self.arena.mm, self.arena.slot(slot), length, True, True)

    def _map_over(self, state: _CpuState, slot: int, _: int) -> ops.Operation:
        return self._mmap(state, slot)

    def _map_file(self, state: _CpuState, slot: int, detail: int) -> ops.Operation:
        state.rights[slot] = "rw"
        length = self.arena.options.pages * PAGE_SIZE
        offset, shared = detail % 2 * PAGE_SIZE, detail % 3 > 0
        return ops.Mmap(
            self.arena.mm, self.arena.slot(slot), length, True, True, FILE, offset, shared
        )  # fmt: skip

    def _munmap(self, state: _CpuState, slot: int, _: int) -> ops.Operation:
        del state.rights[slot]
        length = self.arena.options.pages * PAGE_SIZE
        return ops.Munmap(self.arena.mm, self.arena.slot(slot), length)

    def _mprotect(self, state: _CpuState, slot: int, detail: int) -> ops.Operation:
        """Down and up in turn; a part of a slot may stay behind, which is legal."""
        write = state.rights[slot] == "r"
        state.rights[slot] = "rw" if write else "r"
        address, length = self._span(slot, detail)
        return ops.Mprotect(self.arena.mm, address, length, True, write)

    def _dontneed(self, _: _CpuState, slot: int, detail: int) -> ops.Operation:
        return ops.MadviseDontneed(self.arena.mm, *self._span(slot, detail))

    def _free(self, _: _CpuState, slot: int, detail: int) -> ops.Operation:
        return ops.MadviseFree(self.arena.mm, *self._span(slot, detail))

    def _mremap(self, state: _CpuState, slot: int, detail: int) -> ops.Operation:
        """Onto another slot of this program, if it has any; what is mapped there goes."""
        others = [other for other in self._owned() if other != slot] or [slot]
        to = others[detail % len(others)]
        state.rights[to] = state.rights.pop(slot)
        length = self.arena.options.pages * PAGE_SIZE
        old, new = self.arena.slot(slot), self.arena.slot(to)
        return ops.Mremap(self.arena.mm, old, length, new, length)

    def _migrate(self, detail: int) -> ops.Operation:
        """Some page, or one time in four the APIC page."""
        arena = self.arena
        apic = arena.options.vcpus and detail % 4 == 0
        page = arena.apic if apic else arena.somewhere(detail >> 2) & ~(PAGE_SIZE - 1)
        return ops.MigratePages(arena.mm, page, PAGE_SIZE)

    def _brk(self, state: _CpuState, detail: int) -> ops.Operation:
        state.heap = detail % (self.arena.options.heap + 1)
        return ops.Brk(self.arena.mm, HEAP_BASE + state.heap * PAGE_SIZE)

    def _touch(self, state: _CpuState, detail: int) -> ops.Operation:
        """A page of the arena, or of the heap where this program has one."""
        write, detail = detail % 3 > 0, detail >> 2
        if state.heap > 0 and detail % 5 == 0:
            address = HEAP_BASE + (detail >> 4) % state.heap * PAGE_SIZE
        else:
            address = self.arena.somewhere(detail >> 4)
        return ops.Touch(self.arena.mm, address, write, detail & 0xFFFF)


@dataclass(frozen=True, slots=True)
class SecondarySteps:
    """The endless steps of a device (``guest`` false) or of a guest."""

    arena: Arena
    name: str
    seed: int
    guest: bool

    def __iter__(self) -> Iterator[Step]:
        index = 0
        operations = self.arena.options.operations
        while operations == 0 or index < operations:
            number = draw(self.seed, f"mixed/{self.name}/{index}")
            yield Step(self._operation(number), self.after(index))
            index += 1

    def after(self, index: int) -> tuple[str, ...]:
        """What a step comes after: the first access waits until the slots are mapped."""
        if index:
            return ()
        options = self.arena.options
        programs = range(min(options.cpus, options.slots))
        return tuple(f"cpu{number}/{self._prelude_end(number)}" for number in programs)

    def _prelude_end(self, number: int) -> int:
        """The index of the last operation of a CPU program's prelude."""
        options = self.arena.options
        first = (1 + bool(options.vcpus)) if number == 0 else 0
        return first + len(range(number, options.slots, options.cpus)) - 1

    def _operation(self, number: int) -> ops.Operation:
        write, value = number % 3 > 0, (number >> 2) & 0xFFFF
        address = self.arena.somewhere(number >> 20)
        if self.name.startswith("link"):
            return AfuTouch(self.arena.mm, address, write, value)
        if not self.guest:
            return Dma(self.arena.mm, address, write, value)
        if (number >> 18) & 3 == 0:
            return GuestApic(self.arena.apic_gpa, write, value)
        return GuestTouch(address - GUEST_BASE, write, value)


@dataclass(frozen=True, slots=True)
class Mixed:
    """The workload: options, and everything else follows."""

    options: MixedOptions = field(default_factory=MixedOptions)
    kind: str = "mixed"

    def world(self, kernel: Kernel) -> World:
        """A world for it: four levels of 512 entries and few frames."""
        options = self.options
        cpus = cpu_names(options.cpus)
        slots = Arena(options).memslots()
        power = kernel.machine == "ppc"
        if options.links and not power:
            raise UserError(
                "nodes.links", f"is {options.links} on {kernel.machine}", "0, or arch = ppc"
            )
        devices, links = (0, options.links or options.devices) if power else (options.devices, 0)
        return World(
            kernel=kernel,
            cpus=cpus,
            parts=(
                *(
                    Unit(f"iommu{n}", behind, ("mm0",), cpus[-1], options.ats)
                    for n, behind in enumerate(_shared_out("device", devices, options.iommus))
                ),
                *(
                    Vm(f"kvm{n}", vcpus, "mm0", slots)
                    for n, vcpus in enumerate(_shared_out("vcpu", options.vcpus, options.vms))
                ),
                *(Link(f"link{n}", ("mm0",), cpus[-1]) for n in range(links)),
            ),
            levels=4,
            entries=512,
            frames=FRAMES + 2 * (options.slots * options.pages + options.heap),
            evict_one_in=50,
        )

    def programs(self, world: World, seed: int) -> tuple[Program, ...]:
        """One program per CPU, device and vCPU of the world."""
        arena = Arena(self.options, world.mms[0])
        cpus = [
            Program(name, name, CpuSteps(arena, number, seed), frozenset())
            for number, name in enumerate(world.cpus)
        ]
        vcpus = {name for part in world.parts for name in part.processors()}
        asked = [name for name in world.nodes() if name.startswith(("device", "vcpu", "link"))]
        steps = [SecondarySteps(arena, name, seed, name in vcpus) for name in asked]
        others = [Program(s.name, s.name, s, frozenset(s.after(0))) for s in steps]
        return (*cpus, *others)

    def to_table(self, directory: Path) -> Table:  # noqa: ARG002
        """The ``[workload]`` table."""
        table: Table = msgspec.to_builtins(self.options)
        return table

    @classmethod
    def from_table(cls, table: Table, where: str) -> Mixed:
        """The workload of a ``[workload]`` table.  Raises ``UserError``."""
        options = convert(table, MixedOptions, where)
        if not sum(msgspec.structs.astuple(options.mix)):
            raise UserError(f"{where}.mix", "has no weight above 0", "at least one")
        return cls(options)

    def save_files(self, directory: Path) -> Mixed:  # noqa: ARG002
        """It reads nothing."""
        return self


def cpu_names(count: int) -> tuple[str, ...]:
    """``cpu0``, ``cpu1``, ..."""
    return tuple(f"cpu{n}" for n in range(count))


def _shared_out(name: str, count: int, among: int) -> list[tuple[str, ...]]:
    """``name0``, ``name1``, ... in turn to each of so many; who gets nothing is left out."""
    names = [f"{name}{n}" for n in range(count)]
    return [tuple(names[n::among]) for n in range(min(among, count))]
