"""Rules S10, L1 and L3, and what the oracle does over a long run."""

from __future__ import annotations

import pytest

from mmurace.oracle.oracle import Oracle
from mmurace.oracle.rules.l1_l3_progress import RETRIES_MAX
from mmurace.oracle.violation import Violation
from mmurace.protocol import records as r
from mmurace.protocol.errors import EmulatorError
from mmurace.protocol.limits import ORACLE_SWEEP_MIN, STALE_DENIALS_MAX
from mmurace.protocol.trace import Ending, TraceStep
from tests.oracle_story import PAGE, RO, WORLD, Story, broken, change, dropped, entry, play

# ---- S10 -----------------------------------------------------------------------------------------


def counted(*moves: tuple[bool, int, int]) -> list[Violation]:
    """(begin, seq, count) as KVM records them."""
    s = Story()
    s.begin("m/0", "cpu0", "Munmap")
    for begin, seq, count in moves:
        s.call("m/0", "kvm0", r.Invalidation(begin, seq, count, PAGE, PAGE + 4096))
    return play(s.steps).violations


def test_nested_brackets_are_right() -> None:
    assert counted((True, 4, 1), (True, 4, 2), (False, 5, 1), (False, 6, 0)) == []


@pytest.mark.parametrize(
    ("moves", "detail"),
    [
        ([(True, 4, 1), (False, 4, 0)], "before seq"),
        ([(True, 4, 1), (True, 4, 2), (False, 5, 1), (False, 5, 0)], "before seq"),
        ([(False, 5, -1)], "without a begin"),
        ([(True, 4, 0), (False, 5, 0)], "after it was raised"),
        ([(True, 4, 1), (True, 4, 2), (False, 5, 1)], "1 brackets open"),
    ],
)
def test_bad_brackets_are_named(moves: list[tuple[bool, int, int]], detail: str) -> None:
    found = counted(*moves)
    assert [v.rule for v in found[:1]] == ["S10"]
    assert detail in found[0].detail


def test_open_brackets_of_an_incomplete_run_say_nothing() -> None:
    s = Story()
    s.begin("m/0", "cpu0", "Munmap")
    s.call("m/0", "kvm0", r.Invalidation(True, 4, 1, PAGE, PAGE + 4096))
    oracle = Oracle(WORLD)
    for step in s.steps:
        oracle.step(step)
    assert oracle.finish(Ending(3, 0, False, ()), quiescent=False) == []


# ---- L1 ------------------------------------------------------------------------------------------


def refused(times: int, pte: int, write: bool, *, moving: bool = False) -> Story:
    """A device whose fault is resolved and that faults again."""
    s = Story()
    s.map("t/0", pte)
    s.begin("d/0", "dev0", "Dma")
    s.go("d/0", "iommu0")
    for at in range(times):
        if moving and at % 8 == 0:
            s.call("d/0", "memory", change(pte, 0))
            s.call("d/0", "memory", change(0, pte))
        s.call("d/0", "memory", r.PteRead("mm0", PAGE, pte))
        s.also(r.FaultRetry("mm0", PAGE + 8, write, "page request"))
    return s


def test_endless_refusal_of_what_the_entry_permits_is_l1() -> None:
    assert broken(refused(RETRIES_MAX + 1, entry(3), True)) == [("L1", "iommu0", "")]
    assert broken(refused(3 * RETRIES_MAX, entry(3), True)) == [("L1", "iommu0", "")]


@pytest.mark.parametrize(
    "story",
    [
        refused(RETRIES_MAX, entry(3), True),
        refused(2 * RETRIES_MAX, entry(3, RO), True),
        refused(2 * RETRIES_MAX, entry(3), True, moving=True),
    ],
    ids=["not yet", "not permitted", "the entry changes"],
)
def test_a_retry_with_a_reason_is_progress(story: Story) -> None:
    assert broken(story) == []


