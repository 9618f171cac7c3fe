"""Copy on write, swap-in and fast GUP against their order in the source, release by release."""

from __future__ import annotations

from typing import Any

import pytest

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program, Step
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel import gup
from mmurace.nodes.memory import Memory
from mmurace.nodes.secondaries.kvm.messages import GuestTouch
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.protocol import pte as ptes
from mmurace.protocol.messages import memory as m
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages import swap as s
from mmurace.protocol.messages.processor import Tlbi
from mmurace.protocol.records import Coverage, PageRead
from tests.test_file_reclaim import Steps, chaos, values
from tests.test_kernel_order import CHILD, MM, _hold, delivered, names, world
from tests.test_madvise_free import one_after_the_other, run
from tests.worlds import page

RELEASES = [("v4.15", "x86"), ("v5.8", "x86"), ("v5.8", "arm64"), ("v5.10", "x86"),
            ("v6.2", "arm64"), ("v6.6.5", "x86"), ("v6.6.5", "arm64"), ("v6.2", "ppc")]  # fmt: skip
MAPPED = (("cpu0", op.Mmap(MM, 0, page(1), True, True)), ("cpu0", op.Touch(MM, 0, True, 1)))
OUT = ("cpu2", op.Kswapd(4))
READ, STORE = ("cpu0", op.Touch(MM, 0, False)), ("cpu0", op.Touch(MM, 0, True, 2))
FORK = ("cpu0", op.Fork(MM, CHILD))
READ_ONLY = (
    ("cpu0", op.Mprotect(MM, 0, page(1), True, False)),
    ("cpu0", op.Mprotect(MM, 0, page(1), True, True)),
)


def of_last(here: Any, *steps: tuple[str, op.Operation]) -> list[Any]:
    """What is delivered for the last of these steps, one after the other."""
    node, last = steps[-1][0], sum(step[0] == steps[-1][0] for step in steps) - 1
    return delivered(here, steps, f"{node}/{last}")


def stored(messages: list[Any]) -> list[int]:
    """Flags of the entries of pages that are stored, those of tables left out."""
    found = [x.pte if isinstance(x, m.PteSet) else x.new for x in messages
             if isinstance(x, m.PteSet | m.PteCmpxchg)]  # fmt: skip
    return [ptes.flags_of(pte) for pte in found]


# ---- do_wp_page ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "asks"),
    [
        ("v5.8", ["FolioTrylock", "RmapWalk", "PageSwapEntry", "FolioUnlock"]),
        ("v5.10", ["FolioRefCount", "FolioTrylock", "RmapWalk", "FolioRefCount", "FolioUnlock"]),
        ("v6.2", ["PageAnonExclusive"]),
    ],
)
def test_what_a_store_asks_before_it_reuses(release: str, asks: list[str]) -> None:
    """``reuse_swap_page``; 09854ba94c6a (v5.9); 6c287605fd56 (v5.19), without the folio lock."""
    here = world(release, change_protection_upgrades="dirty_shared")  # else mprotect upgrades
    kinds = names(of_last(here, *MAPPED, *READ_ONLY, STORE))
    assert "FrameCopy" not in kinds
    assert [k for k in kinds if k.startswith(("Folio", "PageA", "PageS", "RmapW"))] == asks


def test_v5_18_frees_the_swap_cache_first() -> None:
    """53a05ad9f21d: the page that was read in for a load is in the swap cache still."""
    here = world("v6.2", cow_reuse="free_swap")
    kinds = names(of_last(here, *MAPPED, OUT, READ, STORE))
    assert "FrameCopy" not in kinds
    assert kinds.index("FolioTrylock") < kinds.index("FolioFreeSwap") < kinds.index("FolioUnlock")


@pytest.mark.parametrize(("release", "copies"), [("v5.8", 0), ("v5.10", 1), ("v6.2", 0)])
def test_a_page_that_is_in_the_swap_cache(release: str, copies: int) -> None:
    """From v5.9 to v5.17 the reference of the swap cache is one too many for ``do_wp_page``."""
    kinds = names(of_last(world(release), *MAPPED, OUT, READ, STORE))
    assert kinds.count("FrameCopy") == copies


def locked_meanwhile() -> tuple[Program, ...]:
    """The only process with a page stores to it while reclaim has it locked."""
    begin = [o for _, o in (*MAPPED, *READ_ONLY)]
    return (
        Program("cpu0", "cpu0", [*map(Step, begin), Step(STORE[1])]),
        Program("cpu2", "cpu2", [Step(op.Kswapd(4), ("cpu0/3",))]),
    )


