"""The pages that build something: every file, change and command of them, in the order of the page.

A block is named by what stands behind its backticks: ``toml nic.toml`` is that file, with a ``+``
its end, ``diff nic.py`` a change of it, ``console`` commands and lines of what they print, in which
``...`` is anything, and ``[...]`` lines that are left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data" / "plugins"
COMMAND_SECONDS = 120.0
BLOCK = re.compile(r"^```(\w+)(?: ([\w.-]+)( \+)?)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
STATUS = {"HELD": 0, "VIOLATED": 1}


def build(page: str, directory: Path) -> int:
    """Do what a page does in a directory; how many commands that were."""
    commands = 0
    for kind, name, more, text in BLOCK.findall((ROOT / "docs" / page).read_text()):
        if kind == "console":
            commands += run_all(text, directory)
        elif kind == "diff":
            change(directory / name, text)
        elif name:
            old = (directory / name).read_text() + "\n" if more else ""
            (directory / name).write_text(old + text)
    return commands


def change(path: Path, difference: str) -> None:
    """Apply a change: its old lines are in the file exactly once."""
    lines = [(line[:1], line[1:]) for line in difference.splitlines(keepends=True)]
    assert {sign for sign, _ in lines} <= {" ", "-", "+"}, difference
    old = "".join(line for sign, line in lines if sign in " -")
    new = "".join(line for sign, line in lines if sign in " +")
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} has this {text.count(old)} times:\n{old}"
    path.write_text(text.replace(old, new))


def run_all(text: str, directory: Path) -> int:
    """Run the commands of a block and compare what they print."""
    commands = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    for command in commands:
        line, _, shown = command.partition("\n")
        run(line, shown, directory)
    return len(commands)


def run(line: str, shown: str, directory: Path) -> None:
    """Run one command: it ends as its first line says, and prints what is shown, in that order."""
    words = line.split()
    assert words[:2] == ["python", "launch.py"], line
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *words[2:]], cwd=directory, capture_output=True,
        text=True, timeout=COMMAND_SECONDS, check=False, env=os.environ | {"COLUMNS": "100"},
    )  # fmt: skip
    printed = done.stdout + done.stderr
    pattern = r"\A" + "".join(map(line_pattern, shown.splitlines()))
    assert re.search(pattern, printed, re.DOTALL), f"{line}\nshown:\n{shown}\nprinted:\n{printed}"
    word = re.match(r"\w*", printed)
    expected = STATUS.get(word[0] if word else "")
    assert expected is None or done.returncode == expected, f"{line}: {done.returncode}"


def line_pattern(line: str) -> str:
    """What a shown line stands for."""
    if line == "[...]":
        return r"(?:[^\n]*\n)*?"
    return re.escape(line).replace(r"\.\.\.", r"[^\n]*") + "\n"


@pytest.mark.processes
def test_a_secondary_is_written_with_its_mistakes(tmp_path: Path) -> None:
    assert build("writing-a-secondary.md", tmp_path) == 12
    assert (tmp_path / "nic.py").read_text() == (DATA / "nic.py").read_text()


def test_a_patch_is_tried_with_its_mistake(tmp_path: Path) -> None:
    first = BLOCK.search((ROOT / "docs" / "trying-a-patch.md").read_text())
    assert first is not None
    assert first[4] == (DATA / "shorter_bracket.py").read_text()
    assert len(first[4].splitlines()) <= 20
    assert build("trying-a-patch.md", tmp_path) == 6


def test_a_patch_is_hunted(tmp_path: Path) -> None:
    (tmp_path / "shorter_bracket.py").write_text((DATA / "shorter_bracket.py").read_text())
    assert build("hunting.md", tmp_path) == 1


@pytest.mark.parametrize(
    "chapter", sorted(path.name for path in (ROOT / "docs/course").glob("[1-9]*"))
)
def test_a_chapter_of_the_course_breaks_it_and_cures_it(chapter: str, tmp_path: Path) -> None:
    assert build(f"course/{chapter}", tmp_path) >= 2
