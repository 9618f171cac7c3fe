"""Migration and batched unmapping against their order in the source, by release."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program, Step
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.nodes.build import build_all
from mmurace.nodes.driver import Driver
from mmurace.nodes.kernel import tlbbatch
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.memory import Frame, Memory
from mmurace.nodes.secondaries.kvm.messages import GuestTouch
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.world import MEMORY, World
from mmurace.oracle.oracle import Oracle
from mmurace.protocol.envelope import Envelope, Handled, operation_of
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.memory import PteLoad
from mmurace.protocol.messages.swap import TlbBatchedCmpxchg
from mmurace.protocol.records import OpEnd
from tests.test_file_reclaim import Steps
from tests.test_kernel_order import delivered, names, world
from tests.test_madvise_free import one_after_the_other
from tests.worlds import page

MM, CHILD = "mm0", "mm1"
TOUCHED: Steps = (
    ("cpu0", op.Mmap(MM, 0, page(4), True, True)),
    ("cpu1", op.Touch(MM, 0, True, 1)),
    ("cpu0", op.Touch(MM, page(1), False)),
)


def results(here: World, steps: Steps, kind: str) -> list[int]:
    """What operations of that kind returned."""
    found: list[int] = []

    def observe(_: Envelope, handled: Handled) -> bool | None:
        ends = (record for record in handled.records if isinstance(record, OpEnd))
        found.extend(end.result for end in ends if end.kind == kind)
        return None

    exchange = Exchange(Feeder(one_after_the_other(*steps)))
    assert Simulator(build_all(here, 1), exchange, RandomWalk(1), observe).run(20_000).complete
    return found


def memory_of(drivers: Mapping[str, Driver]) -> Memory:
    """The node that has the page tables and the marks."""
    memory = drivers[MEMORY].node
    assert isinstance(memory, Memory)
    return memory


# ---- the look-up ---------------------------------------------------------------------------------


def test_a_page_is_looked_up_under_mmap_lock_and_the_ptl_and_isolated() -> None:
    """``add_page_for_migration`` with ``follow_page`` and ``folio_isolate_lru``."""
    steps: Steps = (*TOUCHED, ("cpu0", op.MigratePages(MM, 0, page(1))))
    kinds = names(delivered(world("v6.6.5"), steps, "cpu0/2"))
    lookup = kinds[1 : kinds.index("MmapUnlock") + 1]
    assert lookup == [
        "MmapLock", "VmaFind", "PteLoad", "PtlLock", "PteLoad", "PageGet", "PtlUnlock",
        "FolioIsolateLru", "PagePut", "MmapUnlock",
    ]  # fmt: skip
    assert "FolioPutbackLru" not in kinds


def test_both_folios_are_locked_until_every_entry_is_back() -> None:
    """The new one first unlocked, and put before the old one is unlocked (v6.6)."""
    steps: Steps = (
        *TOUCHED, ("cpu0", op.Fork(MM, CHILD)), ("cpu0", op.MigratePages(MM, 0, page(1))),
    )  # fmt: skip
    kinds = names(delivered(world("v6.6.5"), steps, "cpu0/3"))
    assert kinds.index("FolioLock") < kinds.index("FolioTrylock") < kinds.index("PteGetAndClear")
    last = max(at for at, kind in enumerate(kinds) if kind == "PteSet")
    assert [kind for kind in kinds[last:] if kind.startswith("Folio")] == ["FolioUnlock"] * 2


@pytest.mark.parametrize(
    ("address", "moved"), [(0, 1), (page(1), 0), (page(2), 0), (page(9), 0)],
    ids=["mapped", "zero page", "nothing there", "no VMA"],
)  # fmt: skip
def test_what_can_be_migrated(address: int, moved: int) -> None:
    steps: Steps = (*TOUCHED, ("cpu0", op.MigratePages(MM, address, page(1))))
    assert results(world("v6.6.5"), steps, "MigratePages") == [moved]


# ---- migration_entry_wait ------------------------------------------------------------------------


def waits(release: str) -> list[list[str]]:
    """For each fault that waits for a migration, what it did from its look at the entry on."""
    begin = [op.Mmap(MM, 0, page(1), True, True), op.Touch(MM, 0, True, 1)]
    moves = [Step(op.MigratePages(MM, 0, page(1)), ("cpu0/1",)) for _ in range(4)]
    uses = [Step(op.Touch(MM, 0, n % 2 > 0, n), ("cpu0/1",)) for n in range(40)]
    asked = (
        Program("cpu0", "cpu0", [Step(o) for o in begin]),
        Program("cpu1", "cpu1", moves), Program("cpu2", "cpu2", uses),
    )  # fmt: skip
    found = []
    for seed in range(12):
        done: dict[str, list[str]] = {}

        def observe(envelope: Envelope, _: Handled, done: dict[str, list[str]] = done) -> None:
            if envelope.id.startswith("cpu2/") and MEMORY in (envelope.src, envelope.dst):
                done.setdefault(operation_of(envelope.id), []).append(envelope.kind)

        here = world(release)
        exchange = Exchange(Feeder(asked))
        ending = Simulator(build_all(here, seed), exchange, RandomWalk(seed), observe).run(20_000)
        assert ending.complete
        found += [kinds for kinds in done.values() if "FolioAddWaiter" in kinds]
    assert found
    return found


@pytest.mark.parametrize("release", ["v4.15", "v5.8", "v6.2", "v6.6.5"])
def test_who_waits_for_a_migration_holds_mmap_lock(release: str) -> None:
    """``do_swap_page`` does not let it go, nor its VMA (v6.6), in any release."""
    for kinds in waits(release):
        queued = kinds.index("FolioAddWaiter")
        held = kinds[:queued].count("MmapLock") + kinds[:queued].count("VmaStartRead")
        given = kinds[:queued].count("MmapUnlock") + kinds[:queued].count("VmaEndRead")
        assert held == given + 1
        if "FolioWait~" in kinds:
            waits_from, to = queued, kinds.index("FolioWait~")
            assert not {"MmapUnlock", "VmaEndRead"} & set(kinds[waits_from:to])


ORDERS = {
    "v4.15": ["PageGet", "PtlUnlock", "FolioAddWaiter", "FolioWait", "PagePut"],
    "v5.8": ["PageGet", "PtlUnlock", "FolioAddWaiter", "PagePut", "FolioWait"],
    "v6.2": ["FolioAddWaiter", "PtlUnlock", "FolioWait"],
}


@pytest.mark.parametrize("release", ORDERS)
def test_until_when_a_waiter_has_a_reference(release: str) -> None:
    """9a1ea439b16b (v5.0): until it is in the queue; ffa65753c431 (v5.17): never, but the PTL."""
    slept = [kinds for kinds in waits(release) if "FolioWait" in kinds]
    assert slept
    for kinds in slept:
        first, queued = kinds.index("FolioWait"), kinds.index("FolioAddWaiter")
        locked = max(at for at, kind in enumerate(kinds[:queued]) if kind == "PtlLock")
        tail = kinds[locked:first] + kinds[first : kinds.index("MmapUnlock", first)]
        wanted = [kind for kind in tail if kind in ORDERS[release]]
        assert wanted == ORDERS[release]


# ---- the mark of a batch -------------------------------------------------------------------------


@pytest.mark.parametrize("flushed", [0, 1, tlbbatch.PENDING_LARGE, tlbbatch.PENDING_LARGE + 1])
def test_pending_never_comes_round_to_flushed(flushed: int) -> None:
    """``set_tlb_ubc_flush_pending`` resets both counts when that of those pending is large."""
    batch = flushed | flushed << tlbbatch.FLUSHED_SHIFT
    for _ in range(1 << 16):
        batch = tlbbatch._one_more_pending(batch)
        assert batch & tlbbatch.PENDING_MASK != batch >> tlbbatch.FLUSHED_SHIFT
        assert batch < 1 << 31


def test_a_large_count_is_reset_by_who_adds_to_it() -> None:
    """Bits 0 to 14 count those pending; beyond the middle, one is pending and none is flushed."""
    large = tlbbatch.PENDING_LARGE + 1
    before = large | large << tlbbatch.FLUSHED_SHIFT
    stored: list[TlbBatchedCmpxchg] = []

    def observe(envelope: Envelope, _: Handled) -> bool | None:
        stored.extend([envelope.body] if isinstance(envelope.body, TlbBatchedCmpxchg) else [])
        return None

    here = world("v6.6.5")
    drivers = build_all(here, 1)
    memory_of(drivers).batched = {MM: before}
    steps: Steps = (*TOUCHED, ("cpu0", op.Kswapd(1)), ("cpu0", op.MadviseDontneed(MM, 0, page(4))))
    exchange = Exchange(Feeder(one_after_the_other(*steps)))
    assert Simulator(drivers, exchange, RandomWalk(1), observe).run(20_000).complete
    assert [(x.old, x.new) for x in stored] == [
        (before, 1), (1, 1 | 1 << tlbbatch.FLUSHED_SHIFT)
    ]  # fmt: skip


@pytest.mark.parametrize(("release", "noted"), [("v6.2", True), ("v6.5", False), ("v6.6.5", False)])
def test_what_no_tlb_can_hold_is_not_noted(release: str, noted: bool) -> None:
    """4d4b6d66db63 (v6.4): ``pte_accessible`` before ``arch_tlbbatch_add_pending``."""
    steps: Steps = (
        *TOUCHED, ("cpu0", op.Mprotect(MM, 0, page(4), False, False)), ("cpu0", op.Kswapd(1)),
    )  # fmt: skip
    kinds = names(delivered(world(release), steps, "cpu0/3"))
    assert "PteGetAndClear" in kinds
    assert ("TlbBatchedCmpxchg" in kinds) == noted
    assert ("FlushTlbIpi" in kinds) == noted


# ---- page tables ---------------------------------------------------------------------------------


def test_upper_entries_are_cleared_without_a_lock() -> None:
    """``free_pte_range``: ``pmd_clear`` under mmap_lock, for read by then."""
    steps: Steps = (*TOUCHED, ("cpu0", op.Munmap(MM, 0, page(4))))
    kinds = names(delivered(world("v6.6.5"), steps, "cpu0/2"))
    freed = kinds[kinds.index("AnonVmaUnlock") :]
    assert "PteGetAndClear" in freed
    assert "PtlLock" not in freed


class LateWalks(RandomWalk):
    """The guest's processor is slow when it walks page tables."""

    def pick(self, heads: list[Envelope]) -> int:
        """Such a load only if it was drawn four times in a row."""
        for _ in range(4):
            index = super().pick(heads)
            if (heads[index].src, heads[index].kind) != ("vcpu0", "PteLoad"):
                break
        return index


