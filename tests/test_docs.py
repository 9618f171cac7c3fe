"""The pages say what the code says, and lead to what exists."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mmurace import launch
from mmurace.broker.chaos_config import After, ChaosConfig, Match, Rule, Until, When, parse_rules
from mmurace.explorer.sample.explore import Options, explore
from mmurace.scenarios.catalogue import find

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("docs/course/*.md"),
        *ROOT.glob("tests/*.md"),
    ]
)


def test_generated_pages_are_up_to_date() -> None:
    command = [sys.executable, "docs/generate.py", "--check"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pages_are_a_site(tmp_path: Path) -> None:
    """Every page is reached from the first, and every link and anchor leads somewhere."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "course" / "README.html").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_that_pages_name_exist(page: Path) -> None:
    top = "protocol|nodes|broker|oracle|scenarios|explorer|report|tests|docs|benchmarks"
    for path in re.findall(rf"`((?:{top})/[\w/.-]*)`", page.read_text()):
        assert (ROOT / path).exists(), path


def test_every_key_of_a_chaos_file_is_explained() -> None:
    text = (ROOT / "docs" / "chaos.md").read_text()
    for struct in (ChaosConfig, Rule, Match, Until, After, When):
        for field in struct.__struct_fields__:
            assert re.search(rf"`[\w.]*\b{field}`", text), f"{struct.__name__}.{field}"


def test_the_examples_of_chaos_files_are_right() -> None:
    text = (ROOT / "docs" / "chaos.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    assert examples
    for example in examples:
        assert parse_rules(tomllib.loads(example), "docs/chaos.md").rule


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_pages_name_exist(page: Path) -> None:
    known = set(launch.COMMANDS)
    assert set(re.findall(r"launch\.py ([a-z]+)", page.read_text())) <= known


def test_the_race_that_the_pages_write_happens_and_is_cured(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "scenarios.md").read_text()
    path = tmp_path / "my-race.toml"
    path.write_text(re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)[0])
    race = find(str(path))
    options = Options(schedules=50, stop_on="")
    bad, good = (explore(race.run(case.name, 1), options) for case in race.kernels)
    assert bad.expected
    assert (good.violated, good.entered) == (0, good.schedules)
