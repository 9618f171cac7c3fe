"""Hunts: programs that are legal and can be written down, the same findings however it was run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import msgspec
import pytest

from mmurace import launch
from mmurace.broker.programs import Program, Step
from mmurace.campaign.hunt import trial
from mmurace.campaign.hunt.directory import DONE, FINDINGS, Directory
from mmurace.campaign.hunt.draft import Draft, Party, in_order
from mmurace.campaign.hunt.finding import Finding
from mmurace.campaign.hunt.groups import group_of, kinds_on_cpus
from mmurace.campaign.hunt.hunt import Hunt, Options
from mmurace.campaign.hunt.mutate import mutated
from mmurace.campaign.hunt.programs import Drawer, is_legal
from mmurace.campaign.hunt.race_file import race_text
from mmurace.campaign.hunt.rows import names_of_secondaries
from mmurace.campaign.hunt.scene import START
from mmurace.campaign.hunt.steer import Steering, items
from mmurace.campaign.hunt.trial import spec_of
from mmurace.explorer.shrink.case import Case
from mmurace.nodes.kernel.variant import Kernel, preset
from mmurace.nodes.secondaries.ocxl.messages import OcxlAttach, OcxlDetach
from mmurace.nodes.secondary import secondaries
from mmurace.nodes.world import World
from mmurace.oracle.violation import Violation
from mmurace.protocol.errors import EmulatorError
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as ops
from mmurace.report.commands.hunt import explain_beside
from mmurace.report.hunting import summary
from mmurace.scenarios.catalogue import load_race
from tests.plugin_commands import NIC, run

KERNELS = [("v6.6.5", "x86"), ("v4.19", "arm64"), ("v6.6", "ppc")]
"""The second is older than the driver of a secondary that arm64 has."""
BAD = preset("v6.6.5", overrides={"kvm_retry": "none", "kvm_retry_hva": False})
"""A shadow MMU that installs whatever its fault has looked up."""
GOOD = preset("v6.6.5")
MANY = Options(seed=3, programs=150, schedules=14)


@cache
def few() -> Options:
    """As many programs as it takes until the bad kernel's fault is found, and one more."""
    found = next(f for f in Hunt(BAD, MANY) if f.rule == "S4")
    return replace(MANY, programs=found.program + 2)


@pytest.fixture(scope="module")
def hunted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Directory, list[Finding]]:
    """A hunt of the bad kernel, and its directory."""
    directory = Directory(tmp_path_factory.mktemp("hunt"))
    directory.begin(BAD, few())
    return directory, list(Hunt(BAD, few(), directory))


def drafts(kernel: Kernel, count: int) -> Iterator[Draft]:
    """What a hunt draws, and what it makes of that by small changes."""
    steering = Steering(kernel, 5)
    for index in range(count):
        sketch = steering.draw(index)
        changed = mutated(Drawer(kernel, index), sketch).draft
        yield from (draft for draft in (sketch.draft, changed) if is_legal(draft))


# ---- programs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("release", "machine"), KERNELS)
def test_what_is_drawn_is_a_races_file(release: str, machine: str, tmp_path: Path) -> None:
    """Written down and read back it is the same world with the same programs."""
    kernel = preset(release, machine)
    nothing = Violation("O", "cpu0", "nothing is")
    for index, draft in enumerate(drafts(kernel, 40)):
        path = tmp_path / "race.toml"
        path.write_text(race_text(Case(spec_of(index, 1, draft)), nothing, ()))
        race = load_race(path)
        assert race.programs == draft.programs()
        assert race.run().world == draft.world


@pytest.mark.parametrize(("release", "machine"), KERNELS)
def test_everything_there_is_is_drawn(release: str, machine: str) -> None:
    """Every operation of the machine, but those that no program can be asked for."""
    drawer = Drawer(preset(release, machine), 1)
    made = (drawer.sketch().draft for _ in range(900))
    drawn = {type(operation).__name__ for draft in made for operation in draft.operations()}
    there_are = names_of_secondaries(preset(release, machine))
    absent = [one for one in secondaries() if one.name not in there_are]
    theirs = {kind for one in absent for kind in (*one.calls, *one.accesses)}
    there = {kind.__name__ for kind in ops.operation_kinds() if kind not in theirs}
    only_x86 = {"GuestApic"} if machine != "x86" else set()
    known = {"GpuMigrate"}  # the usual driver's own mistake (E23c); others are asked for it
    known |= {"KvmCreateVm"}  # a guest that is drawn is there from the start
    assert there - drawn <= {"DeviceRemove"} | only_x86 | known


def test_nearly_all_that_is_drawn_is_legal() -> None:
    drawer = Drawer(GOOD, 1)
    assert sum(is_legal(drawer.sketch().draft) for _ in range(200)) > 180


