"""What a newcomer is shown, what a violation leads on to, and verdicts for scripts."""

from __future__ import annotations

import json
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mmurace import __version__, launch
from mmurace.explorer.run import outcome as codes
from mmurace.oracle.violation import Violation
from mmurace.report import arguments, verdicts
from mmurace.report.next_steps import next_steps

ROOT = Path(__file__).parent.parent
BROKEN = ("repro", "E08", "--kernel", "v6.2-end-only", "--on", "simulator", "--seed", "1")
GOOD = ("repro", "E08", "--kernel", "v6.6", "--on", "simulator", "--seed", "1")
TOUR_SECONDS_MAX = 5.0


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs are put under a temporary directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


def words_after_program(line: str) -> list[str]:
    """What a printed command gives to the program."""
    words = shlex.split(line, comments=True)
    return words[next(at for at, word in enumerate(words) if word.endswith("launch.py")) + 1 :]


def test_without_arguments_a_race_is_shown_and_its_cure(elsewhere: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py")], capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # others may have the machine, too
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < TOUR_SECONDS_MAX
    assert done.returncode == 0, done.stderr
    assert "On v5.7, found after " in done.stdout
    assert "The swap that decides" in done.stdout
    assert "On v5.8, nothing is broken: the window was entered in " in done.stdout
    offered = done.stdout.partition("What next:\n")[2].splitlines()
    assert {words_after_program(line)[0] for line in offered} >= {"repro", "list", "explore"}


def test_the_tour_as_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["tour", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["v5.7"]["exit_code"], told["v5.8"]["exit_code"]) == (1, 0)
    assert told["v5.7"]["explanation"]["swap"]


def test_commands_that_a_violation_leads_to_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main([*BROKEN, "--out", "one"]) == 1
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "  # " in line]
    given = [words_after_program(line) for line in lines]
    assert [words[0] for words in given][:2] == ["show", "show"]
    assert ["explain", "one"] in given
    for words in given:
        assert arguments.parse(words)["command"] == words[0]
    assert launch.main([*GOOD, "--out", "two"]) == 0
    assert "  # " not in capsys.readouterr().out


def test_a_run_that_is_no_race_of_the_catalogue_leads_to_its_rule_alone() -> None:
    broken = Violation("S1", "cpu1", "")
    assert [line.partition("launch.py ")[2] for line in next_steps(broken, "mixed", None)] == [
        "show S1  # the rule that was broken"
    ]


@pytest.mark.parametrize(
    ("status", "expected", "exit_code"),
    [
        (codes.HELD, "held", 0), (codes.VIOLATED, "violated", 0), (codes.VIOLATED, "held", 1),
        (codes.HELD, "violated", 1), (codes.INCONCLUSIVE, "held", 1), (codes.HELD, "", 0),
        (codes.INCONCLUSIVE, "inconclusive", 0), (codes.NO_PROGRESS, "no-progress", 0),
        (codes.BROKEN, "violated", 4), (codes.USAGE, "held", 2), (codes.INTERRUPTED, "held", 130),
    ],
)  # fmt: skip
def test_a_verdict_that_was_expected_is_status_0(
    status: int, expected: str, exit_code: int
) -> None:
    assert verdicts.status_of(status, expected)[0] == exit_code


def test_a_script_says_what_it_expects(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main([*BROKEN, "--expect", "violated"]) == 0
    assert launch.main(["--expect=held", *GOOD]) == 0
    capsys.readouterr()
    assert launch.main([*GOOD, "--expect", "violated", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["exit_code"] == 0  # of the run itself
    assert err.endswith("launch.py: expected violated, came out held\n")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--expect", "held", "list"), "--expect: list comes to no verdict (expected one of "),
        ((*GOOD, "--expect", "good"), "--expect: is 'good' (expected held, violated, "),
        ((*GOOD, "--expect"), "--expect: names nothing (expected held, violated, "),
        (("show", "no such race"), "scenario: unknown scenario 'no such race' (expected one of E"),
        (("show", "E0"), "scenario: more than one scenario 'E0' (expected perhaps E01, "),
    ],
)
def test_what_cannot_be_meant(
    words: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(list(words)) == 2
    assert capsys.readouterr().err.startswith(f"launch.py: {problem}")


def test_the_version_and_the_code_that_decides(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"mmurace {__version__} (code ")
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
