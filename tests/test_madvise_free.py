"""``MADV_FREE``: a page is discarded if nobody has stored to it since, and only then."""

from __future__ import annotations

import pytest

from mmurace.broker.chaos import ChaosRules, parse_rules
from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program, Step
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.messages import GuestTouch
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.world import World
from mmurace.oracle.oracle import Oracle
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.messages import program as op
from mmurace.protocol.records import Access, PageDiscarded, Record
from tests.test_independence import commuting_pairs
from tests.test_loss import kinds_seen, run_with
from tests.worlds import WHOLE_RANGES, page

MM = "mm0"
GUEST = 0x5000


def world(release: str = "v6.6.5", arch: str = "x86", **switches: object) -> World:
    """Two CPUs and one for kswapd, a device, a guest, a child."""
    return World(
        kernel=preset(release, arch, switches),
        cpus=("cpu0", "cpu1", "cpu2"),
        mms=(MM, "mm1"),
        parts=(
            Unit("iommu0", ("device0",), (MM,), "cpu1"),
            Vm("kvm0", ("vcpu0",), MM, (Slot(0, 16, 0),)),
        ),
        gather_batch=2,
    )


def run(
    here: World, programs: tuple[Program, ...], seed: int = 1, chaos: ChaosRules | None = None
) -> tuple[Oracle, list[Record], bool]:
    """The oracle after a run, all records, and whether it came to its end."""
    oracle, records = Oracle(here), list[Record]()

    def observe(envelope: Envelope, handled: Handled) -> object:
        records.extend(handled.records)
        return oracle.observe(envelope, handled)

    exchange = Exchange(Feeder(programs), chaos)
    ending = Simulator(build_all(here, seed), exchange, RandomWalk(seed), observe).run(200_000)
    oracle.finish(ending)
    return oracle, records, ending.complete


def one_after_the_other(*steps: tuple[str, op.Operation], prefix: str = "") -> tuple[Program, ...]:
    """Operations on several nodes, in the order given; programs are named after their nodes."""
    programs: dict[str, list[Step]] = {}
    last = ""
    for node, operation in steps:
        own = programs.setdefault(node, [])
        after = (last,) if last and not last.startswith(f"{prefix}{node}/") else ()
        own.append(Step(operation, after))
        last = f"{prefix}{node}/{len(own) - 1}"
    return tuple(Program(prefix + node, node, own) for node, own in programs.items())


