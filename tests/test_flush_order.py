"""What is flushed, whom that tells, and in which brackets: against the order in the source."""

from __future__ import annotations

from typing import Any

import pytest

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.explorer.run.session import simulate
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel import mprotect, tlb
from mmurace.nodes.kernel.mmu_gather import MmuGather
from mmurace.nodes.kernel.variant import MACHINES as ARCHES
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.kernel.variant.release import LONG_TERM as RELEASES
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.messages import (
    GuestTouch,
    InProgress,
    KvmRequest,
    MmuLock,
    TlbiVmid,
)
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.world import World
from mmurace.protocol import pte as ptes
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.limits import ULONG_MAX
from mmurace.protocol.messages import memory as m
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.processor import FlushTlbIpi, Tlbi
from mmurace.protocol.records import NotifierCall
from tests.file_programs import FILE
from tests.test_cases import case
from tests.test_file_reclaim import Steps
from tests.test_kernel_order import delivered, names
from tests.test_madvise_free import one_after_the_other, run
from tests.worlds import page

MM, CHILD = "mm0", "mm1"
ALL = (0, ULONG_MAX)


def world(release: str, arch: str = "x86", levels: int = 3, **switches: object) -> World:
    """A process with an IOMMU and room for a child; a leaf table has 8 entries."""
    return World(
        kernel=preset(release, arch, switches),
        mms=(MM, CHILD),
        parts=(Unit("iommu0", (), (MM,), "cpu1"),),
        levels=levels,
        frames=96,
    )


def told(here: World, steps: Steps, operation: str, callback: str = "") -> list[tuple[int, int]]:
    """The ranges of the callbacks of an operation; of one kind, or the brackets of the core.

    An IOMMU has no ``invalidate_range_start``, so brackets are those that a VM is told.
    """
    wanted = callback or "invalidate_range_start"
    found: list[tuple[int, int]] = []

    def observe(_: Envelope, handled: Handled) -> bool | None:
        calls = [c for c in handled.records if isinstance(c, NotifierCall)]
        begun = [c for c in calls if (c.op, c.phase, c.callback) == (operation, "begin", wanted)]
        found.extend((c.start, c.end) for c in begun)
        return None

    if not callback:
        vm = Vm("kvm0", ("vcpu0",), MM, (Slot(0, 1, 0),))
        here = here.with_parts(Vm, (vm,))
    exchange = Exchange(Feeder(one_after_the_other(*steps)))
    assert Simulator(build_all(here, 1), exchange, RandomWalk(1), observe).run(20_000).complete
    return found


def flushes(messages: list[Any]) -> list[tuple[int, int]]:
    """The ranges that other processors were told to flush."""
    found = [x for x in messages if isinstance(x, FlushTlbIpi | Tlbi)]
    return list(dict.fromkeys((x.start, x.end) for x in found))


# ---- flush ceilings ------------------------------------------------------------------------------


def unmapped(pages: int) -> Steps:
    """So many pages are unmapped, of which the first and the last are there."""
    return (
        ("cpu0", op.Mmap(MM, 0, page(pages), True, True)),
        ("cpu1", op.Touch(MM, 0, True, 1)),
        ("cpu1", op.Touch(MM, page(pages - 1), True, 2)),
        ("cpu0", op.MadviseDontneed(MM, 0, page(pages))),
    )


Range = tuple[int, int]
CEILINGS = [
    ("v6.6.5", "x86", {}, 33, ALL),
    ("v6.6.5", "x86", {"ceiling_told": "range"}, 33, None),
    ("v6.6.88", "arm64", {}, 511, ALL),
]
HOOK = "arch_invalidate_secondary_tlbs"


