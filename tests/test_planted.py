"""Mistakes planted in kernel code, here and nowhere else: each rule finds the one it is there for.

Every plant is a kernel function with one step moved, left out or doubled.  The same runs of the
kernel as it is break no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest

from mmurace.broker.programs import Program, Step
from mmurace.explorer.run.session import simulate
from mmurace.nodes.kernel import (
    memory,
    migrate,
    mmu_notifier,
    mprotect,
    pgtable,
    rmap,
    swap_state,
    tlb,
    tlbbatch,
    vm_fault,
)
from mmurace.nodes.kernel.locking import spin_lock, spin_unlock
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva import driver as iommu_sva
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm import kvm_main
from mmurace.nodes.secondaries.kvm import mmu as kvm_mmu
from mmurace.nodes.secondaries.kvm.messages import (
    GuestTouch,
    Memslot,
    MmuLock,
    MmuUnlock,
    SpteClear,
    SpteScan,
    SpteSet,
)
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.swap import Swap
from mmurace.nodes.translation import TranslationCache
from mmurace.nodes.world import World
from mmurace.protocol import pte as ptes
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.memory import (
    FrameAlloc,
    PageFreeze,
    PagePut,
    RmapAdd,
)
from mmurace.protocol.messages.swap import SwapCount
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script
from tests.worlds import MM, page

Plant = Callable[[pytest.MonkeyPatch], None]
SEEDS = range(4)
SEEDS_MAX = 30
"""After so many a mistake counts as missed; most take one or two."""
OPERATIONS = 24
"""Operations of cpu0 in a run, about."""
TOUCHES = 900


# ---- the mistakes ------------------------------------------------------------------------------


async def cleared_without_flush(cpu: Any, mm: str, address: int, table: int) -> int:
    """``ptep_get_and_clear`` where ``ptep_clear_flush`` belongs."""
    return await pgtable.ptep_get_and_clear(cpu, table, address)


async def cleared_and_not_noted(cpu: Any, _ubc: Any, place: tuple[str, int], table: int) -> int:
    """The same where a flush is deferred."""
    return await cleared_without_flush(cpu, *place, table)


def plant_in_migrate(patch: pytest.MonkeyPatch) -> None:
    """``try_to_migrate_one`` alone has the wrong one: the same code, which sees other functions."""
    wrong = SimpleNamespace(**{**vars(pgtable), "ptep_clear_flush": cleared_without_flush})
    seen = {**vars(rmap), "pgtable": wrong, "_clear_now_or_later": cleared_and_not_noted}
    planted = FunctionType(rmap.try_to_migrate_one.__code__, seen)
    patch.setattr(rmap, "try_to_migrate_one", planted)


def copies_before_it_flushes(patch: pytest.MonkeyPatch) -> None:
    """A migration flushes when it maps the copy; what is stored until then is lost."""
    plant_in_migrate(patch)
    right = migrate.remove_migration_ptes

    async def remove_migration_ptes(cpu: Any, *args: Any) -> None:
        await right(cpu, *args)
        await tlb.flush_tlb_mm(cpu, MM)

    patch.setattr(migrate, "remove_migration_ptes", remove_migration_ptes)


def backs_out_with_less(patch: pytest.MonkeyPatch) -> None:
    """A migration that gives up puts the page back read-only, and has flushed nobody."""
    plant_in_migrate(patch)
    patch.setattr(rmap, "MIGRATION_KEEPS", ptes.ACCESSED | ptes.DIRTY)
    patch.setattr(migrate, "FolioMigrateMapping", lambda old, new: PageFreeze(old, 99))


def reads_back_zeroes(patch: pytest.MonkeyPatch) -> None:
    """The swap device returns an empty page."""
    right = Swap.swap_read

    def swap_read(memory_: Any, message: Any, envelope: Any) -> Any:
        answer = right(memory_, message, envelope)
        memory_.frames[message.frame].words = {}
        return answer

    patch.setattr(Swap, "swap_read", swap_read)


def writes_before_it_flushes(patch: pytest.MonkeyPatch) -> None:
    """Reclaim leaves the deferred flush to the time when it frees."""

    async def nothing(cpu: Any, ubc: Any) -> None:
        return

    patch.setattr(tlbbatch, "try_to_unmap_flush_dirty", nothing)


def forgets_to_read_the_slot(patch: pytest.MonkeyPatch) -> None:
    """The swap cache gets the new page as it is."""

    def nothing_read(slot: int, frame: int) -> SwapCount:
        return SwapCount(slot)

    patch.setattr(swap_state, "SwapRead", nothing_read)


def keeps_what_it_was_told_to_drop(patch: pytest.MonkeyPatch) -> None:
    """The unit acknowledges an invalidation and goes on using what it had."""
    right = TranslationCache.invalidate

    async def invalidate(cache: TranslationCache, tag: str, *about: Any) -> None:
        kept = dict(cache.entries) if cache.cache == "iotlb" else {}
        await right(cache, tag, *about)
        cache.entries.update(kept)

    patch.setattr(TranslationCache, "invalidate", invalidate)


def grants_more_than_it_found(patch: pytest.MonkeyPatch) -> None:
    """KVM maps every page for writing, whatever it was looked up for."""

    def writable(gfn: int, pte: int, walk: str) -> SpteSet:
        return SpteSet(gfn, pte | ptes.WRITE, walk)

    patch.setattr(kvm_mmu, "SpteSet", writable)


def allocates_under_the_lock(patch: pytest.MonkeyPatch) -> None:
    """``do_anonymous_page`` asks for its page after it has taken the PTL."""

    async def do_anonymous_page(cpu: Any, fault: Any) -> int:
        await spin_lock(cpu, fault.table)
        frame = (await cpu.mem(FrameAlloc("anon"))).frame
        raced = await pgtable.ptep_get(cpu, fault.table, fault.address) != ptes.NONE
        if not raced:
            await cpu.mem(RmapAdd(frame, fault.mm, fault.address))
            flags = vm_fault.ANON_FLAGS | fault.write_flags
            pte = ptes.make(frame, flags)
            await pgtable.set_pte_at(cpu, fault.table, fault.address, pte)
        await spin_unlock(cpu, fault.table)
        if raced:
            await cpu.mem(PagePut(frame))
        return 0

    patch.setattr(memory, "do_anonymous_page", do_anonymous_page)


def driver_allocates_its_command(patch: pytest.MonkeyPatch) -> None:
    """An SVA driver's callback asks for memory, which may have to be reclaimed first."""
    right = iommu_sva.arm_smmu_mm_arch_invalidate_secondary_tlbs

    async def callback(cpu: Any, unit: str, mm: str, start: int, end: int) -> None:
        buffer = (await cpu.mem(FrameAlloc("driver"))).frame
        await right(cpu, unit, mm, start, end)
        await cpu.mem(PagePut(buffer))

    patch.setattr(iommu_sva, "arm_smmu_mm_arch_invalidate_secondary_tlbs", callback)


