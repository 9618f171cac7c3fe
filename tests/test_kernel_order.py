"""Single steps of the kernel against their order in the source: locks, flushes, who is told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program, Step
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel import do_wp_page, page_alloc, pgtable
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.world import World
from mmurace.protocol import pte as ptes
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.messages import memory as m
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.filemap import ImmapLock
from mmurace.protocol.records import NotifierCall
from tests.file_programs import FILE
from tests.test_file_reclaim import Steps, chaos, mapped, values
from tests.test_madvise_free import one_after_the_other, run
from tests.worlds import page

MM, CHILD = "mm0", "mm1"


def world(release: str, arch: str = "x86", **switches: object) -> World:
    """Three CPUs and two processes."""
    if (release, arch) == ("v6.6.5", "arm64"):
        switches = {"batched_pending_flush": "flush_tlb_mm", **switches}
    here = preset(release, arch, switches)
    return World(kernel=here, cpus=("cpu0", "cpu1", "cpu2"), mms=(MM, CHILD), gather_batch=2)


def delivered(here: World, steps: Steps, operation: str) -> list[Any]:
    """What was delivered for an operation, when all are done one after the other."""
    found: list[Any] = []

    def observe(envelope: Envelope, _: Handled) -> bool | None:
        if envelope.id.split(".")[0] == operation and not envelope.is_reply:
            found.append(envelope.body)
        return None

    exchange = Exchange(Feeder(one_after_the_other(*steps)))
    assert Simulator(build_all(here, 1), exchange, RandomWalk(1), observe).run(20_000).complete
    return found


def callbacks(here: World, steps: Steps, operation: str) -> list[tuple[str, str]]:
    """The notifier callbacks of an operation: which, of whom."""
    found: list[tuple[str, str]] = []

    def observe(_: Envelope, handled: Handled) -> bool | None:
        calls = [call for call in handled.records if isinstance(call, NotifierCall)]
        begun = [call for call in calls if (call.op, call.phase) == (operation, "begin")]
        found.extend((call.callback, call.subscriber) for call in begun)
        return None

    exchange = Exchange(Feeder(one_after_the_other(*steps)))
    assert Simulator(build_all(here, 1), exchange, RandomWalk(1), observe).run(20_000).complete
    return found


def names(messages: Iterable[Any]) -> list[str]:
    """Their kinds."""
    return [type(message).__name__ for message in messages]


# ---- zap, truncate, mremap -----------------------------------------------------------------------


def test_a_full_batch_is_flushed_before_its_lock_is_released() -> None:
    """1cf35d47712d (v3.15): ``force_flush``, whatever it was that filled the batch."""
    steps: Steps = (
        ("cpu0", op.Mmap(MM, 0, page(4), True, True)),
        *(("cpu1", op.Touch(MM, page(n), True, n)) for n in range(4)),
        ("cpu0", op.MadviseDontneed(MM, 0, page(4))),
    )
    kinds = names(delivered(world("v6.6.5"), steps, "cpu0/1"))
    locked = False
    for kind in kinds:
        locked = kind == "PtlLock" or (locked and kind != "PtlUnlock")
        assert kind != "FlushTlbIpi" or locked
    assert kinds.count("FlushTlbIpi") == 2


@pytest.mark.parametrize(("release", "alone"), [("v4.15", True), ("v5.12", True), ("v6.2", False)])
def test_how_a_truncation_locks_the_rmap(release: str, alone: bool) -> None:
    """2c8659951654 (v5.18): shared."""
    steps: Steps = (("cpu0", mapped(MM)), ("cpu0", op.Truncate(FILE, 0)))
    locks = [x for x in delivered(world(release), steps, "cpu0/1") if isinstance(x, ImmapLock)]
    assert locks
    assert all(lock.write == alone for lock in locks)


def test_a_move_that_is_undone_holds_the_rmap_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """``move_vma`` moves back with ``need_rmap_locks``: the walk meets the old VMA first."""
    real, tables = page_alloc.alloc_pages, list[int]()

    async def alloc_pages(cpu: Processor, mm: str, request: m.FrameAlloc, **more: bool) -> int:
        tables.extend([request.address] if request.use == "table" else [])
        return -1 if len(tables) == 4 else await real(cpu, mm, request, **more)

    monkeypatch.setattr(page_alloc, "alloc_pages", alloc_pages)
    steps: Steps = (
        ("cpu0", op.Mmap(MM, page(6), page(4), True, True, FILE, 0, True)),
        ("cpu0", op.Touch(MM, page(7), True, 1)), ("cpu0", op.Touch(MM, page(8), True, 2)),
        ("cpu0", op.Mremap(MM, page(6), page(4), page(22), page(4))),
    )  # fmt: skip
    kinds = names(delivered(world("v6.6.5"), steps, "cpu0/3"))
    moved = [at for at, kind in enumerate(kinds) if kind == "RmapMove"]
    assert len(moved) == 2
    locked = [kinds[:at].count("AnonVmaLock") > kinds[:at].count("AnonVmaUnlock") for at in moved]
    assert locked == [False, True]


SHRINK: dict[str, tuple[op.Operation, op.Operation]] = {
    "munmap": (op.Mmap(MM, 0, page(2), True, True), op.Munmap(MM, page(1), page(1))),
    "mremap": (op.Mmap(MM, 0, page(2), True, True), op.Mremap(MM, 0, page(2), 0, page(1))),
    "brk": (op.Brk(MM, page(2)), op.Brk(MM, page(1))),
}


@pytest.mark.parametrize("call", SHRINK)
@pytest.mark.parametrize(("release", "downgrades"), [("v4.18", False), ("v5.7", True)])
def test_who_unmaps_with_mmap_lock_for_read(call: str, release: str, downgrades: bool) -> None:
    """9bc8039e715d and 85a06835f6f1 (v4.20), as for ``munmap``."""
    begin, shrink = SHRINK[call]
    steps: Steps = (
        ("cpu0", op.Brk(MM, page(1))), ("cpu0", begin), ("cpu0", op.Touch(MM, page(1), True, 1)),
        ("cpu0", shrink),
    )  # fmt: skip
    kinds = names(delivered(world(release), steps, "cpu0/3"))
    assert ("MmapDowngrade" in kinds) == downgrades
    if downgrades:
        assert kinds.index("MmapDowngrade") < kinds.index("PteGetAndClear")


# ---- reclaim and migration beside others ---------------------------------------------------------


def taken_while_protected(other: op.Operation) -> tuple[Program, ...]:
    """cpu1 stores to a page that cpu0 protects from all and that cpu2 takes away."""
    begin = [op.Mmap(MM, 0, page(1), True, True), op.Touch(MM, 0, True, 1)]
    protect = [
        Step(op.Mprotect(MM, 0, page(1), False, False), ("cpu1/0",)),
        Step(op.Mprotect(MM, 0, page(1), True, True)), Step(op.Touch(MM, 0, False)),
    ]  # fmt: skip
    stores = [Step(op.Touch(MM, 0, True, 2), ("cpu0/1",)), Step(op.Touch(MM, 0, True, 3))]
    return (
        Program("cpu0", "cpu0", [*map(Step, begin), *protect]),
        Program("cpu1", "cpu1", stores),
        Program("cpu2", "cpu2", [Step(other, ("cpu1/0",))]),
    )


FLUSH: dict[str, object] = {
    "src": "cpu0",
    "kind": ["FlushTlbIpi", "Tlbi", "Tlbie"],
    "operation": "cpu0/2",
}
PROTECTED: dict[str, object] = {"dst": "memory", "kind": "PtlUnlock", "operation": "cpu0/2"}
STORED: dict[str, object] = {
    "dst": "cpu1",
    "kind": ["FrameWrite~", "MmapUnlock~"],
    "operation": "cpu1/1",
}


def _hold(until: dict[str, object], **match: object) -> dict[str, object]:
    return {"match": match, "fault": "hold", "until": until}


def late_flush(taken: str) -> tuple[dict[str, object], ...]:
    """The entry is none for all; its page is ``taken``, stored to, and only then flushed."""
    gone: dict[str, object] = {"dst": "memory", "kind": taken, "operation": "cpu2/0"}
    found: dict[str, object] = {"dst": "memory", "kind": "MmapUnlock", "operation": "cpu2/0"}
    rules = [_hold(STORED, **FLUSH), _hold(gone, operation="cpu1/1", kind="Touch")]
    if taken == "SwapWrite":
        return (*rules, _hold(PROTECTED, operation="cpu2/0", kind="Kswapd"))
    return (
        *rules, _hold(found, operation="cpu0/2", kind="Mprotect"),
        _hold(PROTECTED, operation="cpu2/0", kind="FolioLock"),
    )  # fmt: skip


TAKERS: dict[str, op.Operation] = {
    "FrameCopy": op.MigratePages(MM, 0, page(1)),
    "SwapWrite": op.Kswapd(2),
}
KERNELS = [
    ("v4.15", "x86"), ("v5.8", "x86"), ("v6.2", "x86"), ("v6.6.5", "x86"), ("v5.8", "arm64"),
    ("v6.2", "arm64"), ("v6.6.5", "arm64"), ("v6.2", "ppc"), ("v6.6.5", "ppc"),
]  # fmt: skip


@pytest.mark.parametrize("taken", TAKERS)
@pytest.mark.parametrize(("release", "arch"), KERNELS)
def test_an_entry_that_is_not_flushed_yet_counts_as_accessible(
    release: str, arch: str, taken: str
) -> None:
    """20841405940e (v3.13): the other's flush is pending, so whoever takes the page flushes."""
    for seed in range(3):
        programs = taken_while_protected(TAKERS[taken])
        oracle, _, complete = run(
            world(release, arch), programs, seed, chaos(seed, *late_flush(taken))
        )
        assert complete
        assert not oracle.violations, [v.text() for v in oracle.violations]


