"""Rules S11, L2, S13 and Q1: what threads do around callbacks, each from both sides."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mmurace.oracle.violation import Violation
from mmurace.protocol import records as r
from mmurace.protocol.limits import BRACKET_STEPS_BASE, BRACKET_STEPS_PER_PAGE, CALLBACK_STEPS_BASE
from mmurace.protocol.trace import TraceStep
from tests.oracle_story import PAGE, Story, identities, play, shuffled

START, END = "invalidate_range_start", "invalidate_range_end"
SEEDS = range(5)


def call(callback: str, phase: str, op: str = "m/0", subscriber: str = "kvm0") -> r.NotifierCall:
    return r.NotifierCall(callback, subscriber, "mm0", PAGE, PAGE + 4096, "CLEAR", phase, op)


def found(steps: Sequence[TraceStep], *rules: str) -> list[Violation]:
    return [v for v in play(steps).violations if v.rule in rules]


class Thread(Story):
    """One operation of cpu0: requests to memory and their answers, and callbacks."""

    def __init__(self, op: str = "m/0", node: str = "cpu0") -> None:
        super().__init__()
        self.op, self.home, self.sent = op, node, 0
        self.begin(op, node, "Munmap")
        self._last = 1

    def ask(self, kind: str, *records: r.Record, dst: str = "memory") -> None:
        """A request of the thread, answered; the records are of the answer's delivery."""
        message = f"{self.op}.{self.sent}"
        self.sent += 1
        self._deliver(message, self.home, dst, kind)
        self._deliver(message + "~", dst, self.home, kind + "~", *records)

    def _deliver(self, message: str, src: str, dst: str, kind: str, *records: r.Record) -> None:
        n = len(self.steps) + 1
        self.steps.append(TraceStep(n, message, src, dst, kind, (self._last,), records))
        self._last = n

    def over(self) -> Sequence[TraceStep]:
        """The operation returns."""
        self.ask("PteLoad", r.OpEnd("Munmap", 0, self.op))
        return self.steps


# ---- S11 ---------------------------------------------------------------------------------------


def locked(*asked: str, lock: str = "Ptl") -> Sequence[TraceStep]:
    """A thread takes a spinlock, asks for these things, and releases it."""
    dst = {"Ptl": "memory", "Mmu": "kvm0", "Atsd": "iommu0"}[lock]
    thread = Thread()
    thread.ask(f"{lock}Lock", dst=dst)
    for kind in asked:
        thread.ask(kind)
    thread.ask(f"{lock}Unlock", dst=dst)
    return thread.over()


SLEEPERS = (
    "MmapLock", "FolioLock", "FolioWait", "AnonVmaLock", "ImmapLock", "FrameAlloc", "MemslotAdd",
    "ReclaimThrottle", "SpaLock", "SynchronizeSrcu", "InodeLock", "ReadFolio", "WritePage",
)  # fmt: skip


@pytest.mark.parametrize("kind", SLEEPERS)
@pytest.mark.parametrize("lock", ["Ptl", "Mmu", "Atsd"])
def test_nobody_sleeps_under_a_spinlock(kind: str, lock: str) -> None:
    (violation,) = found(locked(kind, lock=lock), "S11")
    assert violation.agent == "cpu0"
    assert kind in violation.detail
    assert f"{lock}Lock is held" in violation.detail


@pytest.mark.parametrize("kind", ["PteLoad", "FolioTrylock", "PtlLock", "TlbFlushPending"])
def test_what_only_spins_may_be_asked_under_one(kind: str) -> None:
    thread = ["PtlLock", "PtlUnlock"] if kind == "PtlLock" else [kind]
    assert found(locked(*thread), "S11") == []


def test_before_and_after_a_spinlock_anybody_may_sleep() -> None:
    thread = Thread()
    for kind in ("MmapLock", "PtlLock", "PtlUnlock", "FrameAlloc", "MmapUnlock"):
        thread.ask(kind)
    assert found(thread.over(), "S11") == []


def test_a_sleeping_lock_may_be_held() -> None:
    thread = Thread()
    for kind in ("MmapLock", "AnonVmaLock", "FrameAlloc", "AnonVmaUnlock", "MmapUnlock"):
        thread.ask(kind)
    assert found(thread.over(), "S11") == []


