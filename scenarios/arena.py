"""The arena of the ``mixed`` workload: its options, and where things are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondaries.gpu.part import Gpu
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.secondaries.ocxl.part import Link
from mmurace.nodes.secondary import Part
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import PAGE_SHIFT, PAGE_SIZE
from mmurace.scenarios.tables import TomlTable

Count = Annotated[int, msgspec.Meta(ge=1, le=64)]
NodeCount = Annotated[int, msgspec.Meta(ge=0, le=8)]
Weight = Annotated[int, msgspec.Meta(ge=0, le=1000)]

FILE: Final = "data"
GUEST_BASE: Final = 0x7F00_0000_0000
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
    file: Weight = 0
    """Map over what is mapped, a part of one file that all slots share, shared or private."""
    writeback: Weight = 0
    """Write that file back.  Up to v6.1 a store beside an unmap may be lost (S9)."""
    clear_refs: Weight = 0
    """Write-protect everything.  From v5.6 to v5.11 the CPUs are not flushed (S3)."""
    pinned_access: Weight = 2
    """Pin a page, let a device store to its frame, unpin it."""


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

    gpus: Annotated[int, msgspec.Meta(ge=0, le=8)] = 0
    """GPUs that mirror the arena (HMM), from v5.5 on."""

    def check(self, where: str) -> None:
        """Every IOMMU has a device and every VM a vCPU.  Raises ``UserError``."""
        for holder, part in (("iommus", "devices"), ("vms", "vcpus")):
            held, parts = getattr(self, holder), getattr(self, part)
            if held > max(parts, 1):
                raise UserError(
                    f"{where}.{holder}", f"is {held}, with {parts} {part}", f"at most {part}"
                )


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
    added: dict[str, NodeCount] = {}
    """How many of a plug-in's secondaries, by their keys in world files; else one of each."""
    accesses: dict[str, Weight] = {}
    """Weights of accesses of secondaries by name, among those of the same node; else 1."""


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
    def private(self) -> int | None:
        """The page that only one secondary uses: the VMM's address of KVM's APIC-access page."""
        return self.end + PAGE_SIZE if self.options.vcpus else None

    def memslots(self) -> tuple[Slot, ...]:
        """The whole arena is guest memory, and so is the heap, behind the APIC page."""
        apic = self.end + PAGE_SIZE
        gfn = (apic - GUEST_BASE) >> PAGE_SHIFT
        return (
            Slot(0, (self.end - GUEST_BASE) >> PAGE_SHIFT, GUEST_BASE),
            Slot(gfn, 1, apic, True),
            Slot(gfn + 1, self.options.heap, HEAP_BASE),
        )

    def parts(self, kernel: Kernel) -> tuple[Part, ...]:
        """The built-in secondaries that are there.  Raises ``UserError``."""
        options, cpu = self.options, cpu_names(self.options.cpus)[-1]
        power = kernel.machine == "ppc"
        if options.links and not power:
            raise UserError(
                "nodes.links", f"is {options.links} on {kernel.machine}", "0, or arch = ppc"
            )
        if options.gpus and not kernel.mm.interval_notifiers:
            raise UserError("nodes.gpus", f"is {options.gpus} in {kernel.release}", "0, or v5.5")
        devices, links = (0, options.links or options.devices) if power else (options.devices, 0)
        return (
            *(
                Unit(f"iommu{n}", behind, (self.mm,), cpu, options.ats)
                for n, behind in enumerate(_shared_out("device", devices, options.iommus))
            ),
            *(
                Vm(f"kvm{n}", vcpus, self.mm, self.memslots())
                for n, vcpus in enumerate(_shared_out("vcpu", options.vcpus, options.vms))
            ),
            *(Link(f"link{n}", (self.mm,), cpu) for n in range(links)),
            *(Gpu(f"gpu{n}", cpu, (self.mm,)) for n in range(options.gpus)),
        )

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


def _shared_out(name: str, count: int, among: int) -> list[tuple[str, ...]]:
    """``name0``, ``name1``, ... in turn to each of so many; who gets nothing is left out."""
    names = [f"{name}{n}" for n in range(count)]
    return [tuple(names[n::among]) for n in range(min(among, count))]
