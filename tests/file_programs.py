"""Random programs of processes that share files, while these are reclaimed and truncated."""

from __future__ import annotations

import random
from typing import Final

from mmurace.broker.programs import Program, Step
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.messages import GuestTouch
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.world import World
from mmurace.protocol.messages import program as op
from tests.worlds import WHOLE_RANGES, page

MM, CHILD, OTHER = "mm0", "mm1", "mm2"
FILE: Final = "data"
PAGES: Final = 4
SLOTS: Final = 4
"""Places of as many pages each: two of the file, shared; one private; one of anonymous memory."""
DSB: Final = {"batched_pending_flush": "flush_tlb_mm"}
_EARLY: Final = {"mremap_sec_flush": "beside_cpu_flush"}
KERNELS: Final[tuple[tuple[str, str, dict[str, object]], ...]] = (
    ("v4.15", "x86", {"mremap_cpu_flush": "under_both_ptl", **_EARLY, **WHOLE_RANGES}),
    ("v5.8", "x86", {**_EARLY, **WHOLE_RANGES}),
    ("v6.2", "x86", {**_EARLY}),
    ("v6.2", "arm64", {"refetch_on_perm_fault": True, **_EARLY}),
    ("v6.6.5", "x86", {}),
    ("v6.6.5", "arm64", {**DSB}),
)
"""Releases, cured of what their moves, their batches and their IOMMUs are known for."""


def file_world(release: str, arch: str, switches: dict[str, object], frames: int = 64) -> World:
    """Three CPUs and one for daemons, a device, a guest, and three processes."""
    return World(
        kernel=preset(release, arch, switches),
        cpus=("cpu0", "cpu1", "cpu2", "cpu3"),
        mms=(MM, CHILD, OTHER),
        parts=(
            Unit("iommu0", ("device0",), (MM,), "cpu1"),
            Vm("kvm0", ("vcpu0",), MM, (Slot(0, SLOTS * PAGES, 0),)),
        ),
        frames=frames,
        gather_batch=2,
        evict_one_in=20,
    )


def map_slot(mm: str, slot: int) -> op.Operation:
    """What belongs into a slot."""
    start, length = page(slot * PAGES), page(PAGES)
    if slot == 0:
        return op.Mmap(mm, start, length, True, True)
    return op.Mmap(mm, start, length, True, True, FILE, 0, slot != 1)


def _place(draw: random.Random) -> tuple[int, int]:
    """A part of a slot: address and length."""
    first = draw.randrange(PAGES)
    return page(draw.randrange(SLOTS) * PAGES + first), page(draw.randint(1, PAGES - first))


def _step(draw: random.Random, mm: str) -> op.Operation:
    way, (address, length) = draw.randrange(20), _place(draw)
    if way < 12:
        return op.Touch(mm, address, draw.random() < 0.6, draw.randrange(1 << 16))
    if way < 15:
        return map_slot(mm, draw.randrange(SLOTS))
    if way == 15:
        return op.Munmap(mm, address, length)
    if way == 16:
        return op.Mprotect(mm, address, length, True, draw.random() < 0.5)
    if way == 17:
        return op.MadviseDontneed(mm, address, length)
    if way == 18:
        return op.MigratePages(mm, address, page(1))
    old, new = draw.sample((1, 2, 3), 2)
    return op.Mremap(mm, page(old * PAGES), page(PAGES), page(new * PAGES), page(PAGES))


def file_programs(
    seed: int, steps: int, daemons: tuple[op.Operation, ...], sizes: tuple[int, ...] = ()
) -> tuple[Program, ...]:
    """Two threads, a child that comes and goes, another process, a device, a guest, daemons.

    ``sizes`` are those that a truncation chooses from, in pages.
    """
    draw = random.Random(seed)
    cpu0: list[op.Operation] = [map_slot(MM, slot) for slot in range(SLOTS)]
    for index in range(steps):
        cpu0 += [op.Exit(CHILD), op.Fork(MM, CHILD)] if index % 8 == 7 else []
        cpu0.append(_step(draw, MM))
    other: list[op.Operation] = [map_slot(OTHER, slot) for slot in range(SLOTS)]
    for _ in range(steps):
        cut = sizes and draw.random() < 0.15
        mm = draw.choice((CHILD, OTHER, OTHER))
        other.append(op.Truncate(FILE, page(draw.choice(sizes))) if cut else _step(draw, mm))
    device = [Dma(MM, _place(draw)[0], draw.random() < 0.6, n) for n in range(steps)]
    guest = [GuestTouch(_place(draw)[0], draw.random() < 0.6, n) for n in range(steps)]
    daemon = [draw.choice(daemons) for _ in range(steps)] if daemons else []
    return (
        Program("cpu0", "cpu0", [Step(o) for o in cpu0]),
        Program("cpu1", "cpu1", [Step(_step(draw, MM)) for _ in range(steps)]),
        Program("cpu2", "cpu2", [Step(o) for o in other]),
        Program("daemon", "cpu3", [Step(o) for o in daemon]),
        Program("device0", "device0", [Step(o) for o in device]),
        Program("vcpu0", "vcpu0", [Step(o) for o in guest]),
    )