def test_another_thread_may_sleep_meanwhile() -> None:
    thread = Thread()
    thread.ask("PtlLock")
    thread.begin("t/0", "cpu1", "Touch")
    thread.go("t/0", "memory", kind="MmapLock")
    thread.ask("PtlUnlock")
    assert found(thread.over(), "S11") == []


def test_an_answer_that_is_delivered_twice_takes_no_lock() -> None:
    thread = Thread()
    for kind in ("PtlLock", "PtlUnlock"):
        thread.ask(kind)
    again = next(step for step in thread.steps if step.kind == "PtlLock~")
    thread._deliver(again.id, again.src, again.dst, again.kind)
    thread.ask("MmapLock")
    assert found(thread.over(), "S11", "Q1") == []


@pytest.mark.parametrize("callback", ["invalidate_range", "arch_invalidate_secondary_tlbs"])
def test_an_atomic_callback_never_sleeps(callback: str) -> None:
    inside, after = Thread(), Thread()
    for thread in (inside, after):
        thread.ask("NotifierList", call(callback, "begin", subscriber="iommu0"))
    inside.ask("MmapLock")
    for thread in (inside, after):
        thread.ask("PteLoad", call(callback, "end", subscriber="iommu0"))
    after.ask("MmapLock")
    (violation,) = found(inside.over(), "S11")
    assert callback in violation.detail
    assert found(after.over(), "S11") == []


def test_a_request_from_before_may_be_repeated_in_an_atomic_callback() -> None:
    thread = Thread()
    for kind in ("AnonVmaLock", "PtlLock"):
        thread.ask(kind)
    thread.ask("NotifierList", call("invalidate_range", "begin", subscriber="iommu0"))
    again = next(step for step in thread.steps if step.kind == "AnonVmaLock")
    thread._deliver(again.id, again.src, again.dst, again.kind)
    thread.ask("PteLoad", call("invalidate_range", "end", subscriber="iommu0"))
    thread.ask("PtlUnlock")
    assert found(thread.over(), "S11") == []


@pytest.mark.parametrize("callback", [START, END])
def test_a_callback_that_may_sleep_is_not_called_under_a_spinlock(callback: str) -> None:
    under, outside = Thread(), Thread()
    under.ask("PtlLock")
    for thread in (under, outside):
        thread.ask("NotifierList", call(callback, "begin"))
        thread.ask("PteLoad", call(callback, "end"))
    under.ask("PtlUnlock")
    assert len(found(under.over(), "S11")) == 1
    assert found(outside.over(), "S11") == []


def test_an_atomic_callback_may_be_called_under_a_spinlock() -> None:
    thread = Thread()
    thread.ask("PtlLock")
    thread.ask("NotifierList", call("invalidate_range", "begin", subscriber="iommu0"))
    thread.ask("PteLoad", call("invalidate_range", "end", subscriber="iommu0"))
    thread.ask("PtlUnlock")
    assert found(thread.over(), "S11") == []


# ---- L2 ----------------------------------------------------------------------------------------


def stepping(in_start: int, between: int) -> Sequence[TraceStep]:
    """A bracket of one page with so many steps."""
    thread = Thread()
    thread.ask("NotifierList", call(START, "begin"))
    for _ in range(in_start):
        thread.ask("SpteScan", dst="kvm0")
    thread.ask("MmuUnlock", call(START, "end"), dst="kvm0")
    for _ in range(between):
        thread.ask("PteLoad")
    thread.ask("NotifierList", call(END, "begin"))
    thread.ask("MmuUnlock", call(END, "end"), dst="kvm0")
    return thread.over()


def test_a_callback_takes_a_bounded_number_of_steps() -> None:
    (violation,) = found(stepping(CALLBACK_STEPS_BASE + 50, 0), "L2")
    assert violation.agent == "kvm0"
    assert START in violation.detail
    assert found(stepping(CALLBACK_STEPS_BASE - 50, 0), "L2") == []


def test_a_bracket_takes_a_bounded_number_of_steps() -> None:
    most = BRACKET_STEPS_BASE + 2 * BRACKET_STEPS_PER_PAGE
    (violation,) = found(stepping(0, most + 10), "L2")
    assert "the bracket" in violation.detail
    assert found(stepping(0, most - 50), "L2") == []


