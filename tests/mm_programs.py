"""Random programs of several processes: moves, forks, files, beside a device and a guest."""

from __future__ import annotations

import random

from mmurace.broker.programs import Program, Step
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.messages import GuestTouch
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.world import World
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as op

SLOTS, PAGES = 6, 4
FILES = ("data", "text")
CHILDREN = ("mm1", "mm2")


def several_world(release: str, arch: str) -> World:
    """Three CPUs, three mms, a device and a guest of the first one, few frames."""
    return World(
        kernel=preset(release, arch),
        cpus=("cpu0", "cpu1", "cpu2"),
        mms=("mm0", *CHILDREN),
        parts=(
            Unit("iommu0", ("device0",), ("mm0",), "cpu1"),
            Vm("kvm0", ("vcpu0",), "mm0", (Slot(0, SLOTS * PAGES, 0),)),
        ),
        levels=2,
        entries=8,
        frames=96,
        gather_batch=3,
        evict_one_in=20,
    )


def _place(draw: random.Random) -> tuple[int, int]:
    """A part of a slot: address and length."""
    first = draw.randrange(PAGES)
    pages = draw.randint(1, PAGES - first)
    return (draw.randrange(SLOTS) * PAGES + first) * PAGE_SIZE, pages * PAGE_SIZE


def _mmap(draw: random.Random, mm: str) -> op.Operation:
    address, length = _place(draw)
    if draw.random() < 0.4:
        slot = address // (PAGES * PAGE_SIZE) * PAGES * PAGE_SIZE
        return op.Mmap(mm, slot, PAGES * PAGE_SIZE, True, True)
    offset = draw.randrange(PAGES) * PAGE_SIZE
    shared = draw.random() < 0.5
    return op.Mmap(mm, address, length, True, True, draw.choice(FILES), offset, shared)


def _mremap(draw: random.Random, mm: str) -> op.Operation:
    address, length = _place(draw)
    to = address if draw.random() < 0.2 else _place(draw)[0]
    return op.Mremap(mm, address, length, to, draw.randint(1, PAGES) * PAGE_SIZE)


def _touch(draw: random.Random, mm: str) -> op.Operation:
    address, _ = _place(draw)
    return op.Touch(mm, address, draw.random() < 0.6, draw.randrange(1 << 16))


def _other(draw: random.Random, mm: str) -> op.Operation:
    address, length = _place(draw)
    kind = draw.randrange(8)
    if kind == 0:
        return op.Munmap(mm, address, length)
    if kind == 1:
        return op.Mprotect(mm, address, length, True, draw.random() < 0.5)
    if kind == 2:
        return op.MadviseDontneed(mm, address, length)
    if kind == 3:
        return op.Truncate(draw.choice(FILES), draw.choice((0, 2, 8, 8)) * PAGE_SIZE)
    return op.MigratePages(mm, address, length)


def _step(draw: random.Random, mm: str) -> op.Operation:
    way = draw.random()
    if way < 0.45:
        return _touch(draw, mm)
    if way < 0.65:
        return _mmap(draw, mm)
    return _mremap(draw, mm) if way < 0.8 else _other(draw, mm)


def several_programs(seed: int, steps: int) -> tuple[Program, ...]:
    """Two threads of the first process, a child of it again and again, the device, the guest."""
    draw = random.Random(seed)
    everything = SLOTS * PAGES * PAGE_SIZE
    cpu0: list[op.Operation] = [op.Mmap("mm0", 0, everything, True, True)]
    for index in range(steps):
        cpu0 += [op.Exit("mm1"), op.Fork("mm0", "mm1")] if index % 10 == 9 else []
        cpu0.append(_step(draw, "mm0"))
    cpu2: list[op.Operation] = []
    for index in range(steps):
        cpu2 += [op.Execve("mm2"), op.Fork("mm1", "mm2")] if index % 15 == 14 else []
        cpu2.append(_step(draw, draw.choice(CHILDREN)))
    device = [Dma("mm0", _place(draw)[0], draw.random() < 0.6, n) for n in range(steps)]
    guest = [GuestTouch(_place(draw)[0], draw.random() < 0.6, n) for n in range(steps)]
    return (
        Program("cpu0", "cpu0", [Step(o) for o in cpu0]),
        Program("cpu1", "cpu1", [Step(_step(draw, "mm0")) for _ in range(steps)]),
        Program("cpu2", "cpu2", [Step(o) for o in cpu2]),
        Program("device0", "device0", [Step(o) for o in device]),
        Program("vcpu0", "vcpu0", [Step(o) for o in guest]),
    )
