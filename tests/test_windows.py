"""The coverage of workloads: who was inside the window of an operation, and who was only near."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from rich.console import Console

from mmurace.broker.programs import Program, Step
from mmurace.explorer.run.outcome import Outcome
from mmurace.explorer.run.session import check, replay, run_on_processes, simulate
from mmurace.nodes.kernel import mmu_notifier, mprotect
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.mmu_notifier import MmuNotifierRange
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.kvm.messages import GuestApic, GuestTouch
from mmurace.nodes.world import World
from mmurace.oracle.sometimes import Entered, window_conditions
from mmurace.oracle.windows import cells_of
from mmurace.protocol import records as r
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as ops
from mmurace.report import machine, terminal
from mmurace.scenarios.mixed import Mix, MixedOptions
from mmurace.scenarios.runs import mixed_run
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script
from tests.oracle_story import PAGE, WORLD, Story, change, dropped, entry, play, shuffled
from tests.worlds import APIC, MM, page, small_world


def entered(s: Story, op: str, cache: str) -> bool:
    """Whether somebody was inside, in every linearisation tried."""
    answers = {
        play(shuffled(s.steps, seed), [Entered(op, cache)]).sometimes.open == set()
        for seed in range(25)
    }
    assert len(answers) == 1, "the answer depends on the linearisation"
    return answers.pop()


# ---- who walks the table itself ----------------------------------------------------------------


def unmapping(*order: str) -> Story:
    """The IOTLB holds PAGE, and a munmap takes it away: ``use`` is a DMA through the entry."""
    s = Story()
    s.map("t/0", entry(3))
    s.dma("d/0", entry(3), "f")
    s.begin("m/0", "cpu0", "Munmap")
    for at, what in enumerate(order):
        if what == "change":
            s.call("m/0", "memory", change(entry(3), 0))
        elif what == "flush":
            s.call("m/0", "iommu0", *dropped("iotlb", "f"))
        else:
            s.begin(f"d/{at + 1}", "dev0", "Dma")
            s.go(f"d/{at + 1}", "iommu0")
            s.use(f"d/{at + 1}", "iommu0", "f", 3)
            s.end(f"d/{at + 1}", "dev0", "Dma")
    s.end("m/0", "cpu0", "Munmap")
    return s


@pytest.mark.parametrize(
    ("order", "inside"),
    [
        (("change", "use", "flush"), True),
        (("use", "change", "flush"), False),
        (("change", "flush"), False),
    ],
)
def test_an_entry_is_used_after_it_was_taken_away(order: tuple[str, ...], inside: bool) -> None:
    assert entered(unmapping(*order), "Munmap", "iotlb") is inside
    assert not entered(unmapping(*order), "Munmap", "spte")
    assert not entered(unmapping(*order), "Mprotect", "iotlb")


@pytest.mark.parametrize("last", ["filled", "discarded", "away"])
@pytest.mark.parametrize("late", [False, True])
def test_a_load_from_before_comes_after(last: str, late: bool) -> None:
    """``late``: the load comes after the entry was taken away, and sees another one."""
    s = Story()
    s.map("t/0", entry(3))
    s.begin("m/0", "cpu0", "Mprotect")
    s.begin("d/0", "dev0", "Dma")
    s.go("d/0", "iommu0")
    if late:
        s.call("m/0", "memory", change(entry(3), entry(3, 0b1)))
    read = s.go("d/0", "memory", r.PteRead("mm0", PAGE, entry(3)))
    if not late:
        s.call("m/0", "memory", change(entry(3), entry(3, 0b1)))
    if last == "discarded":
        s.go("m/0", "iommu0")  # the flush, which waits for the walk
    s.go("d/0", "iommu0")
    if last == "filled":
        s.also(r.Fill("iotlb", "mm0", PAGE, entry(3), "f", read))
    elif last == "discarded":
        s.also(r.WalkDiscarded("iotlb", "mm0", PAGE))
    s.call("m/0", "iommu0")
    s.end("d/0", "dev0", "Dma")
    s.end("m/0", "cpu0", "Mprotect")
    assert entered(s, "Mprotect", "iotlb") is (last != "away" and not late)


@pytest.mark.parametrize(
    ("order", "inside"),
    [
        (("load", "change", "refused"), True),
        (("load", "refused", "change"), False),
        (("change", "load", "refused"), False),
        (("load", "refused", "change", "load", "refused"), False),
        (("load", "refused", "load", "change", "refused"), True),
    ],
)
def test_a_fault_is_refused_what_it_has_loaded(order: tuple[str, ...], inside: bool) -> None:
    """What was loaded for an attempt before was thrown away with that one."""
    s = Story()
    s.map("t/0", entry(3))
    s.begin("m/0", "cpu0", "Munmap")
    s.begin("d/0", "dev0", "Dma")
    pte = entry(3)
    for what in order:
        if what == "change":
            s.call("m/0", "memory", change(pte, 0))
            pte = 0
        elif what == "load":
            s.call("d/0", "memory", r.PteRead("mm0", PAGE, pte))
        else:
            s.go("d/0", "memory")  # the look at the sequence
            s.go("d/0", "dev0", r.FaultRetry("mm0", PAGE, True, "mmu_invalidate_retry", "d/0"))
            s.call("m/0", "dev0")  # which waits for the lock that the fault has
    s.end("d/0", "dev0", "Dma")
    s.end("m/0", "cpu0", "Munmap")
    assert entered(s, "Munmap", "spte") is inside


# ---- shadow MMUs -------------------------------------------------------------------------------


def shadowed(*order: str) -> Story:
    """KVM holds PAGE for a guest; a munmap zaps it and takes it away.

    ``fault`` is a guest fault that loads the entry, ``access`` one through the guest TLB.
    """
    s = Story()
    s.map("t/0", entry(3))
    s.begin("g/0", "vcpu0", "GuestTouch")
    read = s.call("g/0", "memory", r.PteRead("mm0", PAGE, entry(3)))
    s.call("g/0", "kvm0", r.Fill("spte", "kvm0", PAGE, entry(3), "s", read))
    s.also(r.Fill("gtlb", "kvm0", 0, entry(3), "g", "s"))
    s.use("g/0", "vcpu0", "g", 3)
    s.end("g/0", "vcpu0", "GuestTouch")
    s.begin("m/0", "cpu0", "Munmap")
    for at, what in enumerate(order):
        op = f"g/{at + 1}"
        if what == "zap":
            s.call("m/0", "kvm0", *dropped("spte", "s", "kvm0"))
        elif what == "kick":
            s.call("m/0", "vcpu0", *dropped("gtlb", "g", "kvm0"))
        elif what == "change":
            s.call("m/0", "memory", change(entry(3), 0))
        else:
            s.begin(op, "vcpu0", "GuestTouch")
            if what == "access":
                s.use(op, "vcpu0", "g", 3)
            else:
                s.call(op, "kvm0")  # looks there first, so it knows what it has missed
                s.call(op, "memory", r.PteRead("mm0", PAGE, entry(3)))
                s.also(r.FaultRetry("kvm0", 0, True, "mmu_invalidate_retry", op))
            s.call(op, "kvm0")
            # It goes on until the window is over.
            if what == "access":
                s.end(op, "vcpu0", "GuestTouch")
    s.end("m/0", "cpu0", "Munmap")
    return s


@pytest.mark.parametrize(
    ("order", "cache", "inside"),
    [
        (("zap", "kick", "fault", "change"), "spte", True),
        (("fault", "zap", "kick", "change"), "spte", False),
        (("zap", "kick", "change"), "spte", False),
        (("zap", "access", "kick", "change"), "gtlb", True),
        (("access", "zap", "kick", "change"), "gtlb", False),
        (("zap", "access", "kick"), "gtlb", False),
        (("zap", "kick", "fault"), "spte", False),
    ],
)
def test_a_guest_is_between_the_zap_and_the_change(
    order: tuple[str, ...], cache: str, inside: bool
) -> None:
    assert entered(shadowed(*order), "Munmap", cache) is inside


# ---- worlds ------------------------------------------------------------------------------------


def test_what_cannot_be_met_in_a_world_is_not_in_the_table() -> None:
    caches = {cache for _, cache in cells_of(["Munmap"], WORLD)}
    assert caches == {"tlb", "iotlb", "spte", "gtlb"}
    assert [cache for _, cache in cells_of(["MigratePages"], small_world())][-1] == "vmcs"
    bare = World(kernel=preset("v6.6.5"), cpus=("cpu0",))
    assert cells_of(["Munmap"], bare) == ()
    assert cells_of(["OcxlAttach"], WORLD) == ()


ACTS: dict[str, ops.Operation] = {
    "Munmap": ops.Munmap(MM, 0, PAGE_SIZE),
    "Mprotect": ops.Mprotect(MM, 0, PAGE_SIZE, True, False),
    "MadviseDontneed": ops.MadviseDontneed(MM, 0, PAGE_SIZE),
    "MigratePages": ops.MigratePages(MM, 0, PAGE_SIZE),
}
ACCESSES: dict[str, tuple[str, ops.Operation]] = {
    "tlb": ("cpu1", ops.Touch(MM, 0, False)),
    "iotlb": ("device0", Dma(MM, 0, False)),
    "spte": ("vcpu0", GuestTouch(0, False)),
    "gtlb": ("vcpu0", GuestTouch(0, False)),
}
BESIDE = 16


def meeting(kind: str, cache: str, beside: bool, seed: int) -> Outcome:
    """One page, one operation on it, one party that accesses it: beside that, or before it."""
    node, access = ACCESSES[cache]
    waits = (f"{node}/0",) if beside else (f"{node}/{BESIDE}",)
    first = [ops.Mmap(MM, 0, PAGE_SIZE, True, True), ops.Touch(MM, 0, True, 1)]
    cpu0 = [*map(Step, first), Step(ACTS[kind], waits)]
    other = [Step(access, ("cpu0/1",)), *[Step(access)] * BESIDE]
    world = small_world()
    script = Script((Program("cpu0", "cpu0", cpu0), Program(node, node, other)))
    asked = window_conditions([kind], world)
    return simulate(RunSpec("meeting", world, seed, script, sometimes=asked))


@pytest.mark.parametrize("kind", ACTS)
@pytest.mark.parametrize("cache", ACCESSES)
def test_somebody_beside_an_operation_is_seen_inside_and_somebody_before_it_never(
    kind: str, cache: str
) -> None:
    inside = [meeting(kind, cache, True, seed).verdict.how.windows for seed in range(40)]
    assert any(found[kind][cache] == 1 for found in inside)
    assert all(found[kind]["vmcs"] == 0 for found in inside if "vmcs" in found[kind])
    for seed in range(10):
        outcome = meeting(kind, cache, False, seed)
        assert not any(outcome.verdict.how.windows[kind].values())
        assert outcome.verdict.outcome == "inconclusive"


@pytest.mark.parametrize("release", ["v5.8", "v6.6.5"])
def test_a_guest_that_runs_while_its_apic_page_moves(release: str) -> None:
    world = small_world(release)
    first = [ops.Mmap(MM, APIC, PAGE_SIZE, True, True), ops.Mmap(MM, 0, page(2), True, True)]
    moves = [Step(ops.MigratePages(MM, APIC, PAGE_SIZE), ("vcpu0/1",))] * 3
    guest = [
        Step(GuestApic(APIC, True, 1), ("cpu0/1",)),
        *[Step(GuestTouch(page(1), True, 1)), Step(GuestApic(APIC, True, 1))] * 20,
    ]
    script = Script(
        (Program("cpu0", "cpu0", [*map(Step, first), *moves]), Program("vcpu0", "vcpu0", guest))
    )
    asked = window_conditions(["MigratePages"], world)
    found = 0
    for seed in range(10):
        outcome = simulate(RunSpec("apic", world, seed, script, sometimes=asked))
        assert not outcome.violations
        found += outcome.verdict.how.windows["MigratePages"]["vmcs"]
    assert found


# ---- whole runs --------------------------------------------------------------------------------


def test_a_workload_that_never_came_near_is_inconclusive_and_names_every_cell() -> None:
    outcome = simulate(mixed_run(preset("v6.6.5"), 1, operations_max=100))
    assert outcome.verdict.outcome == "inconclusive"
    never = [
        f"entered(op={kind}, cache={cache})"
        for kind, row in outcome.verdict.how.windows.items()
        for cache, count in row.items()
        if not count
    ]
    assert never
    assert set(never) <= set(outcome.verdict.how.missing)


@pytest.mark.parametrize(
    ("release", "arch"), [("v6.6.88", "arm64"), ("v5.11", "x86"), ("v6.2", "x86")]
)
def test_the_default_mix_meets_every_cell(release: str, arch: str) -> None:
    outcome = simulate(mixed_run(preset(release, arch), 1, operations_max=20_000))
    assert not outcome.violations
    assert outcome.verdict.outcome == "held", outcome.verdict.reasons


ONLY_MPROTECT = Mix(munmap=0, dontneed=0, mmap=0, brk=0, migrate=0)


@pytest.mark.parametrize("seed", range(3))
def test_a_bracket_that_is_closed_before_the_entries_change_is_found(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = MixedOptions(mix=ONLY_MPROTECT)
    spec = mixed_run(preset("v6.6.5"), seed, options, operations_max=8000)
    assert not simulate(spec).violations
    start = mmu_notifier.invalidate_range_start

    async def start_and_end(cpu: Processor, range_: MmuNotifierRange) -> None:
        await start(cpu, range_)
        await mmu_notifier.invalidate_range_end(cpu, range_)

    async def nothing(cpu: Processor, range_: MmuNotifierRange) -> None:
        pass

    early = SimpleNamespace(invalidate_range_start=start_and_end, invalidate_range_end=nothing)
    monkeypatch.setattr(mprotect, "mmu_notifier", early)
    found = {(v.rule, v.agent) for v in simulate(spec).violations}
    assert ("O", "kvm0") in found


@pytest.mark.parametrize("seed", range(3))
def test_frames_that_are_freed_before_the_secondaries_are_flushed_are_found(seed: int) -> None:
    kernel = preset("v6.2", "x86", {"gather_calls_ir": False})
    outcome = simulate(mixed_run(kernel, seed, operations_max=1500))
    found = {(v.rule, v.agent) for v in outcome.violations}
    assert ("O", "iommu0") in found


def test_the_record_of_a_run_gives_the_same_table(tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    spec = saved(first)
    outcome = simulate(spec, first)
    again.mkdir()
    table = outcome.verdict.how.windows
    assert any(count for row in table.values() for count in row.values())
    assert check(first).verdict.how.windows == table
    assert replay(first, "simulator", again).verdict.how.windows == table


def saved(directory: Path) -> RunSpec:
    """A short mixed run, with its files in a new directory."""
    directory.mkdir()
    return mixed_run(preset("v6.6.5"), 4, operations_max=1500).save(directory)


def printed(outcome: Outcome) -> list[str]:
    """What a person sees."""
    text = io.StringIO()
    terminal.print_outcome(Console(file=text, width=100), outcome)
    return text.getvalue().splitlines()


@pytest.mark.processes
def test_a_run_on_processes_shows_the_table_and_its_replay_the_same(tmp_path: Path) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    spec = saved(first)
    again.mkdir()
    outcome = run_on_processes(spec, first)
    machine.save_summary(outcome)
    table = outcome.verdict.how.windows
    assert replay(first, "simulator", again).verdict.how.windows == table
    written = json.loads((first / machine.SUMMARY_FILE).read_text())
    assert written["verdict"]["how"]["windows"] == table
    lines = printed(outcome)
    head = next(at for at, line in enumerate(lines) if line.startswith("  windows "))
    assert lines[head].split()[-5:] == ["tlb", "iotlb", "spte", "gtlb", "vmcs"]
    shown = {line.split()[0]: line.split()[1:] for line in lines[head + 1 : head + 8]}
    for kind, row in table.items():
        assert shown[kind] == [str(count) if count else "NEVER" for count in row.values()]


def test_the_headline_of_what_held_says_how_many_windows_nobody_entered() -> None:
    outcome = simulate(mixed_run(preset("v6.6.5"), 1, operations_max=100))
    how = replace_how(outcome, {"Brk": {"tlb": 3, "iotlb": 0}})
    assert printed(how)[0].startswith("HELD: 1 of 2 windows never entered; 1 schedule in")


def replace_how(outcome: Outcome, windows: dict[str, dict[str, int]]) -> Outcome:
    """The same run, held, with another table."""
    how = msgspec.structs.replace(outcome.verdict.how, windows=windows, missing=())
    verdict = msgspec.structs.replace(outcome.verdict, outcome="held", reasons=(), how=how)
    return replace(outcome, verdict=verdict)
