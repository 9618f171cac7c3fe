"""Small random programs over everything that a world can have, from a seed.

Few pages and few frames, so that the parties meet: two threads of a process, its children and
another process that shares files with them, daemons, devices with and without translation caches of
their own, a guest with several memslots and an APIC-access page; on ppc links that processes attach
to and leave.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from mmurace.broker.programs import Program, Step
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondaries.iommu_sva.messages import DeviceRemove, Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.messages import (
    GuestApic,
    GuestTouch,
    KvmAddMemslot,
    KvmDestroyVm,
)
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.secondaries.ocxl.messages import AfuTouch, OcxlAttach, OcxlDetach
from mmurace.nodes.secondaries.ocxl.part import Link
from mmurace.nodes.world import World
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as op

MM, CHILD, OTHER = "mm0", "mm1", "mm2"
FILES: Final = ("data", "text")
PAGES: Final = 16
"""Pages that everybody works on; of the guest, the first half is one memslot, the rest another."""
TABLE: Final = 4
"""Pages of a leaf table."""
APIC: Final = 20
"""The page that backs the APIC-access page."""
APIC_GFN, LATER_GFN, SECOND_GFN = 63, 40, 24
STEPS: Final = 10
"""Operations of a program."""


def page(number: int) -> int:
    """The address of a page."""
    return number * PAGE_SIZE


def world_of(kernel: Kernel, seed: int) -> World:
    """One of the worlds of this kernel's machine."""
    draw = random.Random(seed)
    base = World(
        kernel=kernel,
        cpus=("cpu0", "cpu1", "cpu2", "cpu3"),
        mms=(MM, CHILD, OTHER),
        levels=3,
        entries=TABLE,
        frames=draw.choice((40, 96)),
        gather_batch=draw.choice((2, 4)),
        evict_one_in=draw.choice((0, 20)),
    )
    if kernel.machine == "ppc":
        return _with(base, Link("link0", (), "cpu1"))
    ats = draw.random() < 0.5
    unit = Unit("iommu0", ("device0", "device1"), (MM, OTHER), "cpu1", ats, draw.random() < 0.5)
    half = PAGES // 2
    slots = [Slot(0, half, 0), Slot(SECOND_GFN, half, page(half))]
    if kernel.machine == "x86":
        slots.append(Slot(APIC_GFN, 1, page(APIC), True))
    return _with(base, unit, Vm("kvm0", ("vcpu0",), MM, tuple(slots)))


def _with(base: World, *parts: Unit | Vm | Link) -> World:
    fields = {name: getattr(base, name) for name in base.__struct_fields__}
    return World(**(fields | {"parts": parts}))


# ---- operations ----------------------------------------------------------------------------------


def _place(draw: random.Random) -> tuple[int, int]:
    """Address and length, within a table or across two."""
    first = draw.randrange(PAGES)
    return page(first), page(min(draw.choice((1, 1, 2, 4, 8)), PAGES - first))


def _touch(draw: random.Random, mm: str) -> op.Operation:
    return op.Touch(mm, _place(draw)[0], draw.random() < 0.6, draw.randrange(1 << 16))