@pytest.mark.parametrize("taken", TAKERS)
def test_without_that_a_store_is_lost(monkeypatch: pytest.MonkeyPatch, taken: str) -> None:
    async def present(_cpu: Processor, _mm: str, pte: int) -> bool:
        return ptes.hw_present(pte)

    monkeypatch.setattr(pgtable, "pte_accessible", present)
    programs = taken_while_protected(TAKERS[taken])
    oracle, _, _ = run(world("v6.2", "arm64"), programs, 1, chaos(1, *late_flush(taken)))
    assert "S9" in {v.rule for v in oracle.violations}


@pytest.mark.parametrize(("release", "deferred"), [("v6.2", False), ("v6.5", True)])
def test_when_a_migration_flushes(release: str, deferred: bool) -> None:
    """7e12beb8ca2a (v6.3): after the page-table lock, noted for others, and before the copy."""
    steps: Steps = (
        ("cpu0", op.Mmap(MM, 0, page(1), True, True)), ("cpu1", op.Touch(MM, 0, True, 1)),
        ("cpu0", op.MigratePages(MM, 0, page(1))),
    )  # fmt: skip
    kinds = names(delivered(world(release), steps, "cpu0/1"))
    flush, copy = kinds.index("FlushTlbIpi"), kinds.index("FrameCopy")
    cleared = kinds.index("PteGetAndClear")
    assert cleared < flush < copy
    assert (kinds.index("PtlUnlock", cleared) < flush) == deferred
    assert ("TlbBatchedCmpxchg" in kinds) == deferred