def guest_refused(brackets: bool) -> Story:
    s = Story()
    s.map("t/0", entry(3))
    s.begin("m/0", "cpu0", "Munmap")
    s.begin("v/0", "vcpu0", "GuestTouch", 0)
    for seq in range(2 * RETRIES_MAX):
        if brackets:
            s.call("m/0", "kvm0", r.Invalidation(True, seq, 1, PAGE, PAGE + 4096))
            s.call("m/0", "kvm0", r.Invalidation(False, seq + 1, 0, PAGE, PAGE + 4096))
        s.call("v/0", "kvm0")
        s.call("v/0", "memory")
        s.also(r.FaultRetry("kvm0", 0, True, "mmu_invalidate_retry"))
    return s


def test_a_guest_fault_may_be_refused_while_brackets_come_and_go() -> None:
    assert broken(guest_refused(brackets=True)) == []
    assert broken(guest_refused(brackets=False)) == [("L1", "vcpu0", "")]


def owed(after: int, *, ends: str) -> Story:
    """cpu0 takes a page away, which cpu1 maps anew; a device is refused before cpu0 has flushed.

    It is refused ``after`` times more once cpu0 ``ends``: by its unlock, by its end, or not at all.
    """
    s = Story()
    s.map("t/0", entry(3, RO))
    s.begin("m/0", "cpu0", "MadviseDontneed")
    s.call("m/0", "memory", change(entry(3, RO), 0))
    s.map("t/1", entry(4))
    s.begin("d/0", "dev0", "Dma")
    s.go("d/0", "iommu0")
    for at in range(2 * RETRIES_MAX + after):
        if at == 2 * RETRIES_MAX and ends == "unlock":
            s.go("m/0", "memory", kind="MmapUnlock")
        elif at == 2 * RETRIES_MAX and ends == "end":
            s.end("m/0", "cpu0", "MadviseDontneed")
        s.call("d/0", "memory", r.PteRead("mm0", PAGE, entry(4)))
        s.also(r.FaultRetry("mm0", PAGE, True, "page request"))
    return s


@pytest.mark.parametrize("ends", ["unlock", "end", ""])
def test_a_refusal_counts_once_nobody_owes_the_flush(ends: str) -> None:
    """Whoever took the entry away may yet flush what denies; after that nobody will."""
    assert broken(owed(RETRIES_MAX, ends=ends)) == []
    late = broken(owed(RETRIES_MAX + 1, ends=ends))
    assert late == ([("L1", "iommu0", "")] if ends else [])


def denied(ended: bool) -> Story:
    """An IOTLB keeps an entry that is too weak for a page that went out and came in again."""
    s = Story()
    s.map("t/0", entry(3, RO))
    s.dma("d/0", entry(3, RO), "f", write=False)
    s.begin("k/0", "cpu0", "Kswapd")
    s.call("k/0", "memory", change(entry(3, RO), 0))
    if ended:
        s.end("k/0", "cpu0", "Kswapd")
    s.map("t/1", entry(3))
    s.begin("d/1", "dev0", "Dma")
    s.go("d/1", "iommu0")
    for _ in range(STALE_DENIALS_MAX + 1):
        s.call("d/1", "memory")
        s.also(r.PermissionFault("iotlb", "f", True))
    return s


@pytest.mark.parametrize(("ended", "told"), [(False, 0), (True, 1)])
def test_so_does_a_denial_by_a_stale_entry(ended: bool, told: int) -> None:
    assert [rule for rule, _, _ in broken(denied(ended))].count("L6") == told


# ---- L3 ------------------------------------------------------------------------------------------


def stuck(*waiting: tuple[str, str, str, str], steps: list[TraceStep] | None = None) -> str:
    """The one L3 that a run which ends so reports."""
    oracle = Oracle(WORLD)
    for step in steps or ():
        oracle.step(step)
    (violation,) = oracle.finish(Ending(0, 0, False, waiting))
    assert violation.rule == "L3"
    return violation.detail


def holding() -> list[TraceStep]:
    """cpu1 holds a PTL."""
    s = Story()
    s.begin("b/0", "cpu1", "Munmap")
    s.go("b/0", "memory", kind="PtlLock")
    s.go("b/0", "cpu1", kind="PtlLock~")
    return s.steps


