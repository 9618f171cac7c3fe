"""Races as tests of somebody's own repository."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from mmurace import pytest_plugin
from mmurace.report import racing
from mmurace.scenarios.catalogue import find
from mmurace.testing import RaceFailed, Racer

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parents[1]
INSTALLED = any(one.name == "mmurace" for one in entry_points(group="pytest11"))
"""Then pytest finds it itself, and does not take it twice."""
WITH = (*(() if INSTALLED else ("-p", "mmurace.pytest_plugin")), "-p", "no:cacheprovider")


def my_race() -> str:
    """The race that docs/scenarios.md writes: violated on one kernel, held on another."""
    text = (ROOT / "docs" / "scenarios.md").read_text()
    return str(re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)[0])


@pytest.fixture
def repository(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A fresh one, with one race."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeini("[pytest]\n")
    write(pytester, "my-race", my_race())
    return pytester


def write(repository: pytest.Pytester, name: str, text: str) -> None:
    """A file in ``races/``."""
    folder = repository.path / "races"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.toml").write_text(text)


def run(repository: pytest.Pytester, *words: str) -> pytest.RunResult:
    """pytest, as another process."""
    return repository.runpytest_subprocess(*WITH, *words, timeout=100)


def kernels() -> list[str]:
    """Names of its kernels."""
    return [case["name"] for case in tomllib.loads(my_race())["kernel"]]


def test_a_race_is_a_test_on_each_kernel(repository: pytest.Pytester) -> None:
    result = run(repository, "-v")
    result.assert_outcomes(passed=len(kernels()))
    result.stdout.fnmatch_lines([f"*races/my-race.toml::{name} PASSED*" for name in kernels()])
    result.stdout.fnmatch_lines(
        [f"races: {len(kernels())} on a kernel each, * schedules, * the window was entered*"]
    )
    assert not (repository.path / "runs").exists()


def test_a_race_that_comes_out_otherwise_fails_with_its_reason(repository: pytest.Pytester) -> None:
    wrong = re.sub(
        r'verdict = "violated"\n(rule|agent|cache)[^\[]*', 'verdict = "held"\n\n', my_race()
    )
    assert wrong != my_race()
    write(repository, "my-race", wrong)
    result = run(repository)
    result.assert_outcomes(failed=1, passed=len(kernels()) - 1)
    result.stdout.fnmatch_lines(
        ["*expected held, but *", "*In words: *", "replay: * replay *minimal.schedule.toml*",
         "*launch.py show *"]
    )  # fmt: skip
    result.stdout.no_fnmatch_line("*Traceback*")
    file = next((repository.path / "runs").glob("*/minimal.schedule.toml"))
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "replay", str(file)], cwd=repository.path,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1


def test_green_without_a_race_is_not_green(repository: pytest.Pytester) -> None:
    more = '[[sometimes]]\nkind = "frames_reused"\nat_least = 50\n'
    write(repository, "my-race", f"{my_race()}\n{more}")
    result = run(repository, "--races-schedules", "5")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*nothing was raced: the window was never entered*"])


def test_a_file_with_a_mistake_is_told_by_its_place(repository: pytest.Pytester) -> None:
    write(repository, "my-race", my_race().replace('op = "munmap"', 'op = "munmp"'))
    result = run(repository)
    assert result.ret == 2
    result.stdout.fnmatch_lines(["*races/my-race.toml: program*unknown op 'munmp'*perhaps munmap*"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_races_in_python(repository: pytest.Pytester) -> None:
    repository.makepyfile(
        """
        import pytest

        @pytest.mark.notifier_race(schedules=30, seed=7)
        def test_known(notifier_race):
            raced = notifier_race("E08", "v6.2-end-only")
            assert raced.verdict == "violated" and raced.spec.seed == 7

        def test_table(notifier_race):
            import tomllib
            from pathlib import Path
            table = tomllib.loads(Path("races/my-race.toml").read_text())
            raced = notifier_race(table, table["kernel"][-1]["name"], schedules=20)
            assert raced.schedules >= 20 and raced.entered

        def test_otherwise(notifier_race):
            notifier_race("E08", "v6.6", expect="violated", schedules=5)

        def test_idle(notifier_race):
            pass
        """
    )
    result = run(repository, "-k", "known or table or otherwise or idle")
    result.assert_outcomes(passed=3, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*E08-v6.6: expected violated: any rule, but it held in*"])
    result.stdout.fnmatch_lines(["*nothing was raced: the test has never called notifier_race"])


def test_whoever_has_no_races_notices_nothing(pytester: pytest.Pytester) -> None:
    folder = pytester.path / "races"
    folder.mkdir()
    (folder / "monza.toml").write_text('[race]\nwinner = "Ascari"\n')
    (folder / "old.schedule.toml").write_text("[[kernel]]\n")
    pytester.makepyfile("def test_one(): pass")
    result = pytester.runpytest_inprocess(*WITH)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*races:*")


def test_the_plug_in_imports_nothing_of_the_emulator() -> None:
    code = (
        "import sys, pytest, mmurace.pytest_plugin\n"
        "print(sorted(n for n in sys.modules if n.startswith('mmurace.') or n == 'msgspec'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        timeout=60,
    )  # fmt: skip
    assert done.stdout == "['mmurace.pytest_plugin']\n"


def test_pytest_finds_it_once_it_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"mmurace": pytest_plugin.__name__}


# ---- it looks whether it would find one --------------------------------------------------------


def test_a_planted_race_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    racing.planted.cache_clear()
    assert racing.planted() == ""
    known = find("E01")
    held = racing.race(known.run("v5.8", 1), 5)
    monkeypatch.setattr(racing, "race", lambda spec, _: racing.Raced(spec, held.parts))
    racing.planted.cache_clear()
    try:
        assert "does not find a race that is there" in racing.planted()
        with pytest.raises(RaceFailed, match="does not find a race that is there"):
            Racer(tmp_path)(known, "v5.8")
    finally:
        racing.planted.cache_clear()
