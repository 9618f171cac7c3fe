"""What a person sees: the summary, the report of a violation, the JSON object, the catalogue."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from rich.console import Console

from mmurace.broker.chaos import parse_rules
from mmurace.broker.recorder import BrokerJournal
from mmurace.explorer.run.outcome import OperationCount, Outcome
from mmurace.nodes.kernel.variant import preset
from mmurace.oracle.verdict import How, Verdict
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.envelope import BROKER, Envelope
from mmurace.protocol.errors import UserError
from mmurace.protocol.messages.base import Ack, kinds
from mmurace.protocol.messages.program import operation_kinds
from mmurace.protocol.trace import Ending
from mmurace.report import catalogue, directory, formats, kernel_functions, machine, terminal
from mmurace.report.facts import kernel_text
from mmurace.report.progress import Progress, progress_line
from mmurace.report.trail import Trail, trail_of
from mmurace.report.violation import RULER, violation_report
from mmurace.scenarios.catalogue import find, load_all
from mmurace.scenarios.runs import mixed_run
from mmurace.scenarios.spec import Expectation

VIOLATION = Violation(
    rule="S1", agent="iommu0", cache="iotlb", mm="mm0", address=0x10000, frame=0x1F,
    detail="frame 0x1f was written after it had been freed",
    read=Event("entry read", 88, "memory", "device0/0.0.4"),
    filled=Event("iotlb filled", 90, "iommu0", "device0/0.0.4~"),
    pte="frame 0x1f RW A",
    changed=Event("entry changed", 118, "memory", "cpu0/5.12"),
    change="frame 0x1f RW A -> none",
    owed="Munmap cpu0/5 on cpu0",
    deadline=Event("frame freed", 125, "memory", "cpu0/5.17"),
    racing=(
        Event("frame freed", 125, "memory", "cpu0/5.17"),
        Event("frame written", 131, "memory", "device0/1.0.0"),
    ),
)  # fmt: skip
DELIVERIES = (
    (1, "cpu0/5", BROKER, "cpu0", "Munmap"),
    (2, "device0/1", BROKER, "device0", "Dma"),
    (118, "cpu0/5.12", "cpu0", "memory", "PteGetAndClear"),
    (125, "cpu0/5.17", "cpu0", "memory", "PagePut"),
    (131, "device0/1.0.0", "iommu0", "memory", "FrameWrite"),
)
CHAOS = {
    "schema": 1,
    "rule": [{"name": "late", "fault": "delay", "match": {}, "after": {"min": 1, "max": 2}}],
}


def an_outcome(*violations: Violation, **changes: Any) -> Outcome:
    """A run of the mixed workload that came out like this."""
    spec = mixed_run(preset("v6.2", "x86", {"gather_calls_ir": False}), 0x2A)
    statistics = {"invalidated": {"iotlb": 120, "spte": 3}, "frames_reused": 12, "retries": {}}
    how = How(1234, 56, met=("cached_when(cache=iotlb)",), statistics=statistics)
    verdict = Verdict("violated" if violations else "held", (), violations, how)
    outcome = Outcome(
        spec, "processes", "finished", "", verdict, Ending(1234, 56, True, ()),
        operations={"Touch": OperationCount(40, {14: 3}), "Munmap": OperationCount(16)},
        counts={"sent": 1230, "delivered": 1234, "duplicated": 4, "dropped": 0},
        rejected={}, chaos={}, notes={}, seconds=10.25, run_dir=Path("runs/one"),
    )  # fmt: skip
    return dataclasses.replace(outcome, **changes)


def printed(outcome: Outcome) -> str:
    """All that a person sees."""
    text = io.StringIO()
    terminal.print_outcome(Console(file=text, width=60), outcome)
    return text.getvalue()


# ---- the summary -------------------------------------------------------------------------------


def test_the_verdict_and_how_it_was_reached_come_first() -> None:
    first = printed(an_outcome()).splitlines()[0]
    assert first == (
        "HELD: 1 schedule on 7 real processes and a broker, 1,234 deliveries, 56 operations, "
        "10.2 s, seed 0x2a"
    )


def test_the_summary_of_a_run_that_held() -> None:
    assert terminal.summary(an_outcome()).splitlines() == [
        "  ran         mixed: workload mixed, kernel v6.2 x86 (gather_calls_ir=false), no chaos, "
        "seed 0x2a",
        "  nodes       7: memory cpu0 cpu1 iommu0 device0 kvm0 vcpu0",
        "  operations  56, 3 failed: Touch 40 (3 EFAULT), Munmap 16",
        "  messages    1,230 sent, 1,234 delivered, 4 duplicated",
        "  window      met cached_when(cache=iotlb)",
        "  secondaries operations that invalidated what was cached: iotlb 120, spte 3",
        "              cached frames freed and used again 12",
        "  run         runs/one",
        f"  repeat      {formats.command('replay', 'runs/one')}",
    ]


def test_violations_are_one_line_per_rule_agent_and_object() -> None:
    other = Violation("L3", "cpu0", "cpu0 waits for itself")
    outcome = an_outcome(VIOLATION, VIOLATION, other)
    lines = terminal.summary(outcome).splitlines()
    assert "  violations  S1 by iommu0 iotlb mm0:0x10000 x2" in lines
    assert "              L3 by cpu0 cpu0 waits for itself" in lines
    assert terminal.headline(outcome).startswith("VIOLATED: S1 by iommu0 (2), L3 by cpu0; 1 sched")


def test_many_violations_are_cut() -> None:
    many = [
        Violation("S1", "iommu0", "", "iotlb", "mm0", page << 12)
        for page in range(terminal.VIOLATION_LINES_MAX + 5)
    ]
    lines = terminal.summary(an_outcome(*many)).splitlines()
    assert "              and 5 more objects" in lines


def test_a_window_that_was_never_entered_is_the_reason() -> None:
    how = How(10, 1, missing=("covered(point=nested_gather)",))
    verdict = Verdict("inconclusive", ("never met: a", "never met: b"), (), how)
    outcome = an_outcome(verdict=verdict)
    assert terminal.headline(outcome).startswith("INCONCLUSIVE: never met: a and 1 more; ")
    assert "  window      NEVER MET covered(point=nested_gather)" in terminal.summary(outcome)


def test_a_run_that_broke_says_why() -> None:
    outcome = an_outcome(
        status="broken",
        detail="node cpu0 died: signal 9",
        ending=Ending(10, 1, False, (("cpu0/1.2", "PtlLock", "cpu0", "memory"),)),
    )
    assert terminal.headline(outcome).startswith("BROKE: node cpu0 died: signal 9; ")
    text = terminal.summary(outcome)
    assert "  ended       broken: node cpu0 died: signal 9" in text
    assert "  waiting     1 request unanswered: cpu0 for PtlLock at memory" in text


def test_chaos_and_lines_not_run_are_told_by_name() -> None:
    rule = {"name": "late", "fault": "delay", "matched": 50, "hits": 7, "gave_up": 0}
    hold = {"name": "never", "fault": "hold", "matched": 0, "hits": 0, "gave_up": 0}
    outcome = an_outcome(
        chaos={"rules": [rule, hold], "unmatched": ["never"], "given_up": []},
        notes={"not built yet: mbind": 3, "executed: brk": 12, "executed: mmap": 2},
        rejected={"oversized": 2},
    )
    text = terminal.summary(outcome)
    assert "  chaos       late: delay, hit 7 of 50\n" in text
    assert "              matched nothing: never\n" in text
    assert "  log         14 lines executed: brk 12, mmap 2\n" in text
    assert "              3 lines not built yet: mbind 3\n" in text
    assert "  rejected    2 frames: oversized\n" in text


def test_the_expectation_is_compared() -> None:
    wanted = Expectation(verdict="violated", rule="S1", agent="iommu0", cache="iotlb")
    spec = dataclasses.replace(an_outcome().spec, expectation=wanted)
    first = dataclasses.replace(an_outcome(), spec=spec)
    assert "violated: S1 by iommu0 (iotlb): NOT as expected" in terminal.summary(first)
    assert terminal.headline(first).startswith("HELD, NOT as expected: 1 schedule")
    both = an_outcome(Violation("O", "iommu0", ""), VIOLATION, spec=spec)
    assert "violated: S1 by iommu0 (iotlb): as expected" in terminal.summary(both)
    assert terminal.chosen_violation(both) is VIOLATION


def test_nothing_that_a_terminal_acts_on_is_printed() -> None:
    outcome = an_outcome(notes={"evil\x1b[2J[red]name": 1})
    text = printed(outcome)
    assert "\x1b" not in text
    assert "[red]name" in text


def test_the_command_is_never_broken() -> None:
    long = Path("/tmp") / ("x" * 200) / "with space"
    text = printed(an_outcome(run_dir=long))
    assert f"{formats.command('replay', long)}\n" in text


# ---- the report of a violation -----------------------------------------------------------------


def journalled(path: Path) -> Path:
    """A run's directory whose broker delivered what ``VIOLATION`` names."""
    journal = BrokerJournal(path)
    for n, id_, src, dst, kind in DELIVERIES:
        journal.deliver(n, Envelope(id_, src, dst, kind, "", "", Ack()))
    journal.close()
    return path


