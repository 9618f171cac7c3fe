"""Random small runs for two opinions: worlds, programs and schedules, each from one number."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, get_args, get_type_hints

from mmurace.broker.programs import Program, Step
from mmurace.broker.schedules import RandomWalk, Schedule
from mmurace.explorer.sample.strategies import Pct, Pos, Stall
from mmurace.nodes.kernel.variant import Kernel, preset
from mmurace.nodes.kernel.variant.switch import Value
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.messages import GuestApic, GuestTouch
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.secondaries.ocxl.messages import AfuTouch, OcxlAttach, OcxlDetach
from mmurace.nodes.secondaries.ocxl.part import Link
from mmurace.nodes.secondary import Part
from mmurace.nodes.world import World
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as op
from mmurace.scenarios.catalogue import Race, load_all
from mmurace.scenarios.spec import RunSpec
from tests.second_opinion.mistakes import MISTAKES

PAGES: Final = 6
"""Pages that a program uses, from address 0."""
APIC: Final = 8
"""The page of the APIC, and its guest frame."""
FILE: Final = "data"
GOOD: Final = (("v6.6.5", "x86"), ("v6.6", "arm64"), ("v5.10", "x86"), ("v6.2", "arm64"),
               ("v5.4", "ppc"), ("v6.6", "ppc"))  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """All that a run needs."""

    name: str
    world: World
    programs: tuple[Program, ...]
    schedule: Schedule
    seed: int
    spec: RunSpec | None = None
    """The race of the catalogue that it is, with its recipe."""
    mistake: str = ""
    """One that the kernel code makes."""


def draw(seed: int, number: int) -> Drawn:
    """Run ``number`` of a seed: races of the catalogue, and random programs."""
    dice = random.Random(f"{seed}/{number}")
    return _race(dice) if dice.random() < 0.4 else _small(dice)


def _race(dice: random.Random) -> Drawn:
    race, name = dice.choice(cases())
    seed, recipe = dice.getrandbits(32), dice.random() < 0.5
    return of_race(races()[race], name, _schedule(dice), seed, recipe)


def of_race(
    race: Race, kernel: str, schedule: Schedule, seed: int, recipe: bool = True, mistake: str = ""
) -> Drawn:
    """A race on one of its kernels."""
    spec = race.run(kernel, seed)
    programs = spec.programs()
    return Drawn(spec.name, spec.world, programs, schedule, seed, spec if recipe else None, mistake)


@cache
def races() -> dict[str, Race]:
    """The catalogue."""
    return load_all()


@cache
def cases() -> tuple[tuple[str, str], ...]:
    """(race, kernel) of the whole catalogue."""
    return tuple((race.id, case.name) for race in races().values() for case in race.kernels)


def _schedule(dice: random.Random) -> Schedule:
    kinds: tuple[Callable[[int], Schedule], ...] = (
        RandomWalk, Pos, Stall, lambda seed: Pct(seed, 3, 1000),
    )  # fmt: skip
    return dice.choice(kinds)(dice.getrandbits(32))


def _kernel(dice: random.Random) -> Kernel:
    """That of a row of the catalogue, good or bad, or a release as it is."""
    if dice.random() < 0.25:
        return preset(*dice.choice(GOOD))
    race, name = dice.choice(cases())
    kernel = races()[race].kernel_case(name).kernel
    return _patched(dice, kernel) if dice.random() < 0.6 else kernel


def _patched(dice: random.Random, kernel: Kernel) -> Kernel:
    """The same with a switch or two set at random; as it is if they contradict others."""
    chosen = dice.sample(values(kernel), dice.randint(1, 2))
    try:
        return kernel.replace(**{name: dice.choice(of) for name, of in chosen}).validate("drawn")
    except UserError:
        return kernel


def values(kernel: Kernel) -> list[tuple[str, tuple[Value, ...]]]:
    """Every switch with the values that it can have."""
    hints = {
        name: hint for group in kernel.groups for name, hint in get_type_hints(type(group)).items()
    }
    return [
        (name, get_args(hints[name]) or (False, True))
        for name in sorted(kernel.switches())
        if hints[name] is bool or get_args(hints[name])
    ]  # fmt: skip


def _small(dice: random.Random) -> Drawn:
    kernel = _kernel(dice)
    mms = ("mm0", "mm1", "mm2")[: dice.randint(1, 3)]
    cpus = ("cpu0", "cpu1", "cpu2")[: dice.randint(2, 3)]
    world = World(
        kernel=kernel,
        cpus=cpus,
        mms=mms,
        parts=_parts(dice, kernel.machine, mms),
        frames=dice.choice((14, 18, 24, 40, 64)),
        gather_batch=dice.randint(1, 3),
        tlb_entries=dice.choice((2, 64)),
        evict_one_in=dice.choice((0, 0, 10)),
    )
    programs = _programs(dice, world)
    mistake = dice.choice(tuple(MISTAKES)) if dice.random() < 0.15 else ""
    name = f"random on {kernel.release} {kernel.machine} {mistake}"
    return Drawn(name, world, programs, _schedule(dice), dice.getrandbits(32), None, mistake)


def _parts(dice: random.Random, machine: str, mms: tuple[str, ...]) -> tuple[Part, ...]:
    if machine == "ppc":
        return (Link("link0", dice.choice(((), ("mm0",), mms)), "cpu1"),)
    unit = Unit("iommu0", ("device0",), dice.choice((("mm0",), mms)), "cpu1",
                ats=dice.random() < 0.4, pwc=dice.random() < 0.4)  # fmt: skip
    apic = (Slot(APIC, 1, APIC * PAGE_SIZE, True),) if dice.random() < 0.5 else ()
    vcpus = ("vcpu0", "vcpu1")[: dice.randint(1, 2)]
    guest = Vm("kvm0", vcpus, "mm0", (Slot(0, PAGES, 0), *apic))
    both: tuple[tuple[Part, ...], ...] = ((unit,), (guest,), (unit, guest), ())
    return dice.choice(both)


# ---- programs ------------------------------------------------------------------------------------


def _programs(dice: random.Random, world: World) -> tuple[Program, ...]:
    setup: list[op.Operation] = [_mmap(dice, "mm0", 0, PAGES)]
    if any(isinstance(part, Vm) and len(part.slots) > 1 for part in world.parts):
        setup += [op.Mmap("mm0", APIC * PAGE_SIZE, PAGE_SIZE, True, True),
                  op.Touch("mm0", APIC * PAGE_SIZE, True, 1)]  # fmt: skip
    setup += [_touch(dice, "mm0") for _ in range(dice.randint(0, 4))]
    ready = (f"cpu0/{len(setup) - 1}",)
    length = dice.choice((2, 4, 8))
    programs = []
    for cpu in world.cpus:
        steps = [_step(dice, world) for _ in range(dice.randint(1, length))]
        if cpu == "cpu0":
            programs.append(Program(cpu, cpu, [Step(o) for o in (*setup, *steps)]))
        else:
            programs.append(_when(ready, cpu, steps))
    programs += [_when(ready, *asked) for asked in _accesses(dice, world, length)]
    return tuple(programs)


def _when(ready: tuple[str, ...], node: str, asked: Sequence[op.Operation]) -> Program:
    """A program that waits for others once."""
    return Program(node, node, [Step(o, () if at else ready) for at, o in enumerate(asked)])


def _accesses(
    dice: random.Random, world: World, length: int
) -> list[tuple[str, Sequence[op.Operation]]]:  # fmt: skip
    """Those of devices, guests and accelerators."""
    found: list[tuple[str, Sequence[op.Operation]]] = []
    count = dice.randint(1, 2 * length)
    for part in world.parts:
        if isinstance(part, Unit):
            found.append(("device0", [_dma(dice, part) for _ in range(count)]))
        elif isinstance(part, Vm):
            found += [(vcpu, [_guest(dice, part) for _ in range(count)]) for vcpu in part.vcpus]
        elif isinstance(part, Link) and part.mms:
            found.append(("link0", [_afu(dice, part) for _ in range(count)]))
    return found


def _page(dice: random.Random) -> int:
    return dice.choice((0, 0, 1, 1, 2, 3, 4, 5)) * PAGE_SIZE


def _place(dice: random.Random) -> tuple[int, int]:
    """A page and the length of what begins there."""
    start = _page(dice)
    most = PAGES - start // PAGE_SIZE
    return start, dice.randint(1, most) * PAGE_SIZE


def _dma(dice: random.Random, unit: Unit) -> op.Operation:
    return Dma(dice.choice(unit.mms), _page(dice), dice.random() < 0.6, dice.getrandbits(16))


def _afu(dice: random.Random, link: Link) -> op.Operation:
    mm = dice.choice(link.mms)
    return AfuTouch(mm, _page(dice), dice.random() < 0.6, dice.getrandbits(16))


def _guest(dice: random.Random, vm: Vm) -> op.Operation:
    if len(vm.slots) > 1 and dice.random() < 0.4:
        return GuestApic(APIC * PAGE_SIZE, False)
    return GuestTouch(_page(dice), dice.random() < 0.6, dice.getrandbits(16))


def _touch(dice: random.Random, mm: str) -> op.Operation:
    return op.Touch(mm, _page(dice), dice.random() < 0.6, dice.getrandbits(16))


def _mmap(dice: random.Random, mm: str, start: int, pages: int) -> op.Operation:
    file, shared = dice.choice((("", False), ("", False), (FILE, True), (FILE, False)))
    return op.Mmap(mm, start, pages * PAGE_SIZE, True, True, file, start if file else 0, shared)


def _step(dice: random.Random, world: World) -> op.Operation:
    mm = dice.choice(world.mms)
    if dice.random() < 0.4:
        return _touch(dice, mm)
    start, length = _place(dice)
    kinds: list[Callable[[], op.Operation]] = [
        lambda: op.Munmap(mm, start, length),
        lambda: _mmap(dice, mm, start, length // PAGE_SIZE),
        lambda: op.Mprotect(mm, start, length, True, dice.random() < 0.4),
        lambda: op.MadviseDontneed(mm, start, length),
        lambda: op.MadviseFree(mm, start, length),
        lambda: op.MigratePages(mm, start, length),
        lambda: op.Kswapd(dice.randint(1, 3)),
        lambda: op.Mremap(mm, start, PAGE_SIZE, _page(dice), PAGE_SIZE),
        lambda: op.ClearRefs(mm),
        lambda: op.Truncate(FILE, dice.choice((0, 1, PAGES)) * PAGE_SIZE),
        lambda: op.Writeback(FILE),
        lambda: op.Exit(mm) if mm != "mm0" else op.MadviseDontneed(mm, start, length),
        lambda: _fork(dice, world),
    ]
    if any(isinstance(part, Link) and "mm0" in part.mms for part in world.parts):
        kinds += [lambda: OcxlDetach("mm0", "link0"), lambda: OcxlAttach("mm0", "link0")]
    return dice.choice(kinds)()


def _fork(dice: random.Random, world: World) -> op.Operation:
    if len(world.mms) < 2:
        return op.ClearRefs("mm0")
    return op.Fork("mm0", dice.choice(world.mms[1:]))