@pytest.mark.parametrize(("release", "arch", "switches", "ceiling", "hears"), CEILINGS)
def test_above_the_ceiling_the_whole_mm_is_flushed(
    release: str,
    arch: str,
    switches: dict[str, object],
    ceiling: int,
    hears: tuple[int, int] | None,
) -> None:
    """33 pages on x86; fewer than MAX_TLBI_OPS on arm64; and what the hook hears then."""
    here = world(release, arch, 4, **switches)
    for pages in (ceiling, ceiling + 1):
        large, exact = pages > ceiling, (0, page(pages))
        assert flushes(delivered(here, unmapped(pages), "cpu0/1")) == [ALL if large else exact]
        expected = (hears or exact) if large else exact
        assert told(here, unmapped(pages), "cpu0/1", HOOK) == [expected]


def test_what_stands_before_the_hook_hears_the_gather_s_own_range() -> None:
    """``invalidate_range`` is called beside the flush, not by it (to v6.5)."""
    here = world("v6.2", end_calls_ir=False)
    assert flushes(delivered(here, unmapped(40), "cpu0/1")) == [ALL]
    assert told(here, unmapped(40), "cpu0/1", "invalidate_range") == [(0, page(40))]


@pytest.mark.parametrize(
    ("release", "arch", "pages"),
    [
        ("v4.15", "x86", 33),
        ("v4.18", "arm64", 1024),
        ("v5.1", "arm64", 511),
        ("v6.6.5", "arm64", 511),
    ],
)
def test_the_ceiling_by_release(release: str, arch: str, pages: int) -> None:
    """MAX_TLB_RANGE may be reached, MAX_TLBI_OPS may not."""
    assert preset(release, arch).arch.flush_ceiling == pages


def test_measures_count_what_the_secondaries_were_told() -> None:
    """P1 and P2: a whole mm, not 40 pages, and once."""
    race = case("flush-ceiling")
    whole = simulate(race.run("v6.6-exact", 1)).verdict.how.statistics
    assert whole["secondary_whole"]["Munmap"] == 1
    assert "Munmap" not in whole["secondary_pages"]
    ranged = simulate(race.run("v6.6-told-the-range", 1)).verdict.how.statistics
    assert ranged["secondary_pages"]["Munmap"] == 56  # from the beginning of the table freed
    for counted in (whole, ranged):
        assert counted["secondary_invalidations"]["Munmap"] == 1
        assert "Munmap" not in counted["secondary_repeated"]


# ---- the end of a VMA ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "arch", "inside"),
    [("v6.6.5", "arm64", True), ("v6.6.5", "x86", False), ("v5.7", "arm64", True)],
)
def test_arm64_flushes_a_vma_inside_the_bracket(release: str, arch: str, inside: bool) -> None:
    """``tlb_end_vma``: measured on v6.1 and v6.12; x86 has CONFIG_MMU_GATHER_MERGE_VMAS."""
    messages = delivered(guest_world(release, arch), unmapped(2), "cpu0/1")
    kinds = names(messages)
    ended = max(at for at, x in enumerate(messages) if isinstance(x, InProgress) and x.delta < 0)
    flushed = next(at for at, kind in enumerate(kinds) if kind in ("Tlbi", "FlushTlbIpi"))
    assert (flushed < ended) == inside
    assert kinds.index("PagePut") > ended  # what it queued is freed at the end of all


# ---- mprotect ------------------------------------------------------------------------------------

TWO_VMAS: Steps = (
    ("cpu0", op.Mmap(MM, 0, page(2), True, True)),
    ("cpu0", op.Mmap(MM, page(2), page(2), True, True, FILE, 0, True)),
    ("cpu1", op.Touch(MM, 0, True, 1)),
    ("cpu1", op.Touch(MM, page(2), True, 2)),
    ("cpu0", op.Mprotect(MM, 0, page(4), True, False)),
)


@pytest.mark.parametrize(
    ("release", "arch", "ranges"),
    [
        ("v5.12", "x86", [(0, page(2)), (page(2), page(4))]),
        ("v6.2", "x86", [(0, page(3))]),
        ("v6.2", "arm64", [(0, page(1)), (page(2), page(3))]),
    ],
)
def test_one_gather_for_the_whole_call(
    release: str, arch: str, ranges: list[tuple[int, int]]
) -> None:
    """4a18419f71cd (v5.19); arm64 flushes at the end of each VMA all the same."""
    assert flushes(delivered(world(release, arch), TWO_VMAS, "cpu0/2")) == ranges


