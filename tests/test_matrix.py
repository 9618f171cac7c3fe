"""The matrix: every race on every kernel beside what is expected, stock beside patched."""

from __future__ import annotations

import json
import pickle
import re
import sys
from pathlib import Path

import pytest

from mmurace.explorer.sample import matrix
from mmurace.protocol.errors import (
    EmulatorError,
    PeerError,
    PeerLost,
    PluginError,
    ReplayDivergence,
    TimedOut,
    UserError,
)
from mmurace.report.matrix import matrix_dict, summary
from tests.minimal import ROOT
from tests.plugin_commands import DATA, run

sys.path.insert(0, str(ROOT / "docs"))
import matrix as pages

PATCH = DATA / "shorter_bracket.py"
PATCHED = ("--patch", "shorter-bracket")


def test_every_kernel_of_a_race_is_as_its_file_says() -> None:
    rows = list(matrix.rows(matrix.tasks(["E12p"], "", 10, 1), jobs=1))
    assert [row.kernel for row in rows] == [
        "no-check", "count-only", "seq-only", "v5.8", "v6.2", "v6.6-arm64", "v7.2-arm64"
    ]  # fmt: skip
    assert all(row.agrees and row.patched is None for row in rows)
    assert [row.stock.verdict for row in rows] == ["violated"] * 3 + ["held"] * 4
    assert rows[0].expected == "violated: S4 by kvm0"
    assert summary(rows, "") == "7 pairs of race and kernel: 7 as expected, 0 not"


def test_more_processes_find_the_same() -> None:
    todo = matrix.tasks(["E12p", "E07"], "", 4, 1)
    assert list(matrix.rows(todo, jobs=2)) == list(matrix.rows(todo, jobs=1))


def test_what_is_not_as_expected_differs(tmp_path: Path) -> None:
    """A kernel of which the wrong is expected, both ways."""
    text = (DATA.parent / "race.toml").read_text()
    path = tmp_path / "race.toml"
    path.write_text(text.replace('verdict = "violated"', 'verdict = "held"'))
    rows = list(matrix.rows(matrix.tasks([str(path)], "", 20, 1), jobs=1))
    assert not all(row.agrees for row in rows)
    assert matrix_dict(rows, "")["agree"] is False


def test_without_races_it_is_the_whole_catalogue() -> None:
    assert {task.race for task in matrix.tasks([], "", 1, 1)} >= {"E01", "E12p", "E34c"}


@pytest.mark.parametrize(("races", "patch"), [(["E99"], ""), ([], "nothing")])
def test_what_is_not_there_is_refused(races: list[str], patch: str) -> None:
    with pytest.raises(UserError):
        matrix.tasks(races, patch, 1, 1)


def test_a_patch_shows_what_it_changes_and_nothing_else(tmp_path: Path) -> None:
    words = ("matrix", "--race", "E12p", "--race", "E12", *PATCHED, "--seed", "1")
    told = run(tmp_path, *words, "--schedules", "5", "--json", plugin=PATCH)
    found = json.loads(told.out)
    assert (told.status, found["agree"]) == (1, False)
    for row in found["rows"]:
        assert row["reached"] == (row["race"] == "E12p")
        assert row["agrees"] == (row["race"] == "E12")
        assert row["turned"] == (row["race"] == "E12p" and row["expected"] == "held")
    turned = [set(row["patched"]["breaches"]) for row in found["rows"] if row["turned"]]
    assert all("S10 by kvm0" in breaches for breaches in turned)
    assert any("S4 by kvm0" in breaches for breaches in turned)


def test_a_loaded_patch_changes_no_stock_kernel(tmp_path: Path) -> None:
    words = ("matrix", "--race", "E12p", "--schedules", "5", "--seed", "1", "--json")
    stock, loaded = run(tmp_path, *words), run(tmp_path, *words, plugin=PATCH)
    assert (stock.status, loaded.status) == (0, 0)
    assert json.loads(stock.out)["rows"] == json.loads(loaded.out)["rows"]