def test_a_process_ends_after_all_its_threads_and_a_child_begins_after_its_birth() -> None:
    touch = ops.Touch("mm0", START, True, 1)
    child = ops.Touch("mm1", START, False)
    draft = Draft(
        World(kernel=GOOD, mms=("mm0", "mm1")),
        (ops.Mmap("mm0", START, PAGE_SIZE, True, True),),
        (
            Party("cpu0", "cpu0", (), (ops.Fork("mm0", "mm1"), ops.Exit("mm0"))),
            Party("cpu1", "cpu1", (touch,), (touch, child)),
        ),
    )
    cpu0, cpu1 = draft.programs()
    assert [step.after for step in cpu0.steps] == [(), ("cpu1/0",), ("cpu1/1",)]
    assert [step.after for step in cpu1.steps] == [("cpu0/0",), (), ("cpu0/1",)]


@pytest.mark.parametrize(("release", "machine"), KERNELS)
def test_what_is_drawn_keeps_the_order_of_lives(release: str, machine: str) -> None:
    for draft in drafts(preset(release, machine), 40):
        assert in_order(draft.programs(), draft.world)


def test_a_process_that_ends_before_its_threads_is_not_in_order() -> None:
    mapped = Step(ops.Mmap("mm0", START, PAGE_SIZE, True, True))
    touch = Step(ops.Touch("mm0", START, False))
    end, ordered = Step(ops.Exit("mm0")), Step(ops.Exit("mm0"), ("b/0",))
    for last, legal in ((end, False), (ordered, True)):
        programs = (Program("a", "cpu0", (mapped, last)), Program("b", "cpu1", (touch,)))
        assert in_order(programs, World(kernel=GOOD)) == legal


def test_a_file_is_closed_once_it_is_open() -> None:
    opened, closed = OcxlAttach("mm0", "link0"), OcxlDetach("mm0", "link0")
    other = OcxlDetach("mm1", "link0")
    for end, after, legal in ((closed, (), False), (closed, ("a/0",), True), (other, (), True)):
        programs = (
            Program("a", "cpu0", (Step(opened),)), Program("b", "cpu1", (Step(end, after),)),
        )  # fmt: skip
        assert in_order(programs, World(kernel=preset("v6.6", "ppc"))) == legal


def test_every_pair_has_its_turn_beside_every_secondary() -> None:
    steering = Steering(GOOD, 1)
    drawer = Drawer(GOOD, 1)
    for _ in range(2 * len(steering.turns)):
        steering._turn(drawer)
    assert all(steering.had[turn] for turn in steering.turns)
    groups = {group_of(kind) for kind in kinds_on_cpus()}
    assert {group for pair, _ in steering.turns for group in pair} <= groups


def test_what_was_never_seen_is_rarer() -> None:
    steering = Steering(GOOD, 1)
    draft = steering.draw(0).draft
    before = Steering(GOOD, 1).rarity(draft)
    assert set(items(draft)) == set(steering.items)
    assert steering.rarity(draft) < before


# ---- hunts ---------------------------------------------------------------------------------------


def test_a_bad_kernel_is_found_by_rule_and_functions(
    hunted: tuple[Directory, list[Finding]],
) -> None:
    _, found = hunted
    assert any(f.rule == "S4" and "kvm_mmu_page_fault" in f.functions for f in found)
    assert len({finding.key for finding in found}) == len(found)
    assert max(finding.operations for finding in found) <= 8


def test_a_good_kernel_is_not_blamed() -> None:
    hunt = Hunt(GOOD, replace(MANY, programs=25))
    assert list(hunt) == []
    assert (hunt.exit_code, hunt.tally.programs) == (0, 25)
    assert hunt.tally.windows


def test_where_nothing_raced_nothing_is_said() -> None:
    assert Hunt(GOOD, replace(few(), programs=0)).exit_code == 3


def test_what_breaks_the_emulator_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise EmulatorError("nobody has this")

    monkeypatch.setattr(trial, "run_schedule", broken)
    hunt = Hunt(GOOD, replace(MANY, programs=2))
    assert list(hunt) == []
    assert (hunt.exit_code, hunt.tally.broken) == (4, 2)
    assert summary(hunt).endswith("first program 0: EmulatorError: nobody has this")


def test_what_the_other_kernel_shows_too_is_no_news() -> None:
    """Everything that the bad kernel shows beside itself under another name."""
    other = msgspec.structs.replace(BAD, release="v6.6.6")
    hunt = Hunt(BAD, replace(few(), against=other))
    assert list(hunt) == []
    assert hunt.tally.programs == few().programs
    found = list(Hunt(BAD, replace(few(), against=GOOD)))
    assert any(finding.rule == "S4" for finding in found)


