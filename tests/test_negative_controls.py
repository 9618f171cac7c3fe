"""What looks wrong and is right: real kernel code in situations that a hasty rule would flag.

Each test also asserts that the situation was there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mmurace.nodes import cpu as cpu_node
from mmurace.nodes.kernel import gup
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.messages import GuestTouch
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.world import World
from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.memory import FrameWrite
from mmurace.protocol.ranges import overlaps
from tests.observed import Moment, Run, beside, dropped, moments, observe, racing_accesses
from tests.worlds import MM, page

SEEDS = range(3)
ROUNDS = 8


def world(release: str, arch: str = "x86", **switches: object) -> World:
    """Two CPUs, a device behind an IOMMU, a guest."""
    return World(
        kernel=preset(release, arch, switches),
        cpus=("cpu0", "cpu1"),
        parts=(
            Unit("iommu0", ("device0",), (MM,), "cpu1"),
            Vm("kvm0", ("vcpu0",), MM, (Slot(0, 16, 0),)),
        ),
    )


SETUP: list[op.Operation] = [
    op.Mmap(MM, 0, page(4), True, True),
    *(op.Touch(MM, page(i), True, 100 + i) for i in range(4)),
]


def touches(count: int, pages: int = 2) -> list[op.Operation]:
    return [op.Touch(MM, page(i % pages), i % 3 > 0, 200 + i) for i in range(count)]


def dmas(count: int, pages: int = 2) -> list[op.Operation]:
    return [Dma(MM, page(i % pages), i % 3 > 0, 300 + i) for i in range(count)]


def clean(runs: list[Run]) -> None:
    """No rule is broken."""
    assert [v.text() for run in runs for v in run.violations] == []


# ---- who is flushed when -----------------------------------------------------------------------


END_ONLY = [
    ("MigratePages", op.MigratePages(MM, 0, 4096), {}),
    ("Kswapd", op.Kswapd(2), {"clear_flush_calls_ir": False}),
]
"""A migration of v6.2 flushes secondaries only at the end of its bracket; reclaim of pages of files
does, and here that of anonymous pages is made to.  Nobody copies on write in these runs."""


@pytest.mark.parametrize(("kind", "unmap", "switches"), END_ONLY, ids=["migrate", "reclaim"])
def test_the_end_of_the_bracket_is_enough_for_who_holds_a_reference(
    kind: str, unmap: op.Operation, switches: dict[str, object]
) -> None:
    here = world("v6.2", "x86", **switches)
    loop = [unmap, op.Touch(MM, 0, True, 1), op.Touch(MM, page(1), True, 1)] * ROUNDS
    runs = [observe(here, beside(SETUP, loop, {"device0": dmas(160)}), seed) for seed in SEEDS]
    clean(runs)
    assert any(racing_accesses(run, "iotlb", kind) for run in runs)
    assert any(flushed_at_end_only(run, kind) for run in runs)


def flushed_at_end_only(run: Run, kind: str) -> bool:
    """An entry of the IOTLB went with the end of a bracket, after the PTL was free again."""
    unlocked: set[str] = set()
    for step in run.steps:
        operation = step.id.partition(".")[0]
        if run.kinds.get(operation) != kind:
            continue
        if step.kind == "PtlUnlock":
            unlocked.add(operation)
        elif step.kind == "PtlLock":
            unlocked.discard(operation)
        if operation in unlocked and any(dropped(record, "iotlb") for record in step.records):
            return True
    return False


def test_secondaries_may_be_flushed_before_the_cpus() -> None:
    """x86 of v6.6 calls them for each entry of a batch, and interrupts the CPUs at its end."""
    loop = [op.Kswapd(2), op.Touch(MM, 0, True, 1), op.Touch(MM, page(1), True, 1)] * ROUNDS
    others = {"cpu1": touches(160), "device0": dmas(100)}
    runs = [observe(world("v6.6.5"), beside(SETUP, loop, others), seed) for seed in SEEDS]
    clean(runs)
    assert any(secondary_first(run) for run in runs)


def secondary_first(run: Run) -> bool:
    """An IOTLB lost an entry to a reclaim that took the CPUs' later."""
    told: set[str] = set()
    for moment in moments(run):
        if run.kinds.get(moment.op) == "Kswapd":
            if dropped(moment.record, "iotlb"):
                told.add(moment.op)
            elif dropped(moment.record, "tlb") and moment.op in told:
                return True
    return False


