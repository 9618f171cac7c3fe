"""One package: what is installed is ``mmurace`` and nothing else, and it holds everything."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mmurace.report import formats

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    "protocol", "nodes", "broker", "oracle", "scenarios", "explorer", "conform", "campaign",
    "report",
)  # fmt: skip
BARE = re.compile(rf"^\s*(from|import) ({'|'.join(PARTS)}|launch)\b", re.MULTILINE)


def setuptools() -> dict[str, Any]:
    """What pyproject.toml says of packages."""
    tools: dict[str, dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    return tools["setuptools"]


def test_the_package_leads_to_every_folder() -> None:
    for part in (*PARTS, "launch.py"):
        assert (ROOT / "mmurace" / part).samefile(ROOT / part)


def test_every_folder_of_code_is_installed_and_nothing_beside_the_package() -> None:
    folders = {path.parent for part in PARTS for path in (ROOT / part).rglob("__init__.py")}
    there = {"mmurace", *(f"mmurace.{'.'.join(f.relative_to(ROOT).parts)}" for f in folders)}
    assert set(setuptools()["packages"]) == there
    assert "py-modules" not in setuptools()


def test_data_files_are_installed() -> None:
    patterns = setuptools()["package-data"]
    kept = {"mmurace.scenarios": "scenarios", "mmurace.broker": "broker"}
    found = {
        path
        for name, folder in kept.items()
        for pattern in patterns[name]
        for path in (ROOT / folder).glob(pattern)
    }
    assert found == {path for part in PARTS for path in (ROOT / part).rglob("*.toml")}


def test_nobody_imports_a_part_by_its_bare_name() -> None:
    """It would be a second copy of the module, or somebody else's."""
    files = [
        p for top in (*PARTS, "tests", "docs", "benchmarks") for p in (ROOT / top).rglob("*.py")
    ]
    found = [str(path.relative_to(ROOT)) for path in files if BARE.search(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("argv0", "said"),
    [("/somewhere/bin/mmurace", "/somewhere/bin/mmurace"), (str(ROOT / "launch.py"), "launch.py")],
)
def test_a_command_is_printed_as_it_works_here(
    argv0: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [argv0])
    monkeypatch.chdir(ROOT)
    assert formats.command("replay", "runs/x").endswith(f"{said} replay runs/x")


def test_away_from_the_checkout_the_whole_path_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(ROOT / "launch.py")])
    monkeypatch.chdir(tmp_path)
    assert f"{ROOT / 'launch.py'} check" in formats.command("check", "run")