def test_the_report_has_the_shape_of_kcsan(tmp_path: Path) -> None:
    trail = trail_of(VIOLATION, journalled(tmp_path))
    assert violation_report(VIOLATION, trail, "python launch.py replay runs/one").splitlines() == [
        RULER,
        "BUG: mmu_notifier: S1: use-after-free in zap_pte_range / DMA store",
        "",
        "frame freed by cpu0, delivery 125 at memory, doing Munmap cpu0/5:",
        " put_page: PagePut cpu0/5.17",
        "",
        "frame written by iommu0, delivery 131 at memory, doing Dma device0/1:",
        " DMA store: FrameWrite device0/1.0.0",
        "",
        "cached by iommu0 (iotlb): mm0:0x10000 -> frame 0x1f",
        " filled in delivery 90 (device0/0.0.4~)",
        " from the read in delivery 88 (device0/0.0.4), which saw: frame 0x1f RW A",
        "",
        "owed by Munmap cpu0/5 on cpu0",
        " since the change in delivery 118 (cpu0/5.12)",
        " before: frame freed at memory, delivery 125 (cpu0/5.17)",
        "",
        "value changed: frame 0x1f RW A -> none",
        "",
        "frame 0x1f was written after it had been freed",
        "",
        "reproduce: python launch.py replay runs/one",
        RULER,
    ]