# ---- copy on write -------------------------------------------------------------------------------


def stored_while_swapped_out() -> tuple[Program, ...]:
    """A child stores to a page when its parent's entry has become a swap entry."""
    begin = [op.Mmap(MM, 0, page(1), True, True), op.Touch(MM, 0, True, 1), op.Fork(MM, CHILD)]
    reads = [Step(op.Touch(MM, 0, False), ("cpu2/0", "cpu1/0"))]
    child = [
        Step(op.Touch(CHILD, 0, True, 2), ("cpu0/2",)),
        Step(op.Touch(CHILD, 0, False), ("cpu0/3",)),
    ]
    return (
        Program("cpu0", "cpu0", [*map(Step, begin), *reads]),
        Program("cpu1", "cpu1", child),
        Program("cpu2", "cpu2", [Step(op.Kswapd(4), ("cpu0/2",))]),
    )


BETWEEN: tuple[dict[str, object], ...] = (
    _hold({"dst": "memory", "kind": "RmapRemove", "operation": "cpu2/0"},
          operation="cpu1/0", kind="Touch"),
    _hold({"dst": "cpu1", "kind": "FrameWrite~", "operation": "cpu1/0"},
          operation="cpu2/0", kind="AnonVmaUnlock") | {"when": {"hits_max": 1}},
)  # fmt: skip