@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_secondaries_may_be_flushed_outside_any_bracket(arch: str) -> None:
    """``mprotect`` of v6.6 closes its bracket and then flushes."""
    loop = [op.Mprotect(MM, 0, page(2), True, write) for write in (False, True)] * ROUNDS
    runs = [
        observe(world("v6.6.5", arch), beside(SETUP, loop, {"device0": dmas(100)}), seed)
        for seed in SEEDS
    ]
    clean(runs)
    assert any(flushed_outside(run) for run in runs)


def flushed_outside(run: Run) -> bool:
    """An IOTLB lost an entry to an mprotect whose bracket was closed."""
    closed: set[str] = set()
    for moment in moments(run):
        record = moment.record
        if isinstance(record, r.NotifierCall) and record.callback == "invalidate_range_end":
            closed.add(moment.op)
        mprotect = run.kinds.get(moment.op) == "Mprotect"
        if mprotect and moment.op in closed and dropped(record, "iotlb"):
            return True
    return False


# ---- brackets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("release", ["v6.2", "v6.6.5"])
def test_brackets_of_disjoint_ranges_may_overlap_in_time(release: str) -> None:
    """A fault outside both ranges, or between them, is settled by the hva filter."""
    ends = {"cpu0": 0, "cpu1": 3}
    loops = {
        name: [op.MadviseDontneed(MM, page(at), 4096), op.Touch(MM, page(at), True, 1)] * ROUNDS
        for name, at in ends.items()
    }
    guest = [GuestTouch(page((1, 2, 5)[i % 3]), i % 2 > 0, i) for i in range(60)]
    zap = [op.MadviseDontneed(MM, page(1), page(1)), op.Mmap(MM, page(5), 4096, True, True)]
    others = {"cpu1": [x for pair in zip(loops["cpu1"], zap * ROUNDS, strict=True) for x in pair]}
    others["vcpu0"] = [*guest]
    programs = beside(SETUP, loops["cpu0"], others)
    runs = [observe(world(release), programs, seed) for seed in range(8, 14)]
    clean(runs)
    assert any(two_apart(run) for run in runs)


def two_apart(run: Run) -> bool:
    """A shadow entry was installed while two brackets with disjoint ranges were open."""
    spans: list[tuple[int, int]] = []
    for moment in moments(run):
        record = moment.record
        if isinstance(record, r.Invalidation):
            (spans.append if record.begin else spans.remove)((record.start, record.end))
        filled = isinstance(record, r.Fill) and record.cache == "spte"
        if filled and len(spans) == 2 and not overlaps(*spans[0], *spans[1]):
            return True
    return False


# ---- accesses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "zap"),
    [
        ("Munmap", op.Munmap(MM, 0, page(2))),
        ("Mprotect", op.Mprotect(MM, 0, page(2), True, False)),
        ("MadviseDontneed", op.MadviseDontneed(MM, 0, page(2))),
    ],
)
@pytest.mark.parametrize("cache", ["tlb", "iotlb"])
def test_stores_may_race_an_operation_until_it_returns(
    kind: str, zap: op.Operation, cache: str
) -> None:
    loop = [zap, op.Mmap(MM, 0, page(2), True, True)] * ROUNDS
    others = {"cpu1": touches(160), "device0": dmas(80)}
    runs = [observe(world("v6.6.5"), beside(SETUP, loop, others), seed) for seed in SEEDS]
    clean(runs)
    racing = [access for run in runs for access in racing_accesses(run, cache, kind)]
    assert any(access.write for access in racing)