def test_a_report_without_a_journal_still_names_the_accesses(tmp_path: Path) -> None:
    report = violation_report(VIOLATION, trail_of(VIOLATION, tmp_path / "gone"))
    assert "frame freed, delivery 125 at memory, doing cpu0/5:\n cpu0/5.17\n" in report
    assert "reproduce" not in report


def test_a_deadlock_has_no_translation() -> None:
    waits = Event("PtlLock never answered", 99, "memory", "cpu0/3.1")
    violation = Violation("L3", "memory", "cpu0 waits for itself", racing=(waits,))
    report = violation_report(violation, Trail({}, {}, {"cpu0/3": "Mprotect"}))
    assert report.splitlines()[1] == "BUG: mmu_notifier: L3: deadlock in do_mprotect_pkey"
    assert "cached" not in report
    assert "owed" not in report


def test_a_run_with_violations_ends_with_the_command_that_repeats_it() -> None:
    lines = printed(an_outcome(VIOLATION)).splitlines()
    assert lines[-2:] == [f"reproduce: {formats.command('replay', 'runs/one')}", RULER]


def test_functions_are_of_messages_that_exist() -> None:
    named = {*kernel_functions.ACCESSES, *kernel_functions.DATA, *kernel_functions.ENTRY_CHANGES}
    assert named <= set(kinds())


def test_an_operation_says_which_functions_it_stands_for() -> None:
    built_in = [kind for kind in operation_kinds() if kind.__module__.startswith("mmurace.")]
    assert len(built_in) > 20
    assert [kind.__name__ for kind in built_in if not (kind.FUNCTION and kind.CHANGES)] == []


@pytest.mark.parametrize(
    ("kind", "operation", "function"),
    [
        ("PteGetAndClear", "Mprotect", "change_pte_range"),
        ("PteSet", "", "PteSet"),
        ("FrameRead", "GuestTouch", "guest load"),
        ("PagePut~", "Munmap", "put_page"),
        ("Munmap", "Munmap", "do_vmi_munmap"),
        ("", "Munmap", "do_vmi_munmap"),
        ("", "", ""),
    ],
)
def test_function_of(kind: str, operation: str, function: str) -> None:
    assert kernel_functions.function_of(kind, operation) == function


# ---- for other programs ------------------------------------------------------------------------


def test_json_is_one_object_with_everything() -> None:
    value = json.loads(machine.as_json(machine.outcome_dict(an_outcome(VIOLATION))))
    assert value["exit_code"] == 1
    assert value["verdict"]["outcome"] == "violated"
    assert "violations" not in value["verdict"]
    assert value["kernel"]["set"] == {"gather_calls_ir": False}
    assert value["operations"]["Touch"] == {"done": 40, "errors": {"14": 3}}
    assert value["violations"][0]["racing"][1]["n"] == 131
    assert value["repeat"] == formats.command("replay", "runs/one")


# ---- the catalogue -----------------------------------------------------------------------------


def test_the_list_has_every_race_with_every_kernel() -> None:
    races = load_all()
    text = io.StringIO()
    Console(file=text, width=120).print(catalogue.table_of(races.values()))
    for race in races.values():
        assert race.id in text.getvalue()
        assert all(case.name in text.getvalue() for case in race.kernels)
    assert "violated: S1 by iommu0 (iotlb)" in text.getvalue()