def test_what_others_do_meanwhile_does_not_count() -> None:
    thread = Thread()
    thread.ask("NotifierList", call(START, "begin"))
    for index in range(CALLBACK_STEPS_BASE * 2):
        thread.begin(f"g/{index}", "vcpu0", "GuestTouch")
    thread.ask("MmuUnlock", call(START, "end"), dst="kvm0")
    thread.ask("NotifierList", call(END, "begin"))
    thread.ask("MmuUnlock", call(END, "end"), dst="kvm0")
    assert found(thread.over(), "L2") == []


# ---- S13 ---------------------------------------------------------------------------------------


def unregistering(*, hears: bool, late: bool = False) -> Sequence[TraceStep]:
    """cpu0 runs a callback; cpu1 unregisters: after it heard of its end, or not; or before."""
    s = Story()
    s.begin("u/0", "cpu1", "KvmDestroyVm")
    gone = r.Unregistered("kvm0", "mm0")
    if late:
        s.go("u/0", "cpu1", gone)
    s.begin("m/0", "cpu0", "Munmap")
    s.go("m/0", "cpu0", call(START, "begin"))
    s.go("m/0", "cpu0", call(START, "end"))
    if hears:
        s.go("m/0", "cpu1")
    if not late:
        s.go("u/0", "cpu1", gone)
    return s.steps


@pytest.mark.parametrize("seed", SEEDS)
def test_a_subscriber_is_let_go_after_its_callbacks(seed: int) -> None:
    for steps, broken in (
        (unregistering(hears=True), 0),
        (unregistering(hears=False), 1),
        (unregistering(hears=False, late=True), 1),
    ):
        assert len(found(shuffled(steps, seed), "S13")) == broken


def test_a_callback_that_is_still_running() -> None:
    s = Story()
    s.begin("m/0", "cpu0", "Munmap")
    s.go("m/0", "cpu0", call(START, "begin"))
    s.begin("u/0", "cpu1", "KvmDestroyVm")
    s.go("u/0", "cpu1", r.Unregistered("kvm0", "mm0"))
    s.go("m/0", "cpu0", call(START, "end"))
    assert len(found(s.steps, "S13")) == 1


def test_callbacks_of_others_may_run() -> None:
    s = Story()
    s.begin("m/0", "cpu0", "Munmap")
    s.go("m/0", "cpu0", call("invalidate_range", "begin", subscriber="iommu0"))
    s.begin("u/0", "cpu1", "KvmDestroyVm")
    s.go("u/0", "cpu1", r.Unregistered("kvm0", "mm0"))
    assert found(s.steps, "S13") == []


# ---- Q1 ----------------------------------------------------------------------------------------


def test_locks_are_given_back() -> None:
    thread = Thread()
    thread.ask("PtlLock")
    (violation,) = found(thread.over(), "Q1")
    assert "PtlLock" in violation.detail
    assert found(locked(), "Q1") == []


def test_brackets_are_closed() -> None:
    def bracket(*callbacks: str) -> Sequence[TraceStep]:
        thread = Thread()
        for callback in callbacks:
            thread.ask("NotifierList", call(callback, "begin"))
            thread.ask("MmuUnlock", call(callback, "end"), dst="kvm0")
        return thread.over()

    assert found(bracket(START, END), "Q1") == []
    assert [v.agent for v in found(bracket(START), "Q1")] == ["kvm0"]
    assert [v.agent for v in found(bracket(START, END, END), "Q1")] == ["kvm0"]


def test_nobody_closes_the_brackets_of_who_is_gone() -> None:
    thread = Thread()
    thread.ask("NotifierList", call(START, "begin"))
    thread.ask("MmuUnlock", call(START, "end"), dst="kvm0")
    thread.begin("u/0", "cpu1", "KvmDestroyVm")
    thread.go("u/0", "cpu1", r.Unregistered("kvm0", "mm0"))
    assert found(thread.over(), "Q1") == []


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_of_independent_deliveries_does_not_matter(seed: int) -> None:
    for steps in (locked("MmapLock"), stepping(CALLBACK_STEPS_BASE + 50, 0)):
        expected = identities(play(steps).violations)
        assert identities(play(shuffled(steps, seed)).violations) == expected
