"""*Sometimes* conditions, statistics and verdicts."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from mmurace.oracle.sometimes import (
    Between,
    CachedWhen,
    Condition,
    Covered,
    FramesReused,
    Invalidated,
    conditions_from,
    describe,
    workload_conditions,
)
from mmurace.oracle.verdict import Expected, How, Verdict, combine, decide
from mmurace.oracle.violation import Violation
from mmurace.protocol import records as r
from mmurace.protocol.errors import UserError
from mmurace.protocol.trace import Ending
from tests.oracle_story import (
    OTHER,
    PAGE,
    WORLD,
    Story,
    change,
    dropped,
    entry,
    judged,
    play,
    shuffled,
)


def met(s: Story, condition: Condition) -> bool:
    """Whether the story meets it, in every linearisation tried."""
    answers = {not play(shuffled(s.steps, seed), [condition]).sometimes.open for seed in range(25)}
    assert len(answers) == 1, "the answer depends on the linearisation"
    return answers.pop()


def unmapping(*order: str, hold: bool = True) -> Story:
    """The IOTLB holds PAGE; a munmap clears, then in this order: flush, free, dma, late dma."""
    s = Story()
    s.map("t/0", entry(3))
    if hold:
        s.dma("d/0", entry(3), "f")
    s.begin("m/0", "cpu0", "Munmap")
    s.call("m/0", "memory", change(entry(3), 0))
    for what in order:
        if what == "flush":
            s.call("m/0", "iommu0", *dropped("iotlb", "f"))
        elif what == "free":
            s.call("m/0", "memory", r.FrameFreed(3))
        else:
            s.begin(f"{what}/1", "dev0", "Dma")
            s.go(f"{what}/1", "iommu0")
            s.call(f"{what}/1", "memory")
            s.end(f"{what}/1", "dev0", "Dma")
    s.call("m/0", "memory")
    s.end("m/0", "cpu0", "Munmap")
    return s


HELD = CachedWhen("iotlb", "Munmap")


def test_a_cache_that_held_the_page_when_it_was_taken_away() -> None:
    assert met(unmapping("flush", "free"), HELD)
    assert met(unmapping("free", "flush"), HELD)
    assert not met(unmapping("free", hold=False), HELD)


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        (CachedWhen("iotlb", "Munmap", agent="iommu0", address=PAGE + 8), True),
        (CachedWhen("iotlb", "Munmap", agent="iommu1"), False),
        (CachedWhen("iotlb", "Munmap", address=OTHER), False),
        (CachedWhen("iotlb", "Mprotect"), False),
        (CachedWhen("tlb", "Munmap"), False),
        (CachedWhen("iotlb", "Munmap", at="began"), True),
    ],
)
def test_what_a_cached_when_may_name(condition: CachedWhen, wanted: bool) -> None:
    assert met(unmapping("flush", "free"), condition) is wanted


def test_a_shadow_entry_is_held_when_the_operation_begins_not_when_it_changes() -> None:
    s = Story()
    s.map("t/0", entry(3))
    s.begin("v/0", "vcpu0", "GuestTouch", 0)
    read = s.call("v/0", "memory", r.PteRead("mm0", PAGE, entry(3)))
    s.call("v/0", "kvm0", r.Fill("spte", "kvm0", PAGE, entry(3), "s", read))
    s.call("v/0", "memory")
    s.end("v/0", "vcpu0", "GuestTouch")
    s.begin("m/0", "cpu0", "MigratePages")
    s.call("m/0", "memory")
    s.call("m/0", "kvm0", *dropped("spte", "s", "kvm0"))
    s.call("m/0", "memory", change(entry(3), 0))
    assert met(s, CachedWhen("spte", "MigratePages", at="began"))
    assert not met(s, CachedWhen("spte", "MigratePages", at="changed"))


AFTER_FREE = Between("dev0", "Dma", "Munmap", "frame_freed", "op_end", began=True)


def test_an_adversary_that_came_inside_the_window() -> None:
    assert met(unmapping("free", "d", "flush"), AFTER_FREE)
    assert met(unmapping("flush", "free", "d"), AFTER_FREE)
    assert not met(unmapping("d", "free", "flush"), AFTER_FREE), "it came before"
    assert not met(unmapping("free", "flush"), AFTER_FREE), "it had finished long before"


def test_an_adversary_that_was_merely_under_way() -> None:
    window = msgspec.structs.replace(AFTER_FREE, began=False, from_="pte_change", to="frame_freed")
    s = Story()
    s.map("t/0", entry(3))
    s.begin("d/0", "dev0", "Dma")
    s.go("d/0", "iommu0")
    s.call("d/0", "memory")
    s.begin("m/0", "cpu0", "Munmap")
    s.call("m/0", "memory", change(entry(3), 0))
    s.call("m/0", "memory", r.FrameFreed(3))
    s.end("m/0", "cpu0", "Munmap")
    s.end("d/0", "dev0", "Dma")
    assert met(s, window)
    assert not met(s, msgspec.structs.replace(window, began=True))
    assert not met(s, msgspec.structs.replace(window, node="vcpu0"))
    assert not met(s, msgspec.structs.replace(window, op="Touch"))
    assert not met(s, msgspec.structs.replace(window, of="Mprotect"))


def test_an_adversary_elsewhere_is_not_overlapping() -> None:
    for address, wanted in ((PAGE, True), (OTHER, False)):
        s = Story()
        s.map("t/0", entry(3))
        s.begin("m/0", "cpu0", "Munmap")
        s.call("m/0", "memory", change(entry(3), 0))
        s.begin("d/0", "dev0", "Dma", address)
        s.go("d/0", "iommu0")
        s.call("d/0", "memory")
        s.call("m/0", "memory", r.FrameFreed(3))
        window = Between("dev0", "Dma", "Munmap", "pte_change", "frame_freed", overlapping=True)
        assert met(s, window) is wanted


def test_notifier_calls_mark_a_window() -> None:
    s = Story()
    s.map("t/0", entry(3))
    s.begin("m/0", "cpu0", "MigratePages")
    call = ("kvm0", "mm0", PAGE, PAGE + 4096, "CLEAR")
    s.go("m/0", "cpu0", r.NotifierCall("invalidate_range_start", *call, "begin"))
    s.call("m/0", "memory")
    s.begin("v/0", "vcpu0", "GuestApic")
    s.call("v/0", "memory")
    s.call("m/0", "memory", change(entry(3), 0))
    s.go("m/0", "cpu0", r.NotifierCall("invalidate_range_end", *call, "begin"))
    for to in ("pte_change", "range_end"):
        assert met(s, Between("vcpu0", "GuestApic", "MigratePages", "range_start", to))
    flushed = Between("vcpu0", "GuestApic", "MigratePages", "flush", "range_end")
    assert not met(s, flushed), "the window was never opened"


def test_counted_conditions_and_statistics() -> None:
    s = unmapping("flush", "free")
    s.begin("t/1", "cpu1", "Touch")
    s.call("t/1", "memory", r.FrameAllocated(3, "anon"))
    s.also(r.Coverage("nested_gather"))
    s.end("t/1", "cpu1", "Touch")
    assert met(s, Invalidated("iotlb"))
    assert not met(s, Invalidated("iotlb", 2))
    assert not met(s, Invalidated("spte"))
    assert met(s, FramesReused())
    assert not met(s, FramesReused(2))
    assert met(s, Covered("nested_gather"))
    assert not met(s, Covered("gather_batch_full"))
    found = play(s.steps).statistics
    assert (found.frames_reused, found.invalidated) == (1, {"iotlb": 1})
    assert found.accesses == {"iotlb": 1}
    assert found.as_dict()["operations"] == 4


def test_a_workload_must_have_worked_every_secondary() -> None:
    caches = [c.cache for c in workload_conditions(WORLD) if isinstance(c, Invalidated)]
    assert caches == ["iotlb", "spte"]
    assert workload_conditions(WORLD)[-1] == FramesReused(10)


# ---- as a file has them --------------------------------------------------------------------------


def test_conditions_come_from_tables() -> None:
    tables: list[dict[str, Any]] = [
        {"kind": "cached_when", "cache": "vmcs", "op": "MigratePages", "at": "began"},
        {"kind": "between", "node": "vcpu0", "op": "GuestApic", "of": "MigratePages",
         "from": "range_start", "to": "pte_change"},
        {"kind": "covered", "point": "nested_gather"},
    ]  # fmt: skip
    found = conditions_from(tables, "x.toml: sometimes")
    assert [type(c) for c in found] == [CachedWhen, Between, Covered]
    assert [describe(c) for c in found] == [
        "cached_when(cache=vmcs, op=MigratePages, at=began)",
        "between(node=vcpu0, op=GuestApic, of=MigratePages, from=range_start, to=pte_change)",
        "covered(point=nested_gather)",
    ]
    assert conditions_from(msgspec.to_builtins(found), "x") == found


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "is not an array"),
        ([{}], r"\[0\]: has no known kind"),
        ([{"kind": "never"}], "one of cached_when, between"),
        ([{"kind": "covered", "point": "a"}, {"kind": "covered"}], r"\[1\]: .*point"),
        ([{"kind": "covered", "point": "a", "pint": 1}], r"\[0\]: .*unknown field `pint`"),
        ([{"kind": "covered", "point": 3}], r"\[0\].point: "),
        ([{"kind": "cached_when", "cache": "tlb", "op": "Brk", "at": "noon"}], r"\[0\].at: "),
        ([{"kind": "cached_when", "cache": "tlb", "op": "munmap"}], r"\[0\].op: unknown: 'munmap'"),
        ([{"kind": "invalidated", "cache": "tbl"}], r"\[0\].cache: unknown: 'tbl'"),
    ],
)
def test_bad_tables_are_named_with_their_place(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        conditions_from(value, "x.toml: sometimes")


# ---- verdicts ------------------------------------------------------------------------------------


def test_held_needs_the_window_entered_and_the_run_complete() -> None:
    good = unmapping("flush", "free")
    assert judged(good.steps).outcome == "held"
    entered = judged(good.steps, [HELD])
    assert (entered.outcome, entered.how.entered) == ("held", 1)
    assert entered.how.met == ("cached_when(cache=iotlb, op=Munmap)",)
    missed = judged(good.steps, [HELD, AFTER_FREE])
    assert missed.outcome == "inconclusive"
    assert missed.reasons[0].startswith("never met: between(")
    short = play(good.steps).verdict(Ending(9, 3, False, ()))
    assert (short.outcome, short.reasons) == (
        "inconclusive", ("the run ended with operations in flight",),
    )  # fmt: skip


def test_a_breach_is_a_breach_whatever_is_missing() -> None:
    verdict = judged(unmapping("free", "flush").steps, [AFTER_FREE])
    assert verdict.outcome == "violated"
    assert verdict.reasons == ("O: 1",)
    assert json.loads(json.dumps(verdict.as_dict()))["violations"][0]["agent"] == "iommu0"
    assert Expected("O", cache="iotlb", address=PAGE).matches(verdict.violations[0])
    assert Expected("", cache="iotlb").matches(verdict.violations[0]), "what is left out"
    assert not Expected("", agent="kvm0").matches(verdict.violations[0])
    assert not Expected("O", agent="kvm0").matches(verdict.violations[0])


def one(outcome: str, met: tuple[str, ...] = (), missing: tuple[str, ...] = ()) -> Verdict:
    how = How(10, 2, entered=int(not missing), met=met, missing=missing)
    broken = [Violation("O", "iommu0", "")] if outcome == "violated" else []
    return decide(broken, how, complete=True)


def test_many_schedules_add_up() -> None:
    held, missed = one("held", ("a",)), one("", (), ("a",))
    total = combine([missed, held, missed], exhaustive=True)
    assert (total.outcome, total.how.schedules, total.how.entered) == ("held", 3, 1)
    assert (total.how.deliveries, total.how.exhaustive) == (30, True)
    assert total.how.missing == ()
    none = combine([missed])
    assert (none.outcome, none.reasons) == ("inconclusive", ("never met: a",))
    bad = combine([held, one("violated"), one("violated")])
    assert (bad.outcome, bad.reasons) == ("violated", ("O: 1",))
    assert combine([]).outcome == "inconclusive"