@pytest.mark.parametrize("width", [200, 80, 40])
def test_the_list_is_whole_on_any_terminal(width: int) -> None:
    races = list(load_all().values())
    file = io.StringIO()
    Console(file=file, width=width).print(catalogue.listing_of(races, width))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    starts = {line.split(" ")[0] for line in lines}
    assert {race.id for race in races} <= starts
    kernels = sum(len(race.kernels) for race in races)
    assert len(lines) < 3 * (kernels + len(races))
    if width > 40:
        said = " ".join(lines)
        assert all(f" {case.name} " in said for race in races for case in race.kernels)


def test_a_race_is_shown_with_all_that_it_is() -> None:
    race = find("E08")
    page = catalogue.page_of(race)
    heads = ("Kernels:", "The window was entered if:", "Programs:", "Recipe", "Sources:", "Run it:")
    assert all(head in page for head in heads)
    assert race.story.splitlines()[0] in page
    assert formats.command("repro", "E08", "--kernel", "v6.6") in page


def test_a_race_is_json() -> None:
    values = [catalogue.race_dict(race) for race in load_all().values()]
    assert [value["id"] for value in json.loads(json.dumps(values))] == list(load_all())


# ---- small parts -------------------------------------------------------------------------------


def test_a_kernel_of_no_known_release_is_told_in_full() -> None:
    kernel = preset("v6.6.5")
    assert kernel_text(kernel) == "v6.6.5 x86"
    own = structs.replace(kernel, release="me")
    assert kernel_text(own).startswith("me x86 (")
    assert "end_calls_ir=false" in kernel_text(own)


def test_words() -> None:
    assert formats.many(1, "delivery", "deliveries") == "1 delivery"
    assert formats.many(1200, "delivery", "deliveries") == "1,200 deliveries"
    assert formats.seconds(0.5) == "0.50 s"
    assert formats.seconds(192.4) == "3 min 12 s"
    assert formats.errno_name(14) == "EFAULT"
    assert formats.errno_name(99999) == "errno 99999"


def test_progress_is_a_plain_line_every_few_seconds() -> None:
    text = io.StringIO()
    with Progress(Console(file=text, width=100)) as progress:
        for now in (1.0, 5.5, 6.0, 11.0):
            progress({"seconds": now, "deliveries": 1000, "operations": 1, "violations": 0})
    assert text.getvalue().splitlines() == [
        "5.50 s: 1,000 deliveries, 1 operation, 0 violations",
        "11.0 s: 1,000 deliveries, 1 operation, 0 violations",
    ]
    assert progress_line({"seconds": 2}) == "2.00 s: "


def test_two_runs_at_once_get_two_directories(tmp_path: Path) -> None:
    runs = [directory.new_run("E08-v6.2 x/y", None, tmp_path) for _ in range(5)]
    assert len(set(runs)) == 5
    assert all("E08-v6.2-x-y" in run.name for run in runs)
    directory.point_latest(runs[0])
    directory.point_latest(runs[-1])
    latest = tmp_path / "latest"
    assert latest.is_symlink()
    assert latest.resolve() == runs[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*(r.name for r in runs), "latest"])


def test_something_else_in_the_place_of_latest_is_kept(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    with pytest.raises(UserError, match="latest: cannot be replaced"):
        directory.point_latest(directory.new_run("x", None, tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_directory_that_holds_something_is_not_used(tmp_path: Path) -> None:
    assert directory.new_run("x", tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not empty"):
        directory.new_run("x", tmp_path)
    with pytest.raises(UserError, match="cannot be made"):
        directory.new_run("x", tmp_path / "file")


def test_a_saved_run_is_found_by_itself_or_its_files(tmp_path: Path) -> None:
    (tmp_path / "run.toml").touch()
    (tmp_path / "schedule").touch()
    (tmp_path / "other").touch()
    assert directory.saved_run(tmp_path) == tmp_path
    assert directory.saved_run(tmp_path / "schedule") == tmp_path
    with pytest.raises(UserError, match="is no run"):
        directory.saved_run(tmp_path / "other")
    with pytest.raises(UserError, match="is no run"):
        directory.saved_run(tmp_path / "gone")


def test_chaos_rules_are_counted() -> None:
    spec = dataclasses.replace(an_outcome().spec, chaos=parse_rules(CHAOS, "here"))
    assert "1 chaos rule, seed" in terminal.summary(dataclasses.replace(an_outcome(), spec=spec))
