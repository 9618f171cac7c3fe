"""Commands with plug-ins: one stays in the process that has imported it, so each has its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NIC = ROOT / "tests" / "data" / "plugins" / "nic.py"
DATA = NIC.parent
RACE = NIC.with_suffix(".toml")
RUN_SECONDS = 120.0
IMPORT = "from mmurace import plugin as api\n"
LOOKUP = "page = await self.get_user_page(dma.mm, dma.address, dma.write)"
SIMULATED = ("repro", str(RACE), "--on", "simulator", "--seed", "1")
COMMANDS_ON_A_RUN = ("replay", "check", "minimize", "explain")
PROCESSES = ("repro", str(RACE), "--on", "processes", "--seed", "1")
ENGINES = pytest.mark.parametrize(
    "engine", [SIMULATED, pytest.param(PROCESSES, marks=pytest.mark.processes)],
    ids=["simulator", "processes"],
)  # fmt: skip


@dataclass
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str


def run(directory: Path, *words: str, plugin: Path | None = None) -> Done:
    """The command line in a process of its own, in an empty directory."""
    given = [*words, "--plugin", str(plugin)] if plugin else [*words]
    done = subprocess.run(
        [sys.executable, "-m", "mmurace", *given], cwd=directory, capture_output=True, text=True,
        timeout=RUN_SECONDS, check=False, stdin=subprocess.DEVNULL,
        env={"PYTHONPATH": f"{directory}:{ROOT}", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def edited(directory: Path, old: str, new: str, name: str = "nic.py") -> Path:
    """The NIC with one thing changed."""
    text = NIC.read_text()
    assert text.count(old) == 1, old
    path = directory / name
    path.write_text(text.replace(old, new))
    return path


def line_of(path: Path, words: str) -> int:
    """The number of the one line with these words."""
    found = [n for n, line in enumerate(path.read_text().splitlines(), 1) if words in line]
    assert len(found) == 1, found
    return found[0]