def far_apart(*steps: tuple[str, op.Operation]) -> Steps:
    """Two leaf tables below different tables of the level above, and what comes then."""
    return (
        ("cpu0", op.Mmap(MM, 0, page(128), True, True)),
        ("cpu0", op.Touch(MM, page(10), True, 1)),
        ("cpu0", op.Touch(MM, page(70), True, 2)),
        *steps,
        ("cpu0", op.Mprotect(MM, 0, page(127), True, False)),
    )


@pytest.mark.parametrize("release", ["v4.15", "v5.12", "v6.6.5"])
def test_a_bracket_for_each_table_of_leaf_tables(release: str) -> None:
    """``change_pmd_range``: from the first entry that is there to the end of its table's part."""
    ranges = [(page(8), page(64)), (page(64), page(127))]
    assert told(world(release), far_apart(), "cpu0/3") == ranges
    emptied = far_apart(("cpu0", op.MadviseDontneed(MM, page(70), page(1))))
    assert told(world(release), emptied, "cpu0/4") == ranges  # an empty leaf table is there, too


def test_a_bracket_one_level_higher() -> None:
    """``change_pud_range`` (v6.12, measured there); a level that is folded is always there."""
    here = world("v6.6.5", change_protection_bracket="pud")
    assert told(here, far_apart(), "cpu0/3") == [(0, page(127))]
    nothing: Steps = (
        ("cpu0", op.Mmap(MM, 0, page(4), True, True)),
        ("cpu0", op.Mprotect(MM, 0, page(4), True, False)),
    )
    assert told(here, nothing, "cpu0/1") == []
    folded = world("v6.6.5", levels=2, change_protection_bracket="pud")
    assert told(folded, nothing, "cpu0/1") == [(0, page(4))]
    assert told(world("v6.6.5", levels=2), nothing, "cpu0/1") == []


NOTHING_LOST: Steps = (
    ("cpu0", op.Mmap(MM, 0, page(1), True, True)),
    ("cpu1", op.Touch(MM, 0, False)),
    ("cpu0", op.Mprotect(MM, 0, page(1), True, False)),
)


@pytest.mark.parametrize(
    ("release", "arch", "flushed"),
    [
        ("v5.12", "x86", True),
        ("v6.2", "x86", False),
        ("v6.6.5", "x86", False),
        ("v6.6.5", "arm64", True),
    ],
)
def test_an_entry_that_loses_nothing(release: str, arch: str, flushed: bool) -> None:
    """``pte_needs_flush`` (c9fe66560bf2, v5.19); the entry is rewritten in any case."""
    messages = delivered(world(release, arch), NOTHING_LOST, "cpu0/1")
    assert bool(flushes(messages)) == flushed
    assert "PteGetAndClear" in names(messages)


class _X86:
    """As much of a processor as ``pte_needs_flush`` asks for."""

    world = world("v6.6.5")


R, W, A, D, N = ptes.PRESENT, ptes.WRITE, ptes.ACCESSED, ptes.DIRTY, ptes.PROTNONE


@pytest.mark.parametrize(
    ("old", "new", "needs"),
    [(R | A, R | A, False), (R | W | A, R | A, True), (R | A, R | W | A, True),
     (N | A, R | A, False), (R | A, N | A, True), (R | A, R | A | D, False),
     (R | A | D, R | A, True), (R | A, R, True)],
)  # fmt: skip
def test_which_entries_x86_flushes(old: int, new: int, needs: bool) -> None:
    """``pte_flags_need_flush``: the write right in either direction, what else is lost."""
    cpu: Any = _X86()
    assert mprotect.pte_needs_flush(cpu, old, new) == needs