def migration_entry_forgets_dirty(patch: pytest.MonkeyPatch) -> None:
    """A migration entry remembers the rights of the old entry and not that it was dirty."""
    patch.setattr(rmap, "MIGRATION_KEEPS", ptes.WRITE | ptes.ACCESSED)


def protects_in_two_passes(patch: pytest.MonkeyPatch) -> None:
    """``change_pte_range`` loads every entry and then stores every one; a walker sets dirty in
    between, where it is ``ptep_modify_prot_start`` that takes the entry out.
    """

    async def change_pte_range(
        cpu: Any, gather: Any, change: Any, table: int, address: int, end: int
    ) -> None:  # fmt: skip
        await spin_lock(cpu, table)
        pages = range(address, end, 4096)
        for at, pte in [(at, await pgtable.ptep_get(cpu, table, at)) for at in pages]:
            if ptes.pte_present(pte):
                await pgtable.set_pte_at(cpu, table, at, mprotect.pte_modify(pte, change.vma))
                gather.adjust_range(at)
        await spin_unlock(cpu, table)

    patch.setattr(mprotect, "change_pte_range", change_pte_range)


def forgets_the_end(patch: pytest.MonkeyPatch) -> None:
    """``change_protection`` opens its bracket and never closes it."""
    right = mmu_notifier.invalidate_range_end

    async def end(cpu: Any, range_: Any, only_end: bool = False) -> None:
        if range_.event is not MmuNotifierEvent.PROTECTION_VMA:
            await right(cpu, range_, only_end)

    patch.setattr(mmu_notifier, "invalidate_range_end", end)


MOVE: list[op.Operation] = [op.MigratePages(MM, page(i), 4096) for i in (0, 1)]
PROTECT = [
    op.Touch(MM, page(3), True, 1),
    op.MadviseFree(MM, page(1), page(3)),
    op.Mprotect(MM, page(1), page(3), True, False),
    op.Mprotect(MM, page(1), page(3), True, True),
]
ZAP = [op.MadviseDontneed(MM, page(1), 4096), op.Touch(MM, page(1), True, 1)]
RECLAIM = [op.Kswapd(2), op.Touch(MM, page(1), False)]
ALL = [*MOVE, *PROTECT, *ZAP, *RECLAIM]

PLANTS: list[tuple[Plant, str, list[op.Operation]]] = [
    (copies_before_it_flushes, "S9", MOVE),
    (writes_before_it_flushes, "S9", RECLAIM),
    (forgets_to_read_the_slot, "S9", RECLAIM),
    (keeps_what_it_was_told_to_drop, "S5", ALL),
    (grants_more_than_it_found, "S5", RECLAIM),
    (backs_out_with_less, "S5", MOVE),
    (allocates_under_the_lock, "S11", ALL),
    (driver_allocates_its_command, "S11", ALL),
    (migration_entry_forgets_dirty, "S16", MOVE),
    (protects_in_two_passes, "S16", PROTECT),
    (forgets_the_end, "Q1", PROTECT),
    (reads_back_zeroes, "Q3", RECLAIM),
]
"""Each with the rule that it breaks, and the operations that it is about."""


