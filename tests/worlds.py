"""A small world with every kind of node, and programs that use all of them."""

from __future__ import annotations

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program, Step
from mmurace.broker.schedules import RandomWalk, Schedule
from mmurace.broker.simulator import Observer, Simulator
from mmurace.nodes.build import build_all
from mmurace.nodes.driver import Driver
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.messages import GuestApic, GuestTouch
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.world import World
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as op
from mmurace.protocol.trace import Ending

MM = "mm0"
APIC = 32 * PAGE_SIZE
SETUP = ("cpu0/9",)
"""What the other programs come after: everything is mapped and touched."""


def small_world(release: str = "v6.6.5", arch: str = "x86", **switches: object) -> World:
    """Two CPUs, a device behind an IOMMU, a VM with one vCPU and on x86 an APIC page."""
    slots = (Slot(0, 16, 0), Slot(32, 1, APIC, arch == "x86"))
    return World(
        kernel=preset(release, arch, switches),
        cpus=("cpu0", "cpu1"),
        parts=(Unit("iommu0", ("device0",), (MM,), "cpu1"), Vm("kvm0", ("vcpu0",), MM, slots)),
        gather_batch=2,
    )


WHOLE_RANGES: dict[str, object] = {"sva_decoder": "exact"}
"""For releases up to v5.10 on x86: their VT-d driver flushes an unaligned range only in part."""


def page(number: int) -> int:
    """The address of a page."""
    return number * PAGE_SIZE


def small_programs(arch: str = "x86") -> tuple[Program, ...]:
    """Every operation at least once, all four initiators at the same pages."""
    cpu0: list[op.Operation] = [
        op.Mmap(MM, 0, page(8), True, True),
        op.Mmap(MM, APIC, PAGE_SIZE, True, True),
        op.Touch(MM, APIC, True, 1),
        op.Touch(MM, page(7), False),
        *(op.Touch(MM, page(i), True, 100 + i) for i in range(6)),
        op.Munmap(MM, 0, page(4)),
        op.Mmap(MM, 0, page(4), True, True),
        op.MigratePages(MM, APIC, PAGE_SIZE),
        op.Mprotect(MM, page(4), page(2), True, False),
        op.Touch(MM, page(4), False),
        op.Mprotect(MM, page(4), page(2), True, True),
        op.Touch(MM, page(4), True, 7),
        op.Touch(MM, page(7), True, 8),
        op.MadviseDontneed(MM, 0, page(8)),
        op.Brk(MM, page(48)),
        op.Brk(MM, page(50)),
        op.Touch(MM, page(49), True, 9),
        op.Brk(MM, page(48)),
        op.Munmap(MM, 0, page(8)),
    ]
    cpu1 = [
        op.Mmap(MM, page(40), page(8), True, True),
        *(op.Touch(MM, page(40 + i), True, 200 + i) for i in range(6)),
        op.MigratePages(MM, page(40), page(2)),
    ]
    device = [Dma(MM, page(i % 4), i % 2 == 0, 300 + i) for i in range(8)]
    vcpu: list[op.Operation] = [GuestTouch(page(i % 4), True, 400 + i) for i in range(4)]
    vcpu += [(GuestApic if arch == "x86" else GuestTouch)(APIC, False) for _ in range(4)]
    return (
        Program("cpu0", "cpu0", [Step(o) for o in cpu0]),
        Program("cpu1", "cpu1", [Step(o, SETUP) for o in cpu1]),
        Program("device0", "device0", [Step(o, SETUP) for o in device]),
        Program("vcpu0", "vcpu0", [Step(o, SETUP) for o in vcpu]),
    )


def run_small(
    world: World, seed: int, observer: Observer | None = None, schedule: Schedule | None = None
) -> tuple[Ending, dict[str, Driver]]:
    """Run the small programs in the simulator."""
    drivers = build_all(world, seed)
    exchange = Exchange(Feeder(small_programs(world.kernel.machine)))
    simulator = Simulator(drivers, exchange, schedule or RandomWalk(seed), observer)
    ending = simulator.run(deliveries_max=100_000)
    assert exchange.counts.balance(exchange.pending) == 0
    return ending, drivers