@pytest.mark.parametrize("release", ["v4.15", "v5.8", "v6.2", "v6.6.5"])
def test_a_page_that_is_swapped_out_is_not_reused(release: str) -> None:
    """``reuse_swap_page`` counts swap entries, and needs the lock that reclaim has."""
    for seed in range(3):
        oracle, records, complete = run(
            world(release), stored_while_swapped_out(), seed, chaos(seed, *BETWEEN)
        )
        assert complete
        assert not oracle.violations, [v.text() for v in oracle.violations]
        assert values(records) == [1, 2]


def test_reuse_by_the_count_of_mappings_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def mapped_once(cpu: Processor, folio: int) -> bool:
        return len((await cpu.mem(m.RmapWalk(folio))).places) == 1

    monkeypatch.setattr(do_wp_page, "wp_can_reuse_anon_folio", mapped_once)
    oracle, records, _ = run(world("v6.6.5"), stored_while_swapped_out(), 1, chaos(1, *BETWEEN))
    assert values(records) == [2, 2]
    assert [v.rule for v in oracle.violations] == ["S6"]


def test_the_copy_is_published_before_the_rmap_forgets_the_original() -> None:
    """``wp_page_copy``: else another process finds the page mapped once, and reuses it."""
    steps: Steps = (
        ("cpu0", op.Mmap(MM, 0, page(1), True, True)), ("cpu0", op.Touch(MM, 0, True, 1)),
        ("cpu0", op.Fork(MM, CHILD)), ("cpu0", op.Touch(MM, 0, True, 2)),
    )  # fmt: skip
    kinds = names(delivered(world("v6.6.5"), steps, "cpu0/3"))
    assert kinds.index("PteSet") < kinds.index("RmapRemove")


# ---- file faults, notifier callbacks -------------------------------------------------------------


def first_store(shared: bool) -> list[str]:
    """What is delivered for the store that maps the first page of a file."""
    mapping = op.Mmap(MM, 0, page(1), True, True, FILE, 0, shared)
    steps: Steps = (("cpu0", mapping), ("cpu0", op.Touch(MM, 0, True, 1)))
    return names(delivered(world("v6.6.5"), steps, "cpu0/1"))


def test_a_store_to_a_shared_file_unlocks_the_page_before_it_may_be_written() -> None:
    """``do_shared_fault``: what was looked up may be truncated until ``do_page_mkwrite``."""
    kinds = first_store(shared=True)
    found = kinds.index("FolioLock")
    rest = [kind for kind in kinds[found:] if kind.startswith("Folio") or kind == "PteSet"]
    assert rest == [
        "FolioLock", "FolioUnlock",
        "FolioLock", "FolioMapping", "FolioMarkDirty", "PteSet", "FolioUnlock",
    ]  # fmt: skip


def test_a_store_to_a_private_file_allocates_before_it_looks_the_page_up() -> None:
    """``do_cow_fault``: an allocation may sleep, and nothing is locked meanwhile."""
    kinds = first_store(shared=False)
    table, copy, cached = [at for at, kind in enumerate(kinds) if kind == "FrameAlloc"]
    assert table < copy < kinds.index("PageCacheLoad") < cached
    assert (
        kinds.index("FolioLock") < kinds.index("FrameCopy") < kinds.index("FolioUnlock", copy + 9)
    )


def test_each_subscriber_is_told_of_the_range_before_its_end() -> None:
    """``mn_hlist_invalidate_end``: one loop with two calls, not two loops."""
    vms = tuple(Vm(f"kvm{n}", (f"vcpu{n}",), MM, (Slot(0, 1, 0),)) for n in range(2))
    here = world("v6.2").with_parts(Vm, vms)
    steps: Steps = (
        ("cpu0", op.Mmap(MM, 0, page(1), True, True)), ("cpu0", op.Touch(MM, 0, True, 1)),
        ("cpu0", op.MadviseDontneed(MM, 0, page(1))),
    )  # fmt: skip
    called = callbacks(here, steps, "cpu0/2")
    start = [("invalidate_range_start", "kvm1"), ("invalidate_range_start", "kvm0")]
    each = [
        (what, vm)
        for vm in ("kvm1", "kvm0")  # who came last is first in the list
        for what in ("invalidate_range", "invalidate_range_end")
    ]
    assert called[:6] == start + each