@pytest.mark.parametrize("release", ["v4.15", "v5.12", "v6.2", "v6.6.5"])
def test_a_dirty_page_of_a_shared_mapping_is_writable_again_at_once(release: str) -> None:
    """``MM_CP_DIRTY_ACCT``, from v6.0 ``MM_CP_TRY_CHANGE_WRITABLE``: its file system knows."""
    steps: Steps = (
        ("cpu0", op.Mmap(MM, 0, page(2), True, True, FILE, 0, True)),
        ("cpu0", op.Touch(MM, 0, True, 1)), ("cpu0", op.Touch(MM, page(1), False)),
        ("cpu0", op.Mprotect(MM, 0, page(2), True, False)),
        ("cpu0", op.Mprotect(MM, 0, page(2), True, True)),
    )  # fmt: skip
    stored = [x for x in delivered(world(release), steps, "cpu0/4") if isinstance(x, m.PteSet)]
    assert [bool(x.pte & ptes.WRITE) for x in stored] == [True, False]


WRITTEN: Steps = (
    ("cpu0", op.Mmap(MM, 0, page(1), True, True)),
    ("cpu0", op.Touch(MM, 0, True, 1)),
)
CLEANED: Steps = (*WRITTEN, ("cpu0", op.MadviseFree(MM, 0, page(1))))
SHARED: Steps = (*WRITTEN, ("cpu0", op.Fork(MM, CHILD)))


@pytest.mark.parametrize(
    ("upgrades", "steps", "writable"),
    [
        ("dirty_shared", WRITTEN, False),
        ("dirty_exclusive", WRITTEN, True),
        ("dirty_exclusive", CLEANED, False),
        ("exclusive", WRITTEN, True),
        ("exclusive", CLEANED, True),
        ("exclusive", SHARED, False),
        ("exclusive", (*SHARED, ("cpu0", op.Exit(CHILD))), False),
    ],
)
def test_an_exclusive_anonymous_page_is_writable_again_at_once(
    upgrades: str, steps: Steps, writable: bool
) -> None:
    """64fe24a3e05e (v6.0), 7ea7e333842e (v6.2); measured on v6.1 and v6.12.

    A page that was forked is not, even when nobody else has it any more: that takes a fault.
    """
    protect = [("cpu0", op.Mprotect(MM, 0, page(1), True, write)) for write in (False, True)]
    here = world("v6.2", change_protection_upgrades=upgrades)
    last = delivered(here, (*steps, *protect), f"cpu0/{len(steps) + 1}")
    (stored,) = [x for x in last if isinstance(x, m.PteSet)]
    assert bool(stored.pte & ptes.WRITE) == writable
    assert preset("v5.12").mm.change_protection_upgrades == "dirty_shared"
    assert preset("v6.2").mm.change_protection_upgrades == "exclusive"


def test_a_migration_entry_for_writing_becomes_one_for_reading() -> None:
    """``change_pte_range``, all releases: even where the VMA is to be writable."""
    vma = m.Vma(0, page(1), True, True)
    asked: list[Any] = []

    class Cpu(_X86):
        async def mem(self, message: Any) -> Any:
            asked.append(message)
            found = ptes.make(3, ptes.MIGRATION | ptes.WRITE)
            if isinstance(message, m.PteScan):
                return m.PteFound(0 if len(asked) < 4 else -1, found)
            return m.Count(0)

    cpu: Any = Cpu()
    change = mprotect.Change(vma)
    part = mprotect.change_pte_range(cpu, MmuGather(MM, 0, page(1)), change, 1, 0, page(1))
    with pytest.raises(StopIteration):
        part.send(None)
    (stored,) = [x for x in asked if isinstance(x, m.PteSet)]
    assert stored.pte == ptes.make(3, ptes.MIGRATION)


# ---- fork ----------------------------------------------------------------------------------------