# ---- what they are run on ----------------------------------------------------------------------


def world() -> World:
    """Two CPUs, a device, a guest."""
    return World(
        kernel=preset("v6.6.5"),
        cpus=("cpu0", "cpu1"),
        parts=(
            Unit("iommu0", ("device0",), (MM,), "cpu1"),
            Vm("kvm0", ("vcpu0",), MM, (Slot(0, 16, 0),)),
        ),
        gather_batch=2,
    )


def paced(name: str, node: str, asked: Sequence[op.Operation], first: int, last: int) -> Program:
    """A program that keeps up with operations ``first`` to ``last`` of cpu0."""
    after = [first + (last - first) * at // len(asked) for at in range(len(asked))]
    steps = zip(asked, after, strict=True)
    return Program(name, node, [Step(o, (f"cpu0/{at}",)) for o, at in steps])


def programs(loop: Sequence[op.Operation], guest: bool) -> tuple[Program, ...]:
    """cpu0 does these again and again; everybody else uses the pages that they are about."""
    setup: list[op.Operation] = [op.Mmap(MM, 0, page(4), True, True)]
    setup += [op.Touch(MM, page(i), True, 100 + i) for i in range(3)]
    cpu0 = [*setup, *(list(loop) * (OPERATIONS // len(loop)))]
    span = (len(setup) - 1, len(cpu0) - 1)
    touches = [op.Touch(MM, page(i % 3), i % 4 < 3, 200 + i) for i in range(TOUCHES)]
    stores = [page((0, 1, 3)[i % 3]) for i in range(TOUCHES // 6)]
    dma = [Dma(MM, address, i % 5 > 0, 300 + i) for i, address in enumerate(stores)]
    guests: list[op.Operation] = [
        GuestTouch(page(i % 3), i % 3 > 0, 400 + i) for i in range(20 if guest else 0)
    ]
    return (
        Program("cpu0", "cpu0", [Step(o) for o in cpu0]),
        paced("cpu1", "cpu1", touches, *span),
        paced("device0", "device0", dma, *span),
        paced("vcpu0", "vcpu0", guests, *span),
    )


def broken(seed: int, loop: Sequence[op.Operation], guest: bool = True) -> set[str]:
    """The rules that a run breaks."""
    script = Script(programs(loop, guest))
    outcome = simulate(RunSpec("planted", world(), seed, script))
    return {violation.rule for violation in outcome.violations}


@pytest.mark.parametrize(("plant", "rule", "loop"), PLANTS, ids=[p.__name__ for p, _, _ in PLANTS])
def test_a_planted_mistake_is_found(
    plant: Plant, rule: str, loop: Sequence[op.Operation], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    guest = plant is not forgets_the_end  # it would wait for ever
    assert any(rule in broken(seed, loop, guest) for seed in range(SEEDS_MAX))


LOOPS = {"move": MOVE, "protect": PROTECT, "zap": ZAP, "reclaim": RECLAIM, "all": ALL}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_kernel_as_it_is_breaks_no_rule(seed: int, loop: Sequence[op.Operation]) -> None:
    assert broken(seed, loop) == set()


# ---- rule L2 -----------------------------------------------------------------------------------


def starts_over_after_every_page(patch: pytest.MonkeyPatch) -> None:
    """KVM lets go of mmu_lock and flushes after each entry, and then looks from the first again."""

    async def kvm_unmap_gfn_range(cpu: Any, vm: str, slot: Memslot, start: int, end: int) -> bool:
        first, last = kvm_main.gfn_range(slot, start, end)
        gfn = first
        while gfn < last:
            found = (await cpu.port.call(vm, SpteScan(gfn, gfn + 1))).gfn
            gfn += 1
            if found >= 0:
                await cpu.port.call(vm, SpteClear(found))
                await kvm_main.kvm_flush_remote_tlbs(cpu, vm)
                await cpu.port.call(vm, MmuUnlock())
                await cpu.port.call(vm, MmuLock(True))
                gfn = first
        return False

    patch.setattr(kvm_main, "kvm_unmap_gfn_range", kvm_unmap_gfn_range)


@pytest.mark.parametrize("planted", [True, False])
def test_zapping_takes_steps_in_proportion(planted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if planted:
        starts_over_after_every_page(monkeypatch)
    pages = 32
    vm = Vm("kvm0", ("vcpu0",), MM, (Slot(0, pages, 0),))
    here = World(kernel=preset("v6.6.5"), cpus=("cpu0",), parts=(vm,))
    cpu0: list[Step] = [Step(op.Mmap(MM, 0, page(pages), True, True))]
    cpu0 += [Step(op.Munmap(MM, 0, page(pages)), (f"vcpu0/{pages - 1}",))]
    guest = [Step(GuestTouch(page(i), True, i), ("cpu0/0",)) for i in range(pages)]
    script = Script((Program("cpu0", "cpu0", cpu0), Program("vcpu0", "vcpu0", guest)))
    outcome = simulate(RunSpec("zap", here, 1, script))
    assert {v.rule for v in outcome.violations} == ({"L2"} if planted else set())