LOCKED: tuple[dict[str, object], ...] = (
    _hold({"dst": "memory", "kind": "FolioTrylock", "operation": "cpu2/0"},
          operation="cpu0/4", kind="Touch"),
    _hold({"dst": "memory", "kind": ["FolioLock", "FrameCopy", "FrameWrite"],
           "operation": "cpu0/4"}, operation="cpu2/0", kind="AddToSwap"),
)  # fmt: skip


@pytest.mark.parametrize(("release", "waits"), [("v5.8", True), ("v5.10", False), ("v6.2", False)])
def test_who_waits_for_the_folio_lock(release: str, waits: bool) -> None:
    """``lock_page`` without the PTL to v5.8; from v5.9 the page is copied, or is exclusive."""
    for seed in range(3):
        oracle, _, complete = run(world(release), locked_meanwhile(), seed, chaos(seed, *LOCKED))
        assert complete
        assert not oracle.violations, [v.text() for v in oracle.violations]
    taken = delivered_with(world(release), locked_meanwhile(), LOCKED, "cpu0/4")
    assert ("FolioLock" in taken) == waits


def delivered_with(
    here: Any, programs: tuple[Program, ...], rules: tuple[dict[str, object], ...], operation: str
) -> list[str]:
    """Kinds of what is delivered for an operation under chaos."""
    found: list[str] = []

    def observe(envelope: Any, _: Any) -> None:
        if envelope.id.split(".")[0] == operation and not envelope.is_reply:
            found.append(type(envelope.body).__name__)

    exchange = Exchange(Feeder(programs), chaos(1, *rules))
    assert Simulator(build_all(here, 1), exchange, RandomWalk(1), observe).run(20_000).complete
    return found


# ---- do_swap_page --------------------------------------------------------------------------------


@pytest.mark.parametrize(("release", "arch"), RELEASES)
def test_a_load_maps_a_page_from_swap_clean(release: str, arch: str) -> None:
    """``mk_pte``; dirty and writable only for a store that may have the page."""
    messages = of_last(world(release, arch), *MAPPED, OUT, READ)
    assert stored(messages) == [ptes.PRESENT | ptes.ACCESSED]
    kinds = names(messages)
    order = ["SwapCacheGet", "FrameAlloc", "SwapCacheAdd", "SwapRead", "FolioUnlock", "FolioLock",
             "PageSwapEntry", "PtlLock", "PteLoad", "SwapFree", "RmapAdd", "PteSet",
             "FolioUnlock", "PtlUnlock"]  # fmt: skip
    rest = iter(kinds)
    assert all(kind in rest for kind in order), kinds


@pytest.mark.parametrize(("release", "arch"), RELEASES)
def test_a_store_maps_a_page_from_swap_for_writing(release: str, arch: str) -> None:
    messages = of_last(world(release, arch), *MAPPED, OUT, STORE)
    assert stored(messages) == [ptes.PRESENT | ptes.ACCESSED | ptes.WRITE | ptes.DIRTY]
    assert "FrameCopy" not in names(messages)


@pytest.mark.parametrize(("release", "arch"), RELEASES)
def test_two_processes_read_a_slot_once_and_a_store_copies(release: str, arch: str) -> None:
    """Both map the page of the swap cache; whoever stores gets one of its own."""
    child = ("cpu1", op.Touch(CHILD, 0, False))
    steps: Steps = (*MAPPED, FORK, OUT, READ, child, STORE, child)
    oracle, records, complete = run(world(release, arch), one_after_the_other(*steps))
    assert complete
    assert not oracle.violations, [v.text() for v in oracle.violations]
    assert sum(isinstance(r, PageRead) for r in records) == 1
    assert values(records) == [1, 1, 1]


@pytest.mark.parametrize(("release", "arch"), RELEASES)
def test_pages_leave_the_swap_cache_with_their_last_user(release: str, arch: str) -> None:
    """``free_swap_cache`` in the gather; before v5.14 what a copy leaves behind is reclaimed."""
    steps: Steps = (
        *MAPPED, OUT, READ, STORE, OUT, READ, ("cpu0", op.Munmap(MM, 0, page(1))), OUT,
    )  # fmt: skip
    pages = memory_after(world(release, arch), steps)
    assert not pages.slots
    assert not any(frame.swap or (frame.anon and frame.refs) for frame in pages.frames)


def memory_after(here: Any, steps: Steps) -> Memory:
    """The memory node when all is done."""
    drivers = build_all(here, 1)
    exchange = Exchange(Feeder(one_after_the_other(*steps)))
    assert Simulator(drivers, exchange, RandomWalk(1)).run(20_000).complete
    node = drivers["memory"].node
    assert isinstance(node, Memory)
    return node