def _mmap(draw: random.Random, mm: str) -> op.Operation:
    slot = draw.randrange(PAGES // TABLE)
    start, length = page(slot * TABLE), page(TABLE)
    if draw.random() < 0.4:
        return op.Mmap(mm, start, length, True, True)
    shared = draw.random() < 0.7
    return op.Mmap(mm, start, length, True, True, draw.choice(FILES), 0, shared)


def _mremap(draw: random.Random, mm: str) -> op.Operation:
    if draw.random() < 0.5:  # a whole table
        old, new = draw.sample(range(PAGES // TABLE), 2)
        return op.Mremap(mm, page(old * TABLE), page(TABLE), page(new * TABLE), page(TABLE))
    address, length = _place(draw)
    return op.Mremap(mm, address, length, _place(draw)[0], length)


def _file(draw: random.Random, _mm: str) -> op.Operation:
    file = draw.choice(FILES)
    if draw.random() < 0.5:
        return op.Writeback(file)
    return op.Truncate(file, page(draw.choice((0, 1, 2, TABLE, TABLE))))


def _ranged(make: Callable[..., op.Operation]) -> Callable[[random.Random, str], op.Operation]:
    def operation(draw: random.Random, mm: str) -> op.Operation:
        if mm == MM and draw.random() < 0.1:
            return make(mm, page(APIC), page(1))
        return make(mm, *_place(draw))

    return operation


def _mprotect(draw: random.Random, mm: str) -> op.Operation:
    read, write = draw.choice(((True, False), (True, True), (False, False)))
    return op.Mprotect(mm, *_place(draw), read, write)


OPERATIONS: Final = (
    *(_touch,) * 12, *(_mmap,) * 2, *(_mremap,) * 2, *(_mprotect,) * 2, *(_file,) * 2,
    _ranged(op.Munmap), _ranged(op.MadviseDontneed), _ranged(op.MadviseFree),
    *(_ranged(op.MigratePages),) * 2, lambda draw, _mm: op.Kswapd(draw.randint(1, 6)),
    lambda _draw, mm: op.ClearRefs(mm),
)  # fmt: skip


def _any(draw: random.Random, mm: str) -> op.Operation:
    return draw.choice(OPERATIONS)(draw, mm)


# ---- programs ------------------------------------------------------------------------------------


def programs_of(world: World, seed: int) -> tuple[Program, ...]:
    """What the nodes of that world do."""
    draw = random.Random(~seed)
    if world.kernel.machine == "ppc":
        return _link_programs(draw)
    start = [_mmap_all(MM), *(_mmap(draw, MM) for _ in range(2))]
    start += [op.Mmap(MM, page(APIC), page(1), True, True)]
    early, late = ([_any(draw, MM) for _ in range(STEPS // 2)] for _ in range(2))
    fork = op.Fork(MM, CHILD)
    cpu0 = [*start, *early[:2], fork, *early[2:], op.Exit(CHILD), fork, *late]
    after = (f"cpu0/{len(start) - 1}",)
    cpu1 = [_any(draw, MM) for _ in range(STEPS)]
    cpu2 = [_mmap_all(OTHER), *(_mmap(draw, OTHER) for _ in range(2))]
    cpu2 += [_any(draw, draw.choice((CHILD, OTHER))) for _ in range(STEPS)]
    daemon = [draw.choice((op.Kswapd(4), op.Writeback("data"))) for _ in range(STEPS // 2)]
    return (
        _program("cpu0", cpu0),
        _program("cpu1", cpu1, after),
        _program("cpu2", cpu2),
        Program("daemon", "cpu3", [Step(o) for o in daemon]),
        *(_program(name, _dma(draw), after) for name in ("device0", "device1")),
        _program("vcpu0", _guest(draw, world), after),
        Program("ends", "cpu3", _ends(draw)),
    )


def _program(name: str, asked: list[op.Operation], after: tuple[str, ...] = ()) -> Program:
    return Program(name, name, [Step(o, after) for o in asked])


def _mmap_all(mm: str) -> op.Operation:
    return op.Mmap(mm, 0, page(PAGES), True, True)


def _dma(draw: random.Random) -> list[op.Operation]:
    mms = (MM, MM, OTHER)
    return [Dma(draw.choice(mms), _place(draw)[0], draw.random() < 0.6, n) for n in range(STEPS)]


def _guest(draw: random.Random, world: World) -> list[op.Operation]:
    half = PAGES // 2
    frames = [*range(half), *(SECOND_GFN + n for n in range(half)), LATER_GFN, LATER_GFN + 1]
    touches: list[op.Operation] = [
        GuestTouch(page(draw.choice(frames)), draw.random() < 0.6, n) for n in range(STEPS)
    ]
    if world.kernel.machine == "x86":
        touches[::4] = [GuestApic(page(APIC_GFN), False) for _ in touches[::4]]
    return touches


def _ends(draw: random.Random) -> list[Step]:
    """A memslot comes; a device and the VM go, when nobody uses them any more."""
    steps = [Step(KvmAddMemslot("kvm0", LATER_GFN, page(2), page(2)), ("cpu0/3",))]
    if draw.random() < 0.5:
        steps.append(Step(DeviceRemove("iommu0", "device1"), (f"device1/{STEPS // 2}",)))
    if draw.random() < 0.5:
        steps.append(Step(KvmDestroyVm("kvm0"), (f"vcpu0/{STEPS - 1}",)))
    return steps


def _link_programs(draw: random.Random) -> tuple[Program, ...]:
    """Processes that attach to a link, work beside its accelerator, leave it, and end."""
    found = []
    for number, mm in enumerate((MM, CHILD)):
        life: list[op.Operation] = [_mmap_all(mm), OcxlAttach(mm, "link0")]
        life += [_any(draw, mm) for _ in range(STEPS // 2)]
        life += [OcxlDetach(mm, "link0")] if draw.random() < 0.7 else []
        life += [op.Exit(mm)]
        cpu = f"cpu{number}"
        found.append(_program(cpu, life * 2))
        works = [f"{cpu}/{at}" for at in (1, len(life) + 1) for _ in range(STEPS // 2)]
        touches = [
            Step(AfuTouch(mm, _place(draw)[0], draw.random() < 0.6, n), (after,))
            for n, after in enumerate(works)
        ]
        found.append(Program(f"afu{number}", "link0", touches))
    found.append(_program("cpu2", [_any(draw, draw.choice((MM, CHILD))) for _ in range(STEPS)]))
    return tuple(found)
