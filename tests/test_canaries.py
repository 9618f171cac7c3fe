"""Mistakes planted here and known to nobody else: exploration must find each by the harm it does.

Each plants a kernel function with one access moved, as a patch to the kernel might.  Obligations
and bracket rules are off, so what counts is memory that was reached and should not have been.
The same schedules without the mistake must break no rule at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mmurace.broker.programs import Program, Step
from mmurace.explorer.sample.explore import Exploration, Options, explore
from mmurace.nodes.cpu import Processor
from mmurace.nodes.kernel import gup
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.kvm import kvm_main, vmx
from mmurace.nodes.secondaries.kvm import mmu as kvm_mmu
from mmurace.nodes.secondaries.kvm.messages import (
    GuestTouch,
    InProgress,
    MmuLock,
    MmuUnlock,
    RetryWait,
    SeqBump,
    SeqRead,
    SpteSet,
)
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.secondaries.kvm.vcpu import Vcpu
from mmurace.nodes.world import World
from mmurace.oracle.rules.table import ids_of, rules
from mmurace.oracle.violation import Violation
from mmurace.protocol import pte as ptes
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import PAGE_SHIFT, PAGE_SIZE
from mmurace.protocol.messages import processor as p
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.base import Ack
from mmurace.scenarios.catalogue import find
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script

SEED = 7
SCHEDULES = 2_000
"""An exploration gives up after so many."""
Plant = Callable[[pytest.MonkeyPatch], None]


# ---- the mistakes ------------------------------------------------------------------------------


async def hva_of(cpu: Any, vm: str, gfn: int) -> int:
    """``gfn_to_hva``."""
    slot = await kvm_mmu.gfn_to_memslot(cpu, vm, gfn)
    assert slot is not None
    return kvm_mmu.gfn_to_hva_memslot(slot, gfn)


async def looked_up(cpu: Any, hva: int, write: bool) -> gup.Gup:
    """``hva_to_pfn`` of a page that is always there to be faulted in."""
    page = await gup.get_user_pages_fast(cpu, cpu.mm, hva, write)
    assert isinstance(page, gup.Gup)
    return page


async def reload_for_later(vcpu: Any) -> None:
    """``vmx_set_apic_access_page_addr`` that leaves the VMCS to the way into the guest.

    cpu0 (migrate)                      vcpu0
                                        mmu_lock; no retry; unlock
                                        no request is pending
    zap; request; it is not in guest mode
    clear pte; flush; end; free f
                                        VMCS = f; enter the guest
    """
    gfn, vm = vcpu.apic_gpa >> PAGE_SHIFT, vcpu.vm
    hva = await hva_of(vcpu, vm, gfn)
    sampled = await vcpu.port.call(vm, SeqRead())
    page = await looked_up(vcpu, hva, True)
    await vcpu.port.call(vm, MmuLock(False))
    now = await vcpu.port.call(vm, SeqRead())
    retry = kvm_main.mmu_invalidate_retry(vcpu.world.kernel, sampled.seq, now, hva)
    await vcpu.port.call(vm, MmuUnlock())
    await gup.put_page(vcpu, page.frame)
    if not retry:
        vcpu.apic_page = page
        return
    vcpu.make_request(kvm_main.KVM_REQ_APIC_PAGE_RELOAD)
    if now.in_progress:
        await vcpu.port.call(vm, RetryWait())


def vmcs_written_after_unlock(patch: pytest.MonkeyPatch) -> None:
    """The VMCS is written after mmu_lock is dropped: on the way into the guest."""
    enter = Vcpu.vcpu_enter_guest

    async def enter_guest(vcpu: Any, gpa: int, write: bool, value: int) -> bool:
        page = vcpu.__dict__.pop("apic_page", None)
        if page is not None:
            await kvm_mmu.gfn_to_memslot(vcpu, vcpu.vm, gpa >> PAGE_SHIFT)
            vcpu.vmcs_write_apic_access_addr(page.pte, page.walk)
        return await enter(vcpu, gpa, write, value)

    patch.setattr(vmx, "vmx_set_apic_access_page_addr", reload_for_later)
    patch.setattr(Vcpu, "vcpu_enter_guest", enter_guest)


def page_fault(sample_first: bool, lock: bool) -> Callable[..., Any]:
    """``kvm_tdp_page_fault`` with the sequence sampled, and mmu_lock taken, or not."""

    async def kvm_mmu_page_fault(cpu: Any, vm: str, gpa: int, write: bool) -> int:
        gfn = gpa >> PAGE_SHIFT
        hva = await hva_of(cpu, vm, gfn)
        early = await cpu.port.call(vm, SeqRead()) if sample_first else None
        page = await looked_up(cpu, hva, write)
        sampled = early or await cpu.port.call(vm, SeqRead())
        if lock:
            await cpu.port.call(vm, MmuLock(True))
        now = await cpu.port.call(vm, SeqRead())
        retry = kvm_main.mmu_invalidate_retry(cpu.world.kernel, sampled.seq, now, hva)
        if not retry:
            rights = ptes.flags_of(page.pte) & (ptes.PRESENT | ptes.WRITE)
            await cpu.port.call(vm, SpteSet(gfn, ptes.make(page.frame, rights), page.walk))
        if lock:
            await cpu.port.call(vm, MmuUnlock())
        await gup.put_page(cpu, page.frame)
        return kvm_mmu.RET_PF_RETRY if retry else kvm_mmu.RET_PF_FIXED

    return kvm_mmu_page_fault


def sequence_sampled_late(patch: pytest.MonkeyPatch) -> None:
    """``mmu_invalidate_seq`` is read after the lookup that it is to protect."""
    patch.setattr(kvm_mmu, "kvm_mmu_page_fault", page_fault(sample_first=False, lock=True))


def reader_without_lock(patch: pytest.MonkeyPatch) -> None:
    """The page fault takes no mmu_lock, and the count falls before the sequence has risen."""

    async def invalidate_end(cpu: Any, vm: str, start: int, end: int) -> None:
        await cpu.port.call(vm, InProgress(-1, start, end))
        await cpu.port.call(vm, SeqBump())

    patch.setattr(kvm_main, "kvm_mmu_invalidate_end", invalidate_end)
    patch.setattr(kvm_mmu, "kvm_mmu_page_fault", page_fault(sample_first=True, lock=False))


def ipi_acknowledged_early(patch: pytest.MonkeyPatch) -> None:
    """``flush_tlb_func`` says that it is done before it begins."""

    async def flush_tlb_func(cpu: Any, message: p.FlushTlbIpi, _: Envelope) -> Ack:
        await cpu._interrupt()
        cpu.port.tell(cpu.name, p.Tlbi(message.mm, message.start, message.end))
        return Ack()

    patch.setattr(Processor, "flush_tlb_func", flush_tlb_func)


# ---- what they are run on ----------------------------------------------------------------------


def race(name: str, kernel: str) -> RunSpec:
    """A race of the catalogue on a kernel that holds."""
    spec = find(name).run(kernel, SEED)
    assert spec.expectation is not None
    assert spec.expectation.verdict == "held"
    return replace(spec, chaos=None)


def two_threads() -> RunSpec:
    """One thread writes to a page that the other unmaps."""
    setup = ("cpu0/1",)
    programs = (
        Program(
            "cpu0",
            "cpu0",
            (
                Step(op.Mmap("mm0", 0, 2 * PAGE_SIZE, True, True)),
                Step(op.Touch("mm0", 0, True, 1)),
                Step(op.MadviseDontneed("mm0", 0, PAGE_SIZE), ("cpu1/0",)),
                Step(op.Touch("mm0", PAGE_SIZE, True, 2)),
            ),
        ),
        Program(
            "cpu1",
            "cpu1",
            tuple(Step(op.Touch("mm0", 0, True, 3 + at), setup) for at in range(3)),
        ),
    )
    world = World(kernel=preset("v6.6.5"), cpus=("cpu0", "cpu1"))
    return RunSpec("two-threads", world, SEED, Script(programs))


def vanishing_apic_page() -> RunSpec:
    """The APIC page is dropped again and again while the guest runs on two vCPUs."""
    apic = 8 * PAGE_SIZE
    host = (
        Step(op.Mmap("mm0", 0, PAGE_SIZE, True, True)),
        Step(op.Mmap("mm0", apic, PAGE_SIZE, True, True)),
        Step(op.Touch("mm0", 0, True, 1)),
        Step(op.Touch("mm0", apic, True, 2)),
        *(Step(op.MadviseDontneed("mm0", apic, PAGE_SIZE)) for _ in range(3)),
    )
    guest = tuple(Step(GuestTouch(0, True, at), ("cpu0/3",)) for at in range(3))
    vcpus = ("vcpu0", "vcpu1")
    slots = (Slot(0, 1, 0), Slot(8, 1, apic, True))
    world = World(
        kernel=preset("v6.6.5"), cpus=("cpu0", "cpu1"), parts=(Vm("kvm0", vcpus, "mm0", slots),)
    )
    programs = (Program("cpu0", "cpu0", host), *(Program(v, v, guest) for v in vcpus))
    return RunSpec("vanishing-apic-page", world, SEED, Script(programs))


CANARIES: dict[str, tuple[Plant, Callable[[], RunSpec], str, str]] = {
    "vmcs": (vmcs_written_after_unlock, vanishing_apic_page, "S1", "vcpu"),
    "sequence": (sequence_sampled_late, lambda: race("E12", "v6.2"), "S1", "vcpu0"),
    "ipi": (ipi_acknowledged_early, two_threads, "S1", "cpu1"),
    "reader": (reader_without_lock, lambda: race("E12", "v6.2"), "S1", "vcpu0"),
}
"""Name -> the mistake, what it is run on, and the rule that its harm breaks, by whom."""


def explored(spec: RunSpec, schedules: int, rules: frozenset[str] | None) -> Exploration:
    """The portfolio on a run."""
    return explore(spec, Options(schedules=schedules, rules=rules))


@pytest.mark.parametrize("name", CANARIES)
def test_a_planted_mistake_is_found_by_its_harm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, make, rule, agent = CANARIES[name]
    with monkeypatch.context() as patch:
        plant(patch)
        found = explored(make(), SCHEDULES, ids_of("harm"))
    assert found.finding is not None
    broken: tuple[Violation, ...] = found.finding.violations
    assert {violation.rule for violation in broken} <= ids_of("harm")
    assert any(v.rule == rule and v.agent.startswith(agent) for v in broken)
    twin = explored(make(), found.schedules, None)
    assert twin.schedules == found.schedules
    assert twin.violations == {}


def test_every_rule_is_of_one_kind() -> None:
    assert all(rule.sentence.endswith(".") and rule.look_at for rule in rules())
    assert ids_of("owed") | ids_of("harm") | ids_of("cost") == {rule.id for rule in rules()}
    with pytest.raises(UserError, match="S99"):
        explored(two_threads(), 1, frozenset({"S99"}))
