"""An empty pool: whoever needs a frame reclaims one, and somebody dies only if none can be had."""

from __future__ import annotations

from collections import Counter

import msgspec
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
from mmurace.nodes.world import World
from mmurace.oracle.oracle import Oracle
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.messages import program as op
from mmurace.protocol.records import Access
from mmurace.protocol.trace import Ending
from tests.mm_programs import several_programs, several_world
from tests.test_independence import commuting_pairs
from tests.test_loss import run_with
from tests.worlds import WHOLE_RANGES, page, small_programs, small_world

DSB = {"batched_pending_flush": "flush_tlb_mm"}


def run(
    here: World, programs: tuple[Program, ...], seed: int, chaos: ChaosRules | None = None
) -> tuple[Oracle, Ending, Counter[str], list[int]]:
    """The oracle, the ending, deliveries by kind, and the words that were read."""
    oracle, kinds, read = Oracle(here), Counter[str](), list[int]()

    def observe(envelope: Envelope, handled: Handled) -> object:
        kinds[envelope.kind] += 1
        read.extend(r.value for r in handled.records if isinstance(r, Access) and not r.write)
        return oracle.observe(envelope, handled)

    exchange = Exchange(Feeder(programs), chaos)
    ending = Simulator(build_all(here, seed), exchange, RandomWalk(seed), observe).run(300_000)
    oracle.finish(ending)
    return oracle, ending, kinds, read


def with_frames(here: World, frames: int) -> World:
    """The same world with a smaller pool."""
    return msgspec.structs.replace(here, frames=frames)


# ---- beside everything else ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "arch", "switches"),
    [("v4.15", "x86", {"apic_reload": "invalidate_range", **WHOLE_RANGES}),
     ("v5.8", "x86", WHOLE_RANGES),
     ("v6.2", "x86", {}), ("v6.2", "arm64", {}), ("v6.6.5", "x86", {}), ("v6.6.5", "arm64", DSB)],
)  # fmt: skip
def test_a_small_pool_breaks_no_kernel(
    release: str, arch: str, switches: dict[str, object]
) -> None:
    reclaimed = 0
    for seed in range(6):
        here = with_frames(small_world(release, arch, **switches), 14)
        oracle, ending, _, _ = run(here, small_programs(arch), seed)
        assert ending.complete, ending.waiting
        assert not oracle.violations, [v.text() for v in oracle.violations]
        reclaimed += oracle.statistics.covered.get("direct_reclaim", 0)
    assert reclaimed


@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_moves_forks_and_files_in_a_small_pool(arch: str) -> None:
    reclaimed, kinds = 0, Counter[str]()
    for seed in range(4):
        here = with_frames(several_world("v6.6.5", arch), 20)
        kernel = preset("v6.6.5", arch, {"batched_pending_flush": "flush_tlb_mm"})
        here = msgspec.structs.replace(here, kernel=kernel)
        oracle, ending, sent, _ = run(here, several_programs(seed, 40), seed)
        assert ending.complete, ending.waiting
        assert not oracle.violations, [v.text() for v in oracle.violations]
        reclaimed += oracle.statistics.covered.get("direct_reclaim", 0)
        kinds += sent
    assert reclaimed > 10
    assert kinds["ReclaimThrottle"]


def test_content_survives_a_pool_that_is_too_small_for_it() -> None:
    pages = range(12)
    steps: list[op.Operation] = [op.Mmap("mm0", 0, page(12), True, True)]
    steps += [op.Touch("mm0", page(n), True, 100 + n) for n in pages]
    steps += [op.Touch("mm0", page(n), False) for n in pages]
    here = World(kernel=preset("v6.6.5"), cpus=("cpu0",), frames=10)
    oracle, ending, _, read = run(here, (Program("cpu0", "cpu0", [Step(o) for o in steps]),), 1)
    assert ending.complete
    assert not oracle.violations
    assert read == [100 + n for n in pages]
    assert oracle.statistics.covered["direct_reclaim"] >= 2
    assert oracle.statistics.oom_kills == 0


# ---- nothing left --------------------------------------------------------------------------------


def killing() -> tuple[World, tuple[Program, ...]]:
    """Page tables take all frames of the pool; then come two threads of it, and another process."""
    here = World(
        kernel=preset("v6.6.5"),
        cpus=("cpu0", "cpu1"),
        mms=("mm0", "mm1"),
        parts=(Unit("iommu0", ("device0",), ("mm0",), "cpu1"),),
        frames=10,
    )
    tables = [op.Touch("mm0", page(16 + 8 * n), False) for n in range(6)]
    cpu0: list[op.Operation] = [
        op.Mmap("mm0", page(16), page(48), True, True), *tables,
        op.Mmap("mm0", page(8), page(8), True, True),
        *(op.Touch("mm0", page(8 + n), True, n) for n in range(4)),
    ]  # fmt: skip
    cpu1 = [Step(op.Touch("mm0", page(12 + n), True, n), ("cpu0/7",)) for n in range(3)]
    after = ("cpu0/11", "cpu1/2")
    other = [
        Step(op.Mmap("mm1", 0, page(1), True, True), after),
        Step(op.Munmap("mm1", 0, page(1))),
    ]
    device = [Step(Dma("mm0", page(8 + n), True, n), ("cpu0/7",)) for n in range(3)]
    return here, (
        Program("cpu0", "cpu0", [Step(o) for o in cpu0]),
        Program("cpu1", "cpu1", cpu1),
        Program("other", "cpu1", other),
        Program("device0", "device0", device),
    )