def stray_loads(arch: str, **switches: object) -> int:
    """A guest faults on pages whose table others free: loads of what is no table any more."""
    here = World(
        kernel=preset("v6.6.5", arch, switches), cpus=("cpu0", "cpu1"),
        parts=(Vm("kvm0", ("vcpu0",), MM, (Slot(0, 8, 0),)),), levels=2, entries=8, frames=24,
    )  # fmt: skip
    anew = op.Mmap(MM, 0, page(8), True, True)
    loop = [op.Touch(MM, 0, True, 1), op.Munmap(MM, 0, page(8)), anew]
    asked = (
        Program("cpu0", "cpu0", [Step(o) for o in (anew, *loop * 6)]),
        Program("vcpu0", "vcpu0", [Step(GuestTouch(0, True, n)) for n in range(12)]),
    )
    strays = 0
    for seed in range(80):
        drivers, oracle = build_all(here, seed), Oracle(here)
        frames = memory_of(drivers).frames

        def observe(
            envelope: Envelope, handled: Handled, frames: list[Frame] = frames,
            oracle: Oracle = oracle,
        ) -> object:  # fmt: skip
            nonlocal strays
            if isinstance(envelope.body, PteLoad) and envelope.src == "vcpu0":
                strays += frames[envelope.body.table].level < 0
            return oracle.observe(envelope, handled)

        simulator = Simulator(drivers, Exchange(Feeder(asked)), LateWalks(seed), observe)
        oracle.finish(simulator.run(30_000))
        if not strays:
            assert [violation.text() for violation in oracle.violations] == []
    return strays


def test_a_lockless_walk_ends_before_its_table_is_freed() -> None:
    """``CONFIG_MMU_GATHER_RCU_TABLE_FREE``; where flushes are IPIs, these are enough."""
    assert stray_loads("arm64") == 0
    assert stray_loads("x86") == 0
    assert stray_loads("x86", rcu_table_free=True) == 0
    assert stray_loads("arm64", rcu_table_free=False) > 0


@pytest.mark.parametrize("mapped", [False, True])
def test_a_range_of_any_length_costs_what_is_mapped_in_it(mapped: bool) -> None:
    """2^36 pages, two of them there, in a hole or in one mapping."""
    start, length = 1 << 40, 1 << 46
    here = World(kernel=preset("v6.6.5"), levels=4, entries=512, frames=64)
    far = [start + page(3), start + length - page(700)]
    maps = [(start, length)] if mapped else [(at, page(1)) for at in far]
    steps: list[tuple[str, op.Operation]] = [
        *(("cpu0", op.Mmap(MM, at, size, True, True)) for at, size in maps),
        *(("cpu0", op.Touch(MM, at, True, 1)) for at in far),
        ("cpu0", op.MigratePages(MM, start, length)),
    ]
    assert results(here, tuple(steps), "MigratePages") == [2]