def test_jobs_have_the_plugin_too(tmp_path: Path) -> None:
    words = ("matrix", "--race", "E12p", *PATCHED, "--schedules", "2", "--seed", "1", "--json")
    one, two = (run(tmp_path, *words, "--jobs", jobs, plugin=PATCH) for jobs in "12")
    assert json.loads(one.out) == json.loads(two.out)


@pytest.mark.parametrize("command", [("explore", "E12p"), ("repro", "E12p"), ("matrix",)])
def test_an_unknown_patch_is_refused(command: tuple[str, ...], tmp_path: Path) -> None:
    told = run(tmp_path, *command, "--patch", "shorter", plugin=PATCH)
    assert (told.status, told.out) == (2, "")
    assert "no patch 'shorter' (expected shorter-bracket)" in told.err


@pytest.mark.parametrize(
    "on", ["simulator", pytest.param("processes", marks=pytest.mark.processes)]
)
def test_a_patched_kernel_runs_and_replays(on: str, tmp_path: Path) -> None:
    words = ("repro", "E12p", "--kernel", "v6.2", "--on", on, "--seed", "1")
    assert run(tmp_path, *words, "--out", "stock", plugin=PATCH).status == 0
    told = run(tmp_path, *words, *PATCHED, "--out", "patched", plugin=PATCH)
    assert told.status == 1
    assert "v6.2 x86 with shorter-bracket" in told.out
    assert run(tmp_path, "replay", "patched", plugin=PATCH).status == 1
    assert run(tmp_path, "replay", "patched").status == 2


ERRORS = (
    UserError("a.toml: x", "is 1", "2"), PeerLost("kvm0"), TimedOut("a hello", 2.0),
    ReplayDivergence("cpu0", 7, "kind", "differs"), PluginError("plug-in x.py: no"),
    EmulatorError("a fault"), PeerError("malformed"),
)  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_comes_whole_out_of_a_job(error: Exception) -> None:
    """One that does not would leave whoever waits for the job waiting."""
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_a_race_that_goes_away_while_jobs_run_ends_them(tmp_path: Path) -> None:
    task = matrix.Task(str(tmp_path / "gone.toml"), "v6.2", "", 1, 1)
    with pytest.raises(UserError, match=r"gone\.toml"):
        list(matrix.rows([task], jobs=2))


def test_a_plugin_that_breaks_in_a_job_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    old = "await api.mmu_notifier.invalidate_range_end(cpu, range_)"
    path.write_text(PATCH.read_text().replace(old, "raise KeyError(1)"))
    for jobs in "12":
        words = ("matrix", "--race", "E12p", *PATCHED, "--schedules", "2", "--jobs", jobs)
        told = run(tmp_path, *words, plugin=path)
        assert (told.status, told.out) == (4, "")
        assert "plug-in broken.py:15 (change_pte_range): KeyError: 1" in told.err


def test_the_page_has_the_pairs_of_the_catalogue_and_all_are_as_expected() -> None:
    """``python docs/matrix.py`` runs them."""
    assert list(pages.problems(pages.PAGE.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("pattern", "instead", "told"),
    [
        (r"^.*\[E12p\].* v6\.2 .*\n", "", "E12p v6.2: is missing"),
        (r"(\[E12p\].* v6\.2 .* held \| )held", r"\1inconclusive", "E12p v6.2: is inconclusive"),
        (r"S4 by kvm0 \| violated", "S3 by kvm0 | violated", "in the catalogue"),
        (r"\Z", "| [E99](races/e99.md) | v6.2 | v6.2 x86 | held | held |\n", "in the catalogue"),
    ],
)
def test_a_page_that_says_something_else_is_old(pattern: str, instead: str, told: str) -> None:
    page = pages.PAGE.read_text(encoding="utf-8")
    changed = re.sub(pattern, instead, page, count=1, flags=re.MULTILINE)
    assert changed != page
    assert told in "\n".join(pages.problems(changed))