async def direct_io(cpu: Any, mm: str, address: int) -> int:
    """``read`` with ``O_DIRECT``: the page is pinned, and the disk writes to it by its number."""
    pinned = await gup.get_user_pages_fast(cpu, mm, address, True)
    if isinstance(pinned, int):
        return pinned
    for value in range(60):
        await cpu.mem(FrameWrite(pinned.frame, 1, value))
    await gup.put_page(cpu, pinned.frame)
    return 0


def test_a_pinned_page_may_diverge_from_what_is_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[Any, Any] = dict(cpu_node.SYSTEM_CALLS)
    calls |= {op.MigratePages: lambda c, o: direct_io(c, o.mm, o.address)}
    monkeypatch.setattr(cpu_node, "system_calls", lambda _: calls)
    loop: list[op.Operation] = [op.MigratePages(MM, 0, 4096)] * ROUNDS
    zaps: list[op.Operation] = [op.MadviseDontneed(MM, 0, 4096), op.Touch(MM, 0, True, 9)] * ROUNDS
    others = {"cpu1": zaps, "device0": dmas(60, 1)}
    runs = [observe(world("v6.6.5"), beside(SETUP, loop, others), seed) for seed in SEEDS]
    clean(runs)
    assert any(diverged(run) for run in runs)


def diverged(run: Run) -> bool:
    """A store went to a frame that the page does not map any more, but another one."""
    mapped = 0
    for moment in moments(run):
        record = moment.record
        if isinstance(record, r.PteChange) and not record.level and record.address == 0:
            mapped = record.new
        elsewhere = isinstance(record, r.Access) and record.frame != ptes.frame_of(mapped)
        if elsewhere and ptes.hw_present(mapped) and _of_the_disk(record):
            return True
    return False


def _of_the_disk(record: r.Record) -> bool:
    """Everybody else uses word 0."""
    return isinstance(record, r.Access) and record.word == 1 and record.write


# ---- upgrades ----------------------------------------------------------------------------------


def test_a_right_that_is_added_needs_no_flush_on_x86() -> None:
    """Processors and the unit walk again when their entry is too weak."""
    loop: list[op.Operation] = []
    for _ in range(ROUNDS):
        loop += [op.Mprotect(MM, 0, page(2), True, write) for write in (False, True)]
    loop += [op.Touch(MM, page(i % 2), i % 2 > 0, 7) for i in range(ROUNDS)]
    others = {"cpu1": touches(160), "device0": dmas(80)}
    # The fault adds the right: mprotect does not do so itself.
    here = world("v6.6.5", change_protection_upgrades="dirty_shared")
    runs = [observe(here, beside(SETUP, loop, others), seed) for seed in SEEDS]
    clean(runs)
    upgrades = [found for run in runs for found in upgraded(run)]
    assert any(upgrades), "nobody else held the weak entry"


def upgraded(run: Run) -> Iterator[bool]:
    """For each right that was added without a flush: whether others held the entry without it."""
    flushed = {m.op for m in moments(run) if isinstance(m.record, r.InvalidateBegin)}
    for moment in moments(run):
        record = moment.record
        if isinstance(record, r.PteChange) and _adds_right(record) and moment.op not in flushed:
            yield any(_weak(moment, record, *held) for held in moment.cached.values())


def _adds_right(change: r.PteChange) -> bool:
    same = ptes.frame_of(change.old) == ptes.frame_of(change.new)
    return (
        not change.level
        and same
        and ptes.hw_present(change.old)
        and bool(change.new & ~change.old & ptes.WRITE)
    )


def _weak(moment: Moment, change: r.PteChange, holder: str, fill: r.Fill) -> bool:
    here = (fill.tag, fill.address) == (change.mm, change.address)
    by = moment.op.partition("/")[0]
    return here and not fill.pte & ptes.WRITE and holder != by