def test_a_deadlock_is_told_with_its_locks() -> None:
    detail = stuck(
        ("a/0", "Touch", "broker", "cpu0"),
        ("a/0.3", "PtlLock", "cpu0", "memory"),
        ("b/0", "Munmap", "broker", "cpu1"),
        ("b/0.9", "FlushTlbIpi", "cpu1", "cpu0"),
        steps=holding(),
    )
    assert detail == (
        "deadlock: a/0 waits for Touch at cpu0 > PtlLock at memory -> "
        "b/0 waits for Munmap at cpu1 > FlushTlbIpi at cpu0 holding PtlLock of memory -> "
        "a/0 waits for Touch at cpu0 > PtlLock at memory"
    )


def test_a_wait_without_a_cycle_is_told_as_a_chain() -> None:
    detail = stuck(("a/0", "Touch", "broker", "cpu0"), ("a/0.3", "FolioWait", "cpu0", "memory"))
    assert detail == "waiting for ever: a/0 waits for Touch at cpu0 > FolioWait at memory"


def test_programs_that_wait_for_what_never_comes() -> None:
    assert "did not finish" in stuck()


def test_a_run_that_was_cut_short_is_not_deadlocked() -> None:
    ending = Ending(9, 0, False, (("a/0", "Touch", "broker", "cpu0"),))
    assert Oracle(WORLD).finish(ending, quiescent=False) == []


# ---- over a long run -----------------------------------------------------------------------------


def round_of(s: Story, number: int) -> None:
    """A page is mapped, cached by everybody, unmapped and its frame freed, correctly."""
    i = str(number)
    frame = 3 + number % 2
    pte = entry(frame)
    s.map(f"t/{i}", pte)
    s.dma(f"d/{i}", pte, f"f{i}")
    s.begin(f"v/{i}", "vcpu0", "GuestTouch", 0)
    read = s.call(f"v/{i}", "memory", r.PteRead("mm0", PAGE, pte))
    s.call(f"v/{i}", "kvm0", r.Fill("spte", "kvm0", PAGE, pte, f"s{i}", read))
    s.also(r.Fill("gtlb", "kvm0", 0, pte, f"g{i}", f"s{i}"))
    s.end(f"v/{i}", "vcpu0", "GuestTouch")
    s.begin(f"m/{i}", "cpu0", "Munmap")
    s.call(f"m/{i}", "kvm0", r.Invalidation(True, number, 1, PAGE, PAGE + 4096))
    s.call(f"m/{i}", "kvm0", *dropped("spte", f"s{i}", "kvm0"))
    s.call(f"m/{i}", "vcpu0", *dropped("gtlb", f"g{i}", "kvm0"))
    s.call(f"m/{i}", "memory", change(pte, 0))
    s.call(f"m/{i}", "kvm0", r.Invalidation(False, number + 1, 0, PAGE, PAGE + 4096))
    s.call(f"m/{i}", "iommu0", *dropped("iotlb", f"f{i}"))
    s.call(f"m/{i}", "memory", r.FrameFreed(frame))
    s.end(f"m/{i}", "cpu0", "Munmap")


ROUNDS = 400


