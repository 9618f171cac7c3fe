"""What the command line says and holds: statuses, widths, names, expectations, versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmurace import launch
from mmurace.explorer.run import session
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.kernel.variant.preset import NEAR
from mmurace.oracle.sometimes import CachedWhen, describe
from mmurace.oracle.violation import Violation
from mmurace.protocol.errors import UserError
from mmurace.report import directory, terminal
from mmurace.report.screen import WIDTH, console
from mmurace.scenarios import versions
from mmurace.scenarios.catalogue import find
from mmurace.scenarios.spec import Expectation, RunSpec
from tests.runs import change_by_hand

ROOT = Path(__file__).parent.parent
RACE = ("repro", "E08", "--kernel", "v6.2-end-only", "--on", "simulator", "--seed", "0x1f")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs are put under a temporary directory; the terminal of whoever tests has no say."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_reader_that_has_seen_enough_does_not_change_what_was_found(
    elsewhere: Path, form: tuple[str, ...]
) -> None:
    words = [sys.executable, str(ROOT / "launch.py"), *RACE, *form]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.close()  # nobody reads what comes
    assert process.wait(60) == 1


def test_help_is_not_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["repro", "--help"]) == 0
    assert "Exit status: " in capsys.readouterr().out


def test_columns_count_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        assert console(nowhere).width == WIDTH
        monkeypatch.setenv("COLUMNS", "70")
        assert console(nowhere).width == 70


def test_what_is_told_keeps_to_the_columns(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    assert launch.main([*RACE, "--out", "one"]) == 1
    assert launch.main(["explain", "one"]) == 1
    told = capsys.readouterr().out.splitlines()
    summary = told[1 : told.index("")]
    wrapped = [line for line in summary if not line.startswith("  run ") and ".py" not in line]
    assert max(map(len, wrapped)) <= 72
    table = next(at for at, line in enumerate(told) if line.lstrip().startswith("---"))
    assert max(map(len, told[table:])) <= 72


def test_a_run_is_cut_down_before_it_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main([*RACE, "--out", "one"]) == 1
    capsys.readouterr()
    assert launch.main(["explain", "one"]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("cutting one down first")
    assert Path("one/min.schedule.toml").is_file()
    assert launch.main(["explain", "one"]) == 1
    again, said = capsys.readouterr()
    assert again == out
    assert said == "explaining one/min.schedule.toml, the minimal schedule of that run\n"


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("20261130-120000-E01-v5.7", "replay-E01-v5.7"),
        ("20261130-120001-replay-E01-v5.7", "replay-E01-v5.7"),
        ("20261130-120002-replay-20261130-120001-replay-E01-v5.7-2", "replay-E01-v5.7-2"),
        ("replay-one", "replay-one"),
        ("one", "replay-one"),
        ("min.schedule.toml", "replay-min"),
    ],
)
def test_a_replay_of_a_replay_is_a_replay(elsewhere: Path, name: str, again: str) -> None:
    assert directory.replay_name(elsewhere / name) == again


def test_addresses_are_hexadecimal() -> None:
    condition = CachedWhen(cache="iotlb", op="Munmap", address=0x10000)
    assert describe(condition) == "cached_when(cache=iotlb, op=Munmap, address=0x10000)"
    assert describe(CachedWhen(cache="iotlb", op="Munmap")) == "cached_when(cache=iotlb, op=Munmap)"


def test_whoever_mistypes_a_switch_is_told_those_that_are_near() -> None:
    with pytest.raises(UserError) as raised:
        preset("v6.6", "x86", {"gather_call_ir": True})
    near = raised.value.expected.removeprefix("perhaps ").split(", ")
    assert near[0] == "gather_calls_ir"
    assert len(near) == NEAR


# ---- expectations ------------------------------------------------------------------------------

WANTED = Expectation(verdict="violated", rule="S1", agent="iommu0")
OVERDUE, HARM = Violation("O", "iommu0", ""), Violation("S1", "iommu0", "")


def test_what_was_asked_for_comes_first_and_what_came_before_it_is_explained() -> None:
    assert terminal.rules_text((OVERDUE, HARM), WANTED) == "S1 by iommu0, O by iommu0"
    assert terminal.rules_text((OVERDUE, HARM), None) == "O by iommu0, S1 by iommu0"
    assert "O was broken first" in terminal.earlier_text(WANTED, (OVERDUE, HARM))
    assert terminal.earlier_text(WANTED, (HARM, OVERDUE)) == ""
    assert terminal.earlier_text(WANTED, ()) == ""


@pytest.mark.parametrize(
    ("kernel", "more", "said"),
    [
        ("v6.6", (), "  expected    held: as expected"),
        ("v6.2-end-only", ("--keep-going",), "(iotlb): as expected; O was broken first"),
        ("v6.2-end-only", (), "(iotlb): not seen; O was broken first"),
    ],
)
def test_a_search_says_whether_it_came_out_as_expected(
    capsys: pytest.CaptureFixture[str], kernel: str, more: tuple[str, ...], said: str
) -> None:
    words = ("explore", "E08", "--kernel", kernel, "--schedules", "20", "--seed", "1")
    launch.main([*words, "--no-explain", *more])
    assert said in capsys.readouterr().out


# ---- versions ----------------------------------------------------------------------------------


def saved(path: Path) -> Path:
    """A run of the catalogue in a new directory."""
    path.mkdir()
    session.simulate(find("E08").run("v6.6", 1).save(path), path)
    return path


def test_a_run_says_by_which_code_it_was_made(elsewhere: Path) -> None:
    spec = RunSpec.load(saved(elsewhere / "one"))
    assert spec.versions == versions.current()
    assert versions.difference(spec.versions) == ""


def test_a_replay_by_other_code_says_so(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = saved(elsewhere / "one")
    file = run / "run.toml"
    change_by_hand(file, versions.current()["code"], "0123456789ab")
    monkeypatch.setattr(session, "compare_runs", lambda *_: ("cpu0", 7, "records"))
    (elsewhere / "two").mkdir()
    outcome = session.replay(run, "simulator", elsewhere / "two")
    assert outcome.status == "diverged"
    assert (
        "differs from the record; it was recorded by other code (0123456789ab, " in outcome.detail
    )


def test_a_replay_by_the_same_code_blames_no_version(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "compare_runs", lambda *_: ("cpu0", 7, "records"))
    (elsewhere / "two").mkdir()
    outcome = session.replay(saved(elsewhere / "one"), "simulator", elsewhere / "two")
    assert outcome.detail.endswith("differs from the record")
