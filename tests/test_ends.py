"""Devices and VMs that go: what dies takes its caches along, and what cannot be is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from mmurace.broker.programs import Program, Step
from mmurace.explorer.run.session import run_on_processes, simulate
from mmurace.explorer.sample.explore import Options, explore
from mmurace.nodes.build import build
from mmurace.nodes.kernel.errno import ENODEV
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import (
    AtsTranslate,
    DeviceRemove,
    Dma,
    InvalidateRequest,
    PriRequest,
    SurpriseDown,
    Translation,
)
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.messages import GuestApic, GuestTouch, KvmDestroyVm
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.world import World
from mmurace.protocol import records as r
from mmurace.protocol.errors import UserError
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.memory import Flag, FrameRead, Word
from mmurace.protocol.pte import NONE
from mmurace.scenarios.operations import programs_from
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script
from tests.runs import nothing_left_behind
from tests.test_nodes import LEAF, Hand, replies
from tests.worlds import MM, page

__all__ = ["nothing_left_behind"]

KERNELS = [("v6.6.5", "x86"), ("v6.6.5", "arm64"), ("v5.10", "x86")]


def world_of(release: str = "v6.6.5", arch: str = "x86") -> World:
    """A device with an ATC, and a VM with two vCPUs and on x86 an APIC page."""
    slots = (Slot(0, 4, 0), Slot(32, 1, page(8), arch == "x86"))
    return World(
        kernel=preset(release, arch), cpus=("cpu0", "cpu1"),
        parts=(
            Unit("iommu0", ("device0",), (MM,), "cpu1", ats=True),
            Vm("kvm0", ("vcpu0", "vcpu1"), MM, slots),
        ),
    )  # fmt: skip


# ---- devices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("release", "arch"), KERNELS)
def test_a_device_that_is_gone_has_no_translations(release: str, arch: str) -> None:
    """One that is unplugged while a page that it knows is unmapped, in many orders."""
    programs = (
        Program("cpu0", "cpu0", [
            Step(op.Mmap(MM, 0, page(2), True, True)),
            Step(op.Touch(MM, 0, True, 1)),
            Step(op.Munmap(MM, 0, page(1)), ("device0/0",)),
            Step(op.Munmap(MM, page(1), page(1))),
        ]),
        Program("cpu1", "cpu1", [Step(DeviceRemove("iommu0", "device0"), ("device0/0",))]),
        Program("device0", "device0", [
            Step(Dma(MM, 0, True, 2), ("cpu0/1",)),
            *(Step(Dma(MM, page(at % 2), True, at)) for at in range(4)),
        ]),
    )  # fmt: skip
    spec = RunSpec("t", world_of(release, arch), 0, Script(programs))
    found = explore(spec, Options(schedules=100))
    assert found.violated == 0, found.violations
    assert found.incomplete == 0


def keeping(write: bool = False) -> Hand:
    """A device that has asked for a translation."""
    hand = Hand(build("device0", world_of(), 0))
    hand.request(Dma(MM, page(1), write), "d/0")
    return hand


def result(hand: Hand) -> list[int]:
    """What its DMAs returned."""
    return [end.result for end in hand.seen(r.OpEnd)]


def test_what_it_has_sent_arrives_before_it_counts_as_gone() -> None:
    hand = keeping()
    hand.answer(AtsTranslate, Translation(LEAF, "iotlb:x"))
    assert replies(hand.request(SurpriseDown(), "s/0.0")) == []
    assert len(hand.seen(r.Evict)) == 1
    assert replies(hand.request(InvalidateRequest(MM, 0, page(2)), "i/0.0")) == []
    assert {"s/0.0~", "i/0.0~"} <= set(replies(hand.answer(FrameRead, Word(0))))
    assert hand.seen(r.Fill) != []


def test_it_uses_no_answer_that_comes_later() -> None:
    hand = keeping()
    assert replies(hand.request(SurpriseDown(), "s/0.0")) == []
    assert "s/0.0~" in replies(hand.answer(AtsTranslate, Translation(LEAF, "iotlb:x")))
    assert hand.seen(r.Fill) == []
    assert hand.sent == []
    assert result(hand) == [-ENODEV]


def test_nor_does_it_ask_again_after_a_page_request() -> None:
    hand = keeping()
    hand.answer(AtsTranslate, Translation(NONE, ""))
    assert replies(hand.request(SurpriseDown(), "s/0.0")) == ["s/0.0~"]
    hand.answer(PriRequest, Flag(True))
    assert hand.sent == []
    hand.request(Dma(MM, page(2), True), "d/1")
    assert hand.sent == []
    assert result(hand) == [-ENODEV, -ENODEV]


# ---- VMs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", ["v6.6.5", "v5.10"])
def test_the_vmcs_goes_with_its_vm(release: str) -> None:
    """The page that it named may be migrated; nobody is left to be asked to look again."""
    programs = (
        Program("cpu0", "cpu0", [
            Step(op.Mmap(MM, page(8), page(1), True, True)),
            Step(op.Touch(MM, page(8), True, 1)),
            Step(KvmDestroyVm("kvm0"), ("vcpu0/0",)),
            Step(op.MigratePages(MM, page(8), page(1))),
        ]),
        Program("vcpu0", "vcpu0", [Step(GuestApic(page(32), True), ("cpu0/1",))]),
    )  # fmt: skip
    spec = RunSpec("t", world_of(release), 0, Script(programs))
    found = explore(spec, Options(schedules=60))
    assert found.violated == 0, found.violations


DESTROY = {"op": "kvm_destroy_vm", "vm": "kvm0"}
TOUCH = {"op": "guest_touch", "gpa": 0}
SLOT = {"op": "kvm_add_memslot", "vm": "kvm0", "gfn": 9, "address": 0, "pages": 1}

Steps = list[dict[str, Any]]


def loaded(**programs: Steps) -> tuple[Program, ...]:
    """Programs of a file, by node."""
    tables = [{"node": node, "steps": steps} for node, steps in programs.items()]
    return programs_from(tables, world_of(), "file")


@pytest.mark.parametrize(
    ("programs", "where"),
    [
        ({"cpu0": [DESTROY], "vcpu0": [TOUCH]}, "file[0].steps[0]: destroys"),
        ({"cpu0": [DESTROY], "vcpu0": [TOUCH | {"after": ["cpu0/0"]}]}, "file[1].steps[0]: comes"),
        ({"cpu0": [DESTROY | {"after": ["vcpu0/1"]}], "vcpu0": [TOUCH | {"repeat": 3}]},
         'after = ["vcpu0/2"]'),
        ({"cpu0": [DESTROY], "cpu1": [SLOT]}, "file[0].steps[0]: destroys"),
        ({"cpu0": [DESTROY, SLOT]}, "file[0].steps[1]: comes"),
        ({"cpu0": [DESTROY], "cpu1": [DESTROY]}, "file[1].steps[0]: cpu0/0"),
        ({"cpu0": [DESTROY | {"vm": "kvm9"}]}, "file[0].steps[0].vm"),
        ({"cpu0": [{"op": "sigkill"}]}, "file[0].steps[0].op"),
        ({"cpu0": [{"op": "device_remove", "unit": "iommu9", "device": "device0"}]}, ".unit"),
        ({"cpu0": [{"op": "device_remove", "unit": "iommu0", "device": "device9"}]}, ".device"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_its_key(programs: dict[str, Steps], where: str) -> None:
    with pytest.raises(UserError) as error:
        loaded(**programs)
    assert where in str(error.value)


@pytest.mark.parametrize(
    "programs",
    [
        {"cpu0": [SLOT, DESTROY | {"after": ["vcpu0/0"]}], "vcpu0": [TOUCH]},
        {"cpu0": [DESTROY | {"after": ["cpu1/0"]}], "vcpu0": [TOUCH],
         "cpu1": [{"op": "kswapd", "pages": 1, "after": ["vcpu0/0"]}]},
        {"cpu0": [DESTROY | {"after": ["vcpu0/1"]}], "vcpu0": [TOUCH, {"op": "sigkill"}, TOUCH]},
    ],
)  # fmt: skip
def test_what_can_be_is_not(programs: dict[str, Steps]) -> None:
    assert loaded(**programs)


# ---- what is not there from the start ------------------------------------------------------------

CREATE = {"op": "kvm_create_vm", "vm": "kvm0"}


def later(**programs: Steps) -> tuple[Program, ...]:
    """Programs of a file whose VM is to be created."""
    world = world_of()
    vms = [msgspec.structs.replace(vm, created=False) for vm in world.parts_of(Vm)]
    tables = [{"node": node, "steps": steps} for node, steps in programs.items()]
    return programs_from(tables, world.with_parts(Vm, vms), "file")


@pytest.mark.parametrize(
    ("programs", "where"),
    [
        ({"vcpu0": [TOUCH]}, "file[0].steps[0]: kvm0 is not there"),
        ({"cpu0": [CREATE], "vcpu0": [TOUCH]}, 'after = ["cpu0/0"]'),
        ({"cpu0": [CREATE], "cpu1": [SLOT]}, "file[1].steps[0]: kvm0 is not there"),
        ({"cpu0": [DESTROY, CREATE]}, "file[0].steps[0]: kvm0 is not there"),
        ({"cpu0": [CREATE, CREATE]}, "file[0].steps[1]: creates kvm0, and cpu0/0"),
    ],
)
def test_nothing_is_done_with_what_is_not_there_yet(programs: dict[str, Steps], where: str) -> None:
    with pytest.raises(UserError) as error:
        later(**programs)
    assert where in str(error.value)


def test_what_is_there_is_not_created() -> None:
    with pytest.raises(UserError) as error:
        loaded(cpu0=[CREATE])
    assert "it is there from the start" in str(error.value)


def test_what_is_created_may_be_used_and_destroyed() -> None:
    after = {"after": ["cpu0/0"]}
    assert later(cpu0=[CREATE, DESTROY | {"after": ["vcpu0/0"]}], vcpu0=[TOUCH | after])


def busy() -> RunSpec:
    """A VM is destroyed while a vCPU is busy; not read from a file."""
    mapped = [
        Step(op.Mmap(MM, 0, page(4), True, True)),
        Step(KvmDestroyVm("kvm0"), ("vcpu0/0",)),
    ]
    guest = [Step(GuestTouch(page(at), True, 1), ("cpu0/0",)) for at in range(4)]
    programs = (Program("cpu0", "cpu0", mapped), Program("vcpu0", "vcpu0", guest))
    return RunSpec("t", world_of(), 0, Script(programs))


LATER = "kvm0 is destroyed, and vcpu0 is in KVM_RUN then or later"


def test_what_no_file_tells_is_said_when_it_happens() -> None:
    with pytest.raises(UserError) as error:
        simulate(busy())
    assert LATER in str(error.value)


@pytest.mark.processes
def test_so_it_is_on_processes(tmp_path: Path) -> None:
    outcome = run_on_processes(busy().save(tmp_path), tmp_path)
    assert outcome.status == "broken"
    assert LATER in outcome.detail
    assert "Traceback" not in outcome.detail