def test_a_process_dies_when_nothing_can_be_reclaimed_and_the_others_go_on() -> None:
    for seed in range(10):
        here, programs = killing()
        results: dict[str, int] = {}
        exchange = Exchange(Feeder(programs))
        oracle = Oracle(here)

        def observe(
            e: Envelope,
            handled: Handled,
            results: dict[str, int] = results,
            oracle: Oracle = oracle,
        ) -> object:
            done = [m for m in handled.messages if isinstance(m.body, op.OpDone)]
            results.update({m.id.rstrip("~"): m.body.result for m in done})  # type: ignore[union-attr]  # an OpDone
            return oracle.observe(e, handled)

        ending = Simulator(build_all(here, seed), exchange, RandomWalk(seed), observe).run(100_000)
        oracle.finish(ending)
        assert ending.complete, ending.waiting
        assert not oracle.violations, [v.text() for v in oracle.violations]
        assert oracle.statistics.oom_kills >= 1
        assert -12 in results.values()  # -ENOMEM for the thread that asked in vain ...
        assert results["cpu0/11"] in (-4, -12)  # ... -EINTR for what its process does then
        assert (results["other/0"], results["other/1"]) == (0, 0)


# ---- whom reclaim leaves a flush to --------------------------------------------------------------


def left_to_others() -> tuple[Program, ...]:
    """A fault on one processor reclaims a page that a thread on another one protects."""
    first = [op.Mmap("mm0", 0, page(2), True, True), op.Touch("mm0", 0, True, 1)]
    fault = [
        Step(op.Mmap("mm1", 0, page(8), True, True), ("cpu1/0",)),
        *(Step(op.Touch("mm1", page(n), True, n)) for n in range(8)),
    ]
    thread = [
        Step(op.Touch("mm0", 0, True, 2), ("cpu0/1",)),
        Step(op.Mprotect("mm0", 0, page(2), True, False), ("fault/1",)),
        Step(op.Touch("mm0", 0, True, 3)),
    ]
    return (
        Program("cpu0", "cpu0", [Step(o) for o in first]),
        Program("fault", "cpu0", fault),
        Program("cpu1", "cpu1", thread),
    )


def test_what_a_fault_has_reclaimed_others_find_unflushed() -> None:
    rules = [
        {"name": "mprotect-after-clear", "match": {"operation": "cpu1/1", "kind": "Mprotect"},
         "fault": "hold", "until": {"dst": "memory", "kind": "SwapDuplicate"}},
        {"name": "flush-after-mprotect", "match": {"src": "cpu0", "kind": "FlushTlbIpi"},
         "fault": "hold", "until": {"dst": "cpu1", "kind": "MmapUnlock~", "operation": "cpu1/1"}},
    ]  # fmt: skip
    for seed in range(5):
        found = {}
        for marker in ("none", "generation"):
            kernel = preset("v6.6.5", "x86", {"batched_marker": marker})
            here = World(kernel=kernel, mms=("mm0", "mm1"), frames=9)
            chaos = ChaosRules(parse_rules({"schema": 1, "rule": rules}, "test"), seed)
            oracle, ending, _, _ = run(here, left_to_others(), seed, chaos)
            assert ending.complete
            assert oracle.statistics.covered["flush_deferred"]
            found[marker] = {(v.rule, v.agent) for v in oracle.violations}
        assert ("O", "cpu1") in found["none"]
        assert not found["generation"]


# ---- the network and the search ------------------------------------------------------------------


def crowded(_: str, seed: int) -> tuple[World, tuple[Program, ...]]:
    """Many processors that reclaim from each other."""
    return with_frames(several_world("v6.6.5", "x86"), 20), several_programs(seed, 30)


def killed(_: str, __: int) -> tuple[World, tuple[Program, ...]]:
    """Somebody dies."""
    return killing()


@pytest.mark.parametrize("fault", ["drop", "duplicate", "delay"])
def test_one_fault_on_each_new_kind_changes_no_verdict(fault: str) -> None:
    for make, kind in ((crowded, "ReclaimThrottle"), (killed, "SendSigkill")):
        for what in (kind, f"{kind}~"):
            assert any(run_with(make, "x86", what, fault, seed) for seed in range(1, 6)), what


def test_independent_deliveries_commute() -> None:
    assert commuting_pairs(with_frames(small_world(), 14), small_programs(), 30) >= 10
