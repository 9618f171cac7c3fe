"""Aging: the accessed bit goes and nothing else does; who has copies is told, and keeps them."""

from __future__ import annotations

import pytest

from mmurace.broker.programs import Program, Step
from mmurace.nodes.secondaries.kvm.messages import GuestTouch
from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from mmurace.protocol.messages import program as op
from tests.file_programs import KERNELS, file_programs, file_world
from tests.observed import Run, moments, observe
from tests.test_plain_stores import lost, plain_stores
from tests.worlds import MM, page, small_world

AGING = (op.ShrinkActiveList(3), op.Kswapd(2), op.MadviseFree(MM, 0, page(4)))
FLUSHES = [
    ("v4.19", "x86", "none"), ("v6.6.5", "x86", "none"), ("v4.19", "arm64", "page"),
    ("v6.6.88", "arm64", "nosync"), ("v6.2", "ppc", "none"),
]  # fmt: skip


def made_old(run: Run) -> list[r.PteChange]:
    """What aging has changed."""
    return [
        moment.record
        for moment in moments(run)
        if isinstance(moment.record, r.PteChange) and is_aging(run, moment.op)
    ]


def is_aging(run: Run, operation: str) -> bool:
    """Whether an operation is aging."""
    return run.kinds.get(operation) == "ShrinkActiveList"


@pytest.mark.parametrize(("release", "arch", "switches"), KERNELS)
def test_nothing_but_the_accessed_bit_goes_whatever_runs_beside_it(
    release: str, arch: str, switches: dict[str, object]
) -> None:
    aged = 0
    for seed in range(4):
        here = file_world(release, arch, switches)
        run = observe(here, file_programs(seed, 20, AGING, (0, 2, 8)), seed)
        assert not run.violations, [v.text() for v in run.violations]
        changes = made_old(run)
        assert all(change.old ^ change.new == ptes.ACCESSED for change in changes)
        aged += len(changes)
    assert aged


def test_the_generic_function_stores_over_what_a_walker_may_set() -> None:
    for kind, harmless in (("atomic", True), ("plain_store", False)):
        here = file_world("v6.6.5", "x86", {"young_clear": kind})
        stores = plain_stores(here, file_programs(1, 20, AGING, (0, 2, 8)), 1)
        assert (lost(stores) == []) is harmless


def one_page_aged(release: str, arch: str) -> Run:
    """A page that a thread and a guest use becomes old, and a guest uses it again."""
    steps = [op.Mmap(MM, 0, page(1), True, True), op.Touch(MM, 0, True, 1)]
    return observe(
        small_world(release, arch),
        [
            Program("cpu0", "cpu0", [Step(one) for one in steps]),
            Program("cpu1", "cpu1", [Step(op.Touch(MM, 0, True, 2), ("cpu0/1",))]),
            Program("vcpu0", "vcpu0", [
                Step(GuestTouch(0, True, 3), ("cpu1/0",)),
                Step(GuestTouch(0, True, 4), ("aging/0",)),
            ]),
            Program("aging", "cpu0", [Step(op.ShrinkActiveList(1), ("vcpu0/0",))]),
        ],
        seed=1,
    )  # fmt: skip


@pytest.mark.parametrize(("release", "arch", "how"), FLUSHES)
def test_who_flushes_and_who_waits(release: str, arch: str, how: str) -> None:
    run = one_page_aged(release, arch)
    assert not run.violations
    assert len(made_old(run)) == 1
    sent = [s.n for s in run.steps if s.kind in ("Tlbi", "FlushTlbIpi") and s.dst == "cpu1"]
    assert bool(sent) == (how != "none")
    over = [s.n for s in run.steps if s.kind == "Tlbi~" and s.src == "cpu1"]
    told = next(s.n for s in run.steps if any(young_call(x) for x in s.records))
    if how == "page":
        assert max(over) < told, "the DSB comes before subscribers are told"


def young_call(record: r.Record) -> bool:
    """A subscriber is told."""
    return isinstance(record, r.NotifierCall) and record.callback == "clear_flush_young"


@pytest.mark.parametrize(("release", "arch", "how"), FLUSHES)
def test_a_guest_keeps_its_shadow_entry_and_loses_what_it_caches(
    release: str, arch: str, how: str
) -> None:
    run = one_page_aged(release, arch)
    gone = [
        moment.record.cache
        for moment in moments(run)
        if isinstance(moment.record, r.InvalidateBegin) and moment.record.fills
        if is_aging(run, moment.op) and moment.record.cache in ("spte", "gtlb")
    ]
    assert gone == ["gtlb"]
    calls = [m.record for m in moments(run) if isinstance(m.record, r.NotifierCall)]
    told = {c.callback for c in calls if is_aging(run, c.op)}
    hook = {"arch_invalidate_secondary_tlbs"} if how == "nosync" else set()
    assert told == {"clear_flush_young"} | hook, "there is no bracket"