# ---- PageAnonExclusive ---------------------------------------------------------------------------


def pinned(patch: pytest.MonkeyPatch) -> None:
    """Somebody has pinned every anonymous page (``FOLL_PIN``) as soon as it was mapped."""
    right = Memory.rmap_add

    def rmap_add(memory: Memory, message: m.RmapAdd, envelope: Any) -> Any:
        folio = memory.frames[message.frame]
        if folio.anon and not folio.pins:
            folio.pins, folio.refs = 1, folio.refs + 1
        return right(memory, message, envelope)

    patch.setattr(Memory, "rmap_add", rmap_add)


TAKES = {"reclaim": OUT, "migration": ("cpu2", op.MigratePages(MM, 0, page(1)))}


@pytest.mark.parametrize("taken", TAKES)
@pytest.mark.parametrize(
    ("release", "arch"), [("v6.2", "x86"), ("v6.6.5", "x86"), ("v6.6.5", "arm64")]
)
def test_the_entry_of_a_pinned_page_is_put_back(
    release: str, arch: str, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``page_try_share_anon_rmap`` refuses once the entry is cleared (088b8aa537c2, v6.1)."""
    pinned(monkeypatch)
    steps: Steps = (*MAPPED, TAKES[taken], READ)
    oracle, records, complete = run(world(release, arch), one_after_the_other(*steps))
    assert complete
    assert not oracle.violations, [v.text() for v in oracle.violations]
    assert Coverage("anon_exclusive_pinned") in records
    kinds = names(of_last(world(release, arch), *MAPPED, TAKES[taken]))
    assert kinds.index("PteGetAndClear") < kinds.index("RmapTryShare") < kinds.index("PteSet")
    assert "FrameAlloc" not in names(of_last(world(release, arch), *steps))
    assert values(records) == [1]


def test_a_child_gets_a_copy_of_a_pinned_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """``page_try_dup_anon_rmap`` refuses; the parent's entry stays writable."""
    pinned(monkeypatch)
    kinds = names(of_last(world("v6.6.5"), *MAPPED, FORK))
    assert "FrameCopy" in kinds
    assert "PteCmpxchg" not in kinds
    copy = len(kinds) - kinds[::-1].index("FrameCopy")
    assert kinds[:copy].count("PtlLock") == kinds[:copy].count("PtlUnlock") + 2
    steps: Steps = (*MAPPED, FORK, STORE, ("cpu1", op.Touch(CHILD, 0, False)))
    oracle, records, complete = run(world("v6.6.5"), one_after_the_other(*steps))
    assert complete
    assert not oracle.violations, [v.text() for v in oracle.violations]
    assert values(records) == [1]


@pytest.mark.parametrize(("release", "copies"), [("v5.8", False), ("v5.10", True), ("v6.2", True)])
def test_from_which_release_on_fork_copies_a_pinned_page(
    release: str, copies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned(monkeypatch)
    assert ("FrameCopy" in names(of_last(world(release), *MAPPED, FORK))) == copies


@pytest.mark.parametrize("way", ["swap", "migration"])
def test_an_exclusive_page_is_exclusive_again_but_not_after_a_fork(way: str) -> None:
    """``pte_swp_exclusive`` and the migration entry remember it; fork takes it away."""
    away: Steps = (OUT, READ) if way == "swap" else (TAKES["migration"],)
    here = world("v6.2")
    protect = () if way == "swap" else READ_ONLY
    kinds = names(of_last(here, *MAPPED, *away, *protect, STORE))
    assert "FrameCopy" not in kinds
    assert "FolioTrylock" not in kinds
    kinds = names(of_last(here, *MAPPED, FORK, *away, STORE))
    assert "FrameCopy" in kinds


# ---- ptep_set_access_flags, spurious faults, fast GUP --------------------------------------------


def late_load(store: bool) -> tuple[Program, ...]:
    """cpu1 finds nothing, and has the PTL when cpu0 has touched the page and made it old."""
    steps = (*MAPPED, ("cpu0", op.MadviseFree(MM, 0, page(1))))
    cpu1 = [Step(op.Touch(MM, 0, store, 3), ("cpu0/0",))]
    return (Program("cpu0", "cpu0", [Step(o) for _, o in steps]), Program("cpu1", "cpu1", cpu1))


LATE: tuple[dict[str, object], ...] = (
    _hold({"src": "cpu1", "dst": "memory", "kind": "MmapLock", "operation": "cpu1/0"},
          operation="cpu0/1", kind="Touch"),
    _hold({"src": "cpu0", "dst": "memory", "kind": "MmapUnlock", "operation": "cpu0/2"},
          src="cpu1", dst="memory", kind="VmaFind", operation="cpu1/0"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("release", "arch", "stores", "flushes"),
    [("v5.8", "x86", [], 0), ("v6.6.5", "x86", [], 0), ("v5.8", "arm64", ["PteCmpxchg"], 2),
     ("v5.10", "arm64", ["PteCmpxchg"], 0), ("v6.6.5", "arm64", ["PteCmpxchg"], 0)],
)  # fmt: skip
def test_what_a_load_does_to_an_old_entry(
    release: str, arch: str, stores: list[str], flushes: int
) -> None:
    """x86 nothing; arm64 merges accessed, and flushes to v5.9 (6a1bdb173184)."""
    kinds = delivered_with(world(release, arch), late_load(False), LATE, "cpu1/0")
    assert [k for k in kinds if k in ("PteSet", "PteCmpxchg")] == stores
    assert kinds.count(Tlbi.__name__) == flushes


@pytest.mark.parametrize(
    ("release", "arch", "load", "store"),
    [("v6.6.5", "x86", 0, 0), ("v5.8", "arm64", 0, 2), ("v5.10", "arm64", 0, 0)],
)
def test_a_spurious_fault_is_repaired_for_stores_only(
    release: str, arch: str, load: int, store: int
) -> None:
    """``handle_pte_fault`` calls ``flush_tlb_fix_spurious_fault`` for a write."""
    touched: dict[str, object] = {"src": "cpu0", "kind": "MmapUnlock", "operation": "cpu0/1"}
    late = _hold(touched, src="cpu1", dst="memory", kind="VmaFind", operation="cpu1/0")
    rules = (LATE[0], late)
    for is_store, flushes in ((False, load), (True, store)):
        programs = (Program("cpu0", "cpu0", [Step(o) for _, o in MAPPED]), late_load(is_store)[1])
        kinds = delivered_with(world(release, arch), programs, rules, "cpu1/0")
        assert "PteSet" not in kinds
        assert kinds.count(Tlbi.__name__) == flushes


@pytest.mark.parametrize(("release", "loads"), [("v5.12", 3), ("v6.2", 4)])
def test_fast_gup_looks_again(release: str, loads: int) -> None:
    """``gup_pte_range``: the entry; from v6.1 the upper entry before it (70cbc3cc78a9)."""
    vm = Vm("kvm0", ("vcpu0",), MM, (Slot(0, 1, 0),))
    here = world(release).with_parts(Vm, (vm,))
    kinds = names(of_last(here, *MAPPED, ("vcpu0", GuestTouch(0, True, 2))))
    got = kinds.index("PageGet")
    assert (kinds[:got].count("PteLoad"), kinds[got:].count("PteLoad")) == (2, loads - 2)
    assert "MmapLock" not in kinds


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_fast_gup_gives_up_if_anything_has_changed(changed: int) -> None:
    """To the bit: a walker that sets dirty is enough (2: only the upper entry, v6.1)."""
    frame, answers = 5, [ptes.make(3, 1), ptes.make(5, 33), ptes.make(3, 1), ptes.make(5, 33)]
    if changed:
        answers[-changed] |= ptes.DIRTY

    class Port:
        upcoming = "walk"

    class Cpu:
        port, world = Port(), world("v6.2")

        def irq_disable(self) -> None: ...

        irq_enable = irq_disable
        put: list[int] = []

        async def mem(self, message: Any) -> Any:
            if isinstance(message, m.PagePut):
                self.put.append(message.frame)
            return m.PteValue(answers.pop(0)) if isinstance(message, m.PteLoad) else m.Flag(True)

    cpu: Any = Cpu()
    walk = gup.get_user_page_fast_only(cpu, MM, 0, False)
    with pytest.raises(StopIteration) as ended:
        walk.send(None)
    got = ended.value.value
    assert (got is None) == bool(changed)
    assert cpu.put == ([frame] if changed else [])


def test_zapping_frees_an_idle_slot() -> None:
    """``free_swap_and_cache``."""
    steps: Steps = (*MAPPED, OUT, ("cpu0", op.Munmap(MM, 0, page(1))))
    kinds = names(of_last(world("v6.6.5"), *steps))
    assert s.FreeSwapAndCache.__name__ in kinds
    assert not memory_after(world("v6.6.5"), steps).slots