def forked(*touches: op.Operation, file: str = "") -> Steps:
    """A private mapping, what is done with it, and a fork."""
    begin = [("cpu0", op.Mmap(MM, 0, page(2), True, True, file)), *(("cpu0", o) for o in touches)]
    return (*begin, ("cpu1", op.Touch(MM, 0, False)), ("cpu0", op.Fork(MM, CHILD)))


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("file", ["", FILE])
def test_nothing_is_copied_without_an_anon_vma(release: str, file: str) -> None:
    """``vma_needs_copy``, all releases; a real v6.18 shows it.  The flush is made all the same."""
    steps = forked(op.Touch(MM, 0, False), file=file)
    messages = delivered(world(release), steps, "cpu0/2")
    assert "PteSet" not in names(messages)
    assert flushes(messages) == [ALL]
    assert told(world(release), steps, "cpu0/2") == []


@pytest.mark.parametrize("file", ["", FILE])
def test_what_has_an_anon_vma_is_copied(file: str) -> None:
    """Once anonymous memory was mapped; also what was split off, moved, or forked from that."""
    store, protect = op.Touch(MM, 0, True, 1), op.Mprotect(MM, page(1), page(1), True, False)
    assert told(world("v6.6.5"), forked(store, file=file), "cpu0/2") == [(0, page(2))]
    gone = forked(store, op.MadviseDontneed(MM, 0, page(2)), file=file)
    assert told(world("v6.6.5"), gone, "cpu0/3") == [(0, page(2))]
    split = forked(store, protect, file=file)
    assert told(world("v6.6.5"), split, "cpu0/3") == [(0, page(1)), (page(1), page(2))]
    moved = forked(store, op.Mremap(MM, 0, page(2), page(4), page(2)), op.Mmap(MM, 0, page(1), True,
                   True))  # fmt: skip
    assert told(world("v6.6.5"), moved, "cpu0/4") == [(page(4), page(6))]


# ---- clear_refs ----------------------------------------------------------------------------------

SOFT_DIRTY: Steps = (
    ("cpu0", op.Mmap(MM, 0, page(2), True, True)),
    ("cpu1", op.Touch(MM, 0, True, 1)),
    ("cpu0", op.ClearRefs(MM)),
)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_clear_refs_tells_of_everything(release: str, arch: str) -> None:
    """``clear_refs_write``: [0, -1UL) in all releases, so ``invalidate_range`` hears it to v6.5."""
    here = world(release, arch)
    assert told(here, SOFT_DIRTY, "cpu0/1") == [ALL]
    heard = told(here, SOFT_DIRTY, "cpu0/1", "invalidate_range")
    assert heard[:1] == ([ALL] if here.kernel.mm.end_calls_ir else [])
    changed = "PteSet" in names(delivered(here, SOFT_DIRTY, "cpu0/1"))
    assert changed == (arch == "x86")  # arm64 has no CONFIG_MEM_SOFT_DIRTY


@pytest.mark.parametrize(
    ("release", "flushed"), [("v4.15", True), ("v5.10", False), ("v5.12", True), ("v6.6.5", True)]
)
def test_who_flushes_the_cpus_for_clear_refs(release: str, flushed: bool) -> None:
    """From v5.6 to v5.11 nobody did, and a store is in no report."""
    assert bool(flushes(delivered(world(release), SOFT_DIRTY, "cpu0/1"))) == flushed
    store = (*SOFT_DIRTY, ("cpu1", op.Touch(MM, 0, True, 2)))
    here = world(release, sva_decoder="exact")
    oracle, _, complete = run(here, one_after_the_other(*store))
    assert complete
    rules = {violation.rule for violation in oracle.violations}
    assert bool(rules) != flushed


@pytest.mark.parametrize(("decoder", "bad"), [("round_up_overflow", True), ("exact", False)])
def test_a_driver_that_makes_no_page_of_everything_before_v6_6(decoder: str, bad: bool) -> None:
    """drivers/iommu/intel/svm.c computed so in v6.2 as well: clear_refs is enough."""
    unit = Unit("iommu0", ("device0",), (MM,), "cpu1")
    here = world("v6.2", sva_decoder=decoder).with_parts(Unit, (unit,))
    steps = (*SOFT_DIRTY[:2], ("device0", Dma(MM, 0, True, 3)), SOFT_DIRTY[2])
    oracle, _, complete = run(here, one_after_the_other(*steps))
    assert complete
    found = [v for v in oracle.violations if v.agent == "iommu0"]
    assert bool(found) == bad