BEGIN = (
    ("cpu0", op.Mmap(MM, 0, page(2), True, True)),
    ("cpu0", op.Touch(MM, 0, True, 7)),
    ("cpu1", op.Touch(MM, 0, True, 8)),
    ("cpu0", op.MadviseFree(MM, 0, page(2))),
)
RECLAIM = ("cpu2", op.Kswapd(4))
READ = ("cpu0", op.Touch(MM, 0, False))
STORES: dict[str, tuple[tuple[str, op.Operation], ...]] = {
    "nobody": (),
    "cpu": (("cpu1", op.Touch(MM, 0, True, 9)),),
    "device": (("device0", Dma(MM, 0, True, 9)),),
    "guest": (("vcpu0", GuestTouch(0, True, 9)),),
    "reader before": (("cpu1", op.Touch(MM, 0, False)), ("cpu1", op.Touch(MM, 0, True, 9))),
    "device reader before": (
        ("device0", Dma(MM, 0, False)), ("device0", Dma(MM, 0, True, 9)),
    ),
    "guest reader before": (
        ("vcpu0", GuestTouch(0, False)), ("vcpu0", GuestTouch(0, True, 9)),
    ),
    "after a move": (
        ("cpu0", op.MigratePages(MM, 0, page(1))), ("cpu1", op.Touch(MM, 0, True, 9)),
    ),
    "after swap": (
        ("cpu1", op.Touch(MM, 0, True, 8)), RECLAIM, ("cpu1", op.Touch(MM, 0, False)),
        ("cpu0", op.MadviseFree(MM, 0, page(2))), ("cpu1", op.Touch(MM, 0, True, 9)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("stores", STORES)
@pytest.mark.parametrize(
    ("release", "arch"), [("v6.6.5", "x86"), ("v6.6.5", "arm64"), ("v5.8", "x86")]
)
def test_what_was_stored_since_stays_and_else_the_page_goes(
    release: str, arch: str, stores: str
) -> None:
    steps = (*BEGIN, *STORES[stores], RECLAIM, READ)
    oracle, records, complete = run(world(release, arch), one_after_the_other(*steps))
    assert complete
    assert not oracle.violations
    read = [r.value for r in records if isinstance(r, Access) and not r.write][-1]
    discarded = sum(isinstance(r, PageDiscarded) for r in records)
    assert (read, discarded) == ((0, 1) if stores == "nobody" else (9, 0))


def test_a_page_in_swap_goes_at_once_and_so_does_its_slot() -> None:
    steps = (*BEGIN[:3], RECLAIM, BEGIN[3], READ)
    oracle, records, complete = run(world(), one_after_the_other(*steps))
    assert complete
    assert not oracle.violations
    assert [r.value for r in records if isinstance(r, Access) and not r.write][-1:] != [8]


def test_a_child_keeps_what_its_parent_gives_up() -> None:
    child = op.Touch("mm1", 0, False)
    steps = (*BEGIN[:3], ("cpu0", op.Fork(MM, "mm1")), BEGIN[3], RECLAIM, ("cpu1", child))
    oracle, records, complete = run(world(), one_after_the_other(*steps))
    assert complete
    assert not oracle.violations
    assert [r.value for r in records if isinstance(r, Access) and not r.write][-1] == 8


def test_files_and_holes_are_refused() -> None:
    steps: list[op.Operation] = [
        op.MadviseFree(MM, 0, page(1)),
        op.MadviseFree(MM, 7, page(1)),
        op.Mmap(MM, 0, page(1), True, True, "data"),
        op.MadviseFree(MM, 0, page(1)),
        op.Mmap(MM, 0, page(1), True, True),
        op.MadviseFree(MM, 0, page(1)),
    ]
    results: list[int] = []

    def observe(_: Envelope, handled: Handled) -> object:
        results.extend(m.body.result for m in handled.messages if isinstance(m.body, op.OpDone))
        return None

    exchange = Exchange(Feeder((Program("cpu0", "cpu0", [Step(o) for o in steps]),)))
    assert Simulator(build_all(world(), 1), exchange, RandomWalk(1), observe).run(9_999).complete
    assert results == [-12, -22, 0, -22, 0, 0]


# ---- beside everything else ----------------------------------------------------------------------


def busy() -> tuple[Program, ...]:
    """Two threads free and store, a device and a guest store, kswapd discards."""
    cpu0: list[op.Operation] = [op.Mmap(MM, 0, page(8), True, True), *_free_and_store(0)]
    cpu1 = [Step(o, ("cpu0/0",)) for o in _free_and_store(1)]
    begun = ("cpu0/2",)
    guest = [Step(GuestTouch(page(n % 4), n % 3 > 0, 40 + n), begun) for n in range(6)]
    device = [Step(Dma(MM, page(n % 4), n % 3 > 0, 60 + n), begun) for n in range(6)]
    return (
        Program("cpu0", "cpu0", [Step(o) for o in cpu0]),
        Program("cpu1", "cpu1", cpu1),
        Program("kswapd", "cpu2", [Step(op.Kswapd(4), begun) for _ in range(8)]),
        Program("device0", "device0", device),
        Program("vcpu0", "vcpu0", guest),
    )


def _free_and_store(thread: int) -> list[op.Operation]:
    steps: list[op.Operation] = []
    for n in range(6):
        steps.append(op.Touch(MM, page((n + thread) % 8), True, 10 * thread + n))
        steps.append(op.MadviseFree(MM, page(n % 4), page(4)))
        steps.append(op.Touch(MM, page(n % 8), n % 3 > 0, 20 * thread + n))
    return [*steps, op.MadviseDontneed(MM, 0, page(8))]


KERNELS = [
    ("v4.15", "x86", {"apic_reload": "invalidate_range", **WHOLE_RANGES}),
    ("v5.8", "x86", WHOLE_RANGES),
    ("v6.2", "x86", {}),
    ("v6.2", "arm64", {}),
    ("v6.6.5", "x86", {}),
    ("v6.6.5", "arm64", {"batched_pending_flush": "flush_tlb_mm"}),
]


@pytest.mark.parametrize(("release", "arch", "switches"), KERNELS)
def test_no_kernel_is_flagged(release: str, arch: str, switches: dict[str, object]) -> None:
    discarded = kept = 0
    for seed in range(7):
        oracle, _, complete = run(world(release, arch, **switches), busy(), seed)
        assert complete
        assert not oracle.violations, [v.text() for v in oracle.violations]
        discarded += oracle.statistics.covered.get("lazyfree_discarded", 0)
        kept += oracle.statistics.covered.get("lazyfree_kept", 0)
    assert discarded
    assert kept


def test_the_second_of_two_must_flush_what_the_first_has_cleaned() -> None:
    first = Step(op.MadviseFree(MM, 0, page(1)), ("cpu1/0",))
    second = Step(op.MadviseFree(MM, 0, page(1)))
    programs = (
        Program("cpu0", "cpu0", [*(Step(o) for _, o in BEGIN[:2]), first]),
        Program("cpu1", "cpu1", [Step(op.Touch(MM, 0, True, 8), ("cpu0/1",)), second]),
    )
    late = {"src": "cpu0", "kind": "TlbFlushPending", "operation": "cpu0/2"}
    rules = [
        {"name": "first-begins", "match": late, "fault": "delay", "after": {"min": 1, "max": 1},
         "when": {"hits_max": 1}},
        {"name": "second-after-clean", "match": {"operation": "cpu1/1", "kind": "MadviseFree"},
         "fault": "hold", "until": {"dst": "memory", "kind": "FolioMarkLazyfree"}},
        {"name": "flush-after-second", "match": late, "fault": "hold",
         "until": {"dst": "cpu1", "kind": "MmapUnlock~", "operation": "cpu1/1"}},
    ]  # fmt: skip
    for seed in range(5):
        chaos = ChaosRules(parse_rules({"schema": 1, "rule": rules}, "test"), seed)
        here = world("v6.6.5", "x86", nested_encoding="own_range_only")
        found = {(v.rule, v.agent) for v in run(here, programs, seed, chaos)[0].violations}
        assert ("O", "cpu1") in found
        chaos = ChaosRules(parse_rules({"schema": 1, "rule": rules}, "test"), seed)
        oracle = run(world(), programs, seed, chaos)[0]
        assert oracle.statistics.covered["nested_gather"]
        assert not oracle.violations


# ---- the network and the search ------------------------------------------------------------------

NEW = {
    "MadviseFree", "FolioFlags", "FolioMarkDirty", "FolioClearDirty", "FolioMarkLazyfree",
    "FolioSetSwapbacked", "FolioFreeSwap", "FolioRefCount",
}  # fmt: skip


@pytest.mark.parametrize("fault", ["drop", "duplicate", "delay"])
def test_one_fault_on_each_new_kind_changes_no_verdict(fault: str) -> None:
    def make(arch: str, _: int) -> tuple[World, tuple[Program, ...]]:
        return world("v6.6.5", arch), again()

    kinds = NEW | {f"{kind}~" for kind in NEW - {"MadviseFree"}}
    assert kinds <= kinds_seen(make, "x86")
    for kind in sorted(kinds):
        assert any(run_with(make, "x86", kind, fault, seed) for seed in (1, 2, 3)), kind


def again() -> tuple[Program, ...]:
    """A page that only the guest has stored to is freed again, beside everything else."""
    first = page(12)
    steps = one_after_the_other(
        ("cpu1", op.Mmap(MM, first, page(2), True, True)),
        ("cpu1", op.Touch(MM, first, True, 1)),
        ("cpu1", op.MadviseFree(MM, first, page(2))),
        ("vcpu0", GuestTouch(first, True, 2)),
        ("cpu1", op.MadviseFree(MM, first, page(2))),
        ("vcpu0", GuestTouch(first, True, 3)),
        ("cpu2", op.Kswapd(8)),
        prefix="again-",
    )
    return (*busy(), *steps)


def test_independent_deliveries_commute() -> None:
    assert commuting_pairs(world(), busy(), 40) >= 20