def test_more_processes_find_the_same(hunted: tuple[Directory, list[Finding]]) -> None:
    assert list(Hunt(BAD, replace(few(), jobs=2))) == hunted[1]


@pytest.mark.parametrize("torn", [0, 40])
def test_killed_at_any_moment_it_goes_on(
    torn: int, hunted: tuple[Directory, list[Finding]], tmp_path: Path
) -> None:
    """Half of the lines are there, the last one perhaps not whole; a finding came before it."""
    whole, found = hunted
    directory = Directory(tmp_path)
    directory.begin(BAD, few())
    lines = (whole.path / DONE).read_bytes().splitlines(keepends=True)
    kept = len(lines) // 2
    (tmp_path / DONE).write_bytes(b"".join(lines[:kept]) + lines[kept][:torn])
    kernel, options = directory.asked(replace(few(), seed=99, schedules=1))
    assert (kernel, options) == (BAD, few())
    assert list(Hunt(kernel, options, directory)) == found
    assert (tmp_path / DONE).read_bytes() == b"".join(lines)


# ---- what it leaves ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (("show",), 0, "S4"),
        (("explore", "--schedules", "300", "--no-explain"), 1, "VIOLATED"),
        (("replay",), 1, "S4 by kvm0"),
        (("minimize", "--search", "0"), 1, "MINIMIZED: S4"),
        (("explain",), 1, "S4 stale-shadow"),
    ],
    ids=lambda given: given[0] if isinstance(given, tuple) else "",
)
def test_every_command_takes_what_was_found(
    command: tuple[str, ...], status: int, said: str, hunted: tuple[Directory, list[Finding]],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    directory, found = hunted
    race = directory.race_of(next(f for f in found if f.rule == "S4"))
    monkeypatch.chdir(tmp_path)
    assert launch.main([command[0], str(race), *command[1:]]) == status
    assert said in capsys.readouterr().out


def test_it_is_explained_in_a_page_beside_it(hunted: tuple[Directory, list[Finding]]) -> None:
    directory, found = hunted
    race = directory.race_of(next(f for f in found if f.rule == "S4"))
    explain_beside(race)
    page = race.with_suffix(".md").read_text()
    assert page.startswith("S4 stale-shadow on v6.6.5 x86")
    race.with_suffix(".md").write_text("read already")
    explain_beside(race)
    assert race.with_suffix(".md").read_text() == "read already"


@pytest.mark.processes
def test_it_runs_on_processes(
    hunted: tuple[Directory, list[Finding]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, found = hunted
    monkeypatch.chdir(tmp_path)
    race = directory.race_of(next(f for f in found if f.rule == "S4"))
    assert launch.main(["repro", str(race)]) in (0, 1, 3)


def test_the_command_tells_a_line_a_finding_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["hunt", "--kernel", "v6.6.5", "--seed", "3"]
    words += ["--set", "kvm_retry=none", "--set", "kvm_retry_hva=n"]
    out = str(tmp_path / "hunt")
    bounds = ["--programs", "2", "--schedules", "14", "--no-explain"]
    assert launch.main([*words, *bounds, "--out", out, "--json"]) in (0, 1, 3)
    first = json.loads(capsys.readouterr().out)
    assert first["programs"] == 2
    more = ["--programs", str(few().programs), "--no-explain"]
    assert launch.main(["hunt", "--resume", out, *more]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("VIOLATED: ")
    assert all("explain" in line for line in lines[:-1])
    files = [path.name for path in (Path(out) / FINDINGS).iterdir()]
    assert len(files) == 2 * (len(lines) - 1)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--against", "v6.6.5", "--kernel", "v6.6.5"), "--against"),
        (("--against", "v9.9"), "--against"),
        (("--resume", ".", "--seed", "1"), "--resume"),
        (("--resume", "."), "is no hunt"),
        (("--patch", "nothing"), "--patch"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    words: tuple[str, ...], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert launch.main(["hunt", *words]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "problem"), [(b"nonsense\n", "is damaged"), (b"[1]\n", "Expected `object`")]
)
def test_a_damaged_hunt_is_told_by_line(line: bytes, problem: str, tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    directory.begin(GOOD, few())
    (tmp_path / DONE).write_bytes(line)
    with pytest.raises(Exception, match=problem) as told:
        list(directory.before())
    assert f"{DONE}:1" in str(told.value)


def test_a_plug_ins_device_is_hunted_too(tmp_path: Path) -> None:
    """A driver without a retry check, in a file of its own: nobody here knows its name."""
    words = ("hunt", "--seed", "2", "--programs", "40", "--schedules", "14", "--json",
             "--no-explain", "--set", "nic_fault=installs")  # fmt: skip
    found = json.loads(run(tmp_path, *words, plugin=NIC).out)["findings"]
    assert any(finding["cache"] == "mtt" for finding in found)