# ---- KVM -----------------------------------------------------------------------------------------

GUEST: Steps = (
    ("cpu0", op.Mmap(MM, 0, page(2), True, True)),
    ("vcpu0", GuestTouch(0, True, 1)),
    ("cpu0", op.MadviseDontneed(MM, 0, page(1))),
    ("vcpu0", GuestTouch(0, True, 2)),
)


def guest_world(release: str, arch: str, **switches: object) -> World:
    """A VM of two vCPUs whose memory is the process's."""
    vm = Vm("kvm0", ("vcpu0", "vcpu1"), MM, (Slot(0, 2, 0),))
    return World(
        kernel=preset(release, arch, switches), mms=(MM, CHILD), parts=(vm,), levels=3, frames=96
    )


@pytest.mark.parametrize("release", RELEASES)
def test_kvm_on_arm64_flushes_by_vmid_and_kicks_nobody(release: str) -> None:
    """``kvm_tlb_flush_vmid_ipa``: measured on v6.1 and v6.12, never a request."""
    here = guest_world(release, "arm64")
    kinds = names(delivered(here, GUEST, "cpu0/1"))
    assert kinds.count("TlbiVmid") == 2
    assert "KvmRequest" not in kinds
    assert kinds.index("SpteClear") < kinds.index("TlbiVmid") < kinds.index("PteGetAndClear")
    x86 = delivered(guest_world(release, "x86"), GUEST, "cpu0/1")
    assert [x.wait for x in x86 if isinstance(x, KvmRequest)] == [True, True]
    assert not [x for x in x86 if isinstance(x, TlbiVmid)]


def test_when_arm64_flushes_a_range_of_the_guest() -> None:
    """Each entry as it is cleared; with range operations once, also if there was none (v6.6)."""
    steps = (*GUEST[:2], ("vcpu0", GuestTouch(page(1), True, 1)),
             ("cpu0", op.MadviseDontneed(MM, 0, page(2))),
             ("cpu0", op.MadviseDontneed(MM, 0, page(2))))  # fmt: skip
    for how, counts in (("vmid_each", (4, 0)), ("vmid_range", (2, 2))):
        here = guest_world("v6.6.5", "arm64", kvm_tlb_flush=how)
        found = [names(delivered(here, steps, f"cpu0/{n}")).count("TlbiVmid") for n in (1, 2)]
        assert tuple(found) == counts


@pytest.mark.parametrize(
    ("release", "arch", "alone"),
    [("v5.10", "x86", True), ("v5.12", "x86", True), ("v6.2", "x86", False),
     ("v5.12", "arm64", True), ("v6.2", "arm64", False)],
)  # fmt: skip
def test_how_a_page_fault_takes_mmu_lock(release: str, arch: str, alone: bool) -> None:
    """Shared with the TDP MMU (on from v5.15) and on arm64 from v6.2, whatever makes it retry."""
    for retry_hva in (False, True):
        here = guest_world(release, arch, kvm_retry_hva=retry_hva)
        locks = [x for x in delivered(here, GUEST, "vcpu0/0") if isinstance(x, MmuLock)]
        assert [x.write for x in locks] == [alone]


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("release", RELEASES)
def test_every_preset_has_a_ceiling(release: str, arch: str) -> None:
    """And a range of so many pages is still one."""

    class Cpu:
        world = World(kernel=preset(release, arch))

    cpu: Any = Cpu()
    limit = cpu.world.kernel.arch.flush_ceiling
    assert not tlb.flush_tlb_range_limit_excess(cpu, page(1), page(1 + limit))
    assert tlb.flush_tlb_range_limit_excess(cpu, page(1), page(2 + limit))