def test_memory_is_bounded_by_what_is_live() -> None:
    s, oracle = Story(), Oracle(WORLD)
    sizes = []
    for number in range(ROUNDS):
        before = len(s.steps)
        round_of(s, number)
        for step in s.steps[before:]:
            assert oracle.step(step) == []
        oracle.forget_before(len(s.steps) - 40)
        state = oracle.state
        sizes.append(
            len(state.fills) + len(state.reads) + len(state.ops) + len(state.pages)
            + sum(len(p.fills) + len(p.changes) + len(p.reads) for p in state.pages.values())
            + sum(len(frame.changes) for frame in state.frames.values())
            + len(oracle.order._rows)
        )  # fmt: skip
    assert max(sizes) < 3 * ORACLE_SWEEP_MIN
    assert max(sizes[ROUNDS // 2 :]) <= max(sizes[: ROUNDS // 2]) + 20
    assert oracle.finish(Ending(len(s.steps), 0, True, ())) == []


def test_what_was_swept_does_not_hide_a_breach() -> None:
    s = Story()
    s.map("k/0", entry(7))
    s.dma("kd/0", entry(7), "old")
    for number in range(150):
        s.begin(f"w/{number}", "cpu1", "Mprotect")
        s.call(f"w/{number}", "memory", change(entry(7), entry(7, RO)))
        s.call(f"w/{number}", "memory", change(entry(7, RO), entry(7)))
        s.call(f"w/{number}", "iommu0")
        s.go(f"w/{number}", "cpu1", r.OpEnd("Touch", 0))
    s.begin("m/0", "cpu0", "Munmap")
    s.call("m/0", "memory", change(entry(7), 0))
    s.call("m/0", "memory", r.FrameFreed(7))
    last = play(s.steps).violations[-1]
    assert (last.rule, last.agent, last.owed) == ("O", "iommu0", "Munmap m/0 on cpu0")


def test_a_cause_that_was_forgotten_is_an_error_not_a_guess() -> None:
    s, oracle = Story(), Oracle(WORLD)
    s.map("t/0", entry(3))
    for step in s.steps:
        oracle.step(step)
    oracle.forget_before(len(s.steps) + 1)
    s.begin("t/1", "cpu0", "Touch")
    s.go("t/1", "memory")
    oracle.step(s.steps[-2])
    late = TraceStep(len(s.steps), "t/1.1", "cpu0", "memory", "Ack", (2,), ())
    with pytest.raises(EmulatorError, match="cause 2 is not in the trace"):
        oracle.step(late)


def test_a_node_of_another_world_is_an_error() -> None:
    step = TraceStep(1, "t/0", "broker", "cpu7", "Touch", (), ())
    with pytest.raises(EmulatorError, match="cpu7, which is not in this world"):
        Oracle(WORLD).step(step)


def test_violations_beyond_the_limit_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmurace.oracle.oracle.ORACLE_VIOLATIONS_KEPT", 2)
    s = Story()
    s.map("t/0", entry(3))
    s.begin("m/0", "cpu0", "Munmap")
    for _ in range(5):
        s.call("m/0", "kvm0", r.Invalidation(False, 1, -1, PAGE, PAGE + 4096))
    oracle = play(s.steps)
    assert len(oracle.violations) == 2
    assert oracle.statistics.violations == {"S10": 6}  # five ends, and the end of the run


def test_what_a_dead_node_cached_is_never_used_again() -> None:
    for dead in (False, True):
        s, oracle = Story(), Oracle(WORLD)
        s.map("t/0", entry(3))
        s.dma("d/0", entry(3), "f")
        for step in s.steps:
            oracle.step(step)
        if dead:
            oracle.lost("iommu0")
        done = len(s.steps)
        s.begin("m/0", "cpu0", "Munmap")
        s.call("m/0", "memory", change(entry(3), 0))
        s.end("m/0", "cpu0", "Munmap")
        for step in s.steps[done:]:
            oracle.step(step)
        assert [v.rule for v in oracle.violations] == ([] if dead else ["O"])


def test_an_operation_that_waited_for_its_processor_begins_in_anothers_delivery() -> None:
    s = Story()
    s.map("t/0", entry(3))
    s.dma("d/0", entry(3), "f")
    s.begin("a/0", "cpu0", "Touch")
    s.go("m/0", "cpu0", kind="Munmap")
    s.go("a/0", "memory")
    begins = r.OpBegin("Munmap", "mm0", PAGE, PAGE + 4096, "m/0")
    s.go("a/0", "cpu0", r.OpEnd("Touch", 0), begins)
    s.go("m/0", "memory", change(entry(3), 0))
    s.go("m/0", "cpu0", r.OpEnd("Munmap", 0))
    oracle = play(s.steps)
    (violation,) = oracle.violations
    assert violation.owed == "Munmap m/0 on cpu0"
