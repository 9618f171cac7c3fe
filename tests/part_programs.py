"""Small worlds with the parts that others have not: swap, ATS, a new memslot; and links."""

from __future__ import annotations

from mmurace.broker.programs import Program, Step
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import DeviceRemove, Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.messages import GuestTouch, KvmAddMemslot, KvmDestroyVm, Sigkill
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.secondaries.ocxl.messages import AfuTouch, OcxlAttach, OcxlDetach
from mmurace.nodes.secondaries.ocxl.part import Link
from mmurace.nodes.world import World
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as op

MM = "mm0"
PAGES = 4
GIVEN_LATER = 4
"""The guest frame that only a new memslot gives to the guest."""


def page(number: int) -> int:
    """The address of a page."""
    return number * PAGE_SIZE


def part_world(arch: str) -> World:
    """Two CPUs, a device with a translation cache, a VM, a walker that keeps upper entries."""
    return World(
        kernel=preset("v6.6.5", arch),
        parts=(
            Unit("iommu0", ("device0",), (MM,), "cpu1", ats=True, pwc=True),
            Vm("kvm0", ("vcpu0",), MM, (Slot(0, 2, 0),)),
        ),
        gather_batch=2,
    )


def _memory(rounds: int) -> list[op.Operation]:
    """Pages that go to swap, are discarded, and come back."""
    found: list[op.Operation] = []
    for number in range(rounds):
        found += [
            *(op.Touch(MM, page(n), True, n) for n in range(PAGES)),
            op.MadviseFree(MM, page(number), page(1)),
            op.Kswapd(PAGES),
            *(op.Touch(MM, page(n), n % 2 == 0, n) for n in range(PAGES)),
            op.MadviseFree(MM, 0, page(PAGES)),
        ]
    return found


def part_programs() -> tuple[Program, ...]:
    """Reclaim beside a device that keeps translations and a guest that is given more memory."""
    first = [op.Mmap(MM, 0, page(PAGES), True, True), *_memory(1)]
    slot = KvmAddMemslot("kvm0", GIVEN_LATER, page(2), page(2))
    last = [slot, *_memory(1), op.Munmap(MM, 0, page(PAGES))]
    gone = [DeviceRemove("iommu0", "device0"), KvmDestroyVm("kvm0")]
    end = len(first) + len(last)
    device = [Dma(MM, page(n % PAGES), n % 2 == 0, n) for n in range(8)]
    guest = [GuestTouch(page(n), True, n) for n in (0, 1)]
    later = [GuestTouch(page(GIVEN_LATER + n), True, n) for n in (0, 1)]
    return (
        Program(
            "cpu0", "cpu0",
            [*(Step(o) for o in (*first, *last)),
             *(Step(o, ("device0/7", "vcpu0/4")) for o in gone)],
        ),
        Program("cpu1", "cpu1", [Step(o, ("cpu0/0",)) for o in _memory(1)]),
        Program("device0", "device0", [Step(o, ("cpu0/0",)) for o in device]),
        Program(
            "vcpu0", "vcpu0",
            [*(Step(o, ("cpu0/0",)) for o in guest),
             *(Step(o, (f"cpu0/{len(first)}",)) for o in later),
             Step(Sigkill(), (f"cpu0/{end - 1}",))],
        ),
    )  # fmt: skip


def link_world(release: str, *links: str) -> World:
    """Two processes of a POWER machine; nobody is attached to its links yet."""
    return World(
        kernel=preset(release, "ppc"),
        mms=("mm0", "mm1"),
        parts=(*tuple(Link(name, (), "cpu1") for name in links or ("link0",)),),
    )


def link_programs(lives: int = 2) -> tuple[Program, ...]:
    """Two processes that come, go and end, and an accelerator that works for whoever is there."""
    programs = []
    for number in range(2):
        mm, cpu = f"mm{number}", f"cpu{number}"
        attach, detach = OcxlAttach(mm, "link0"), OcxlDetach(mm, "link0")
        life = [
            op.Mmap(mm, page(0), page(2), True, True),
            *(op.Touch(mm, page(n), True, n) for n in range(2)),
            attach, op.MadviseDontneed(mm, page(1), page(1)), detach, op.Exit(mm),
        ]  # fmt: skip
        programs.append(Program(cpu, cpu, [Step(o) for o in life * lives]))
        attached = [f"{cpu}/{3 + at * len(life)}" for at in range(lives)]
        touches = [
            Step(AfuTouch(mm, page(n), True, n), (after,)) for after in attached for n in (0, 1)
        ]
        programs.append(Program(f"afu{number}", "link0", touches))
    return tuple(programs)
