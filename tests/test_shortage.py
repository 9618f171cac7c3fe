"""A machine that has too little of something: what that is, in one line, and never a verdict."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from mmurace.broker import resources
from mmurace.protocol.errors import EmulatorError
from mmurace.report.shortage import shortage
from tests.runs import nothing_left_behind

__all__ = ["nothing_left_behind"]

ROOT = Path(__file__).parent.parent
RACE = ("repro", "E08", "--kernel", "v6.6", "--seed", "1", "--out", "run")
LIMITED = """
import os, resource, sys
kind, amount, *command = sys.argv[1:]
if kind == "memory":
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    limit = pages * os.sysconf("SC_PAGESIZE") + int(amount) * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
else:
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(amount), int(amount)))
os.execv(sys.executable, [sys.executable, *command])
"""


def limited(cwd: Path, kind: str, amount: int, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line under a limit: MB besides what Python itself has, or descriptors."""
    command = [sys.executable, "-c", LIMITED, kind, str(amount), str(ROOT / "launch.py"), *words]
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.processes
@pytest.mark.parametrize("descriptors", [8, 12, 20, 26])
def test_too_few_descriptors_are_named(tmp_path: Path, descriptors: int) -> None:
    done = limited(tmp_path, "descriptors", descriptors, *RACE)
    assert (done.returncode, done.stdout) == (4, "")
    expected = f": Too many open files (at most {descriptors} descriptors, ulimit -n)\n"
    assert done.stderr.endswith(expected)
    assert "expected" not in done.stderr


def test_too_few_descriptors_in_the_simulator_are_named(tmp_path: Path) -> None:
    done = limited(tmp_path, "descriptors", 8, *RACE, "--on", "simulator")
    assert (done.returncode, done.stdout) == (4, "")
    assert ".journal: Too many open files (at most 8 descriptors, ulimit -n)\n" in done.stderr


def test_too_few_descriptors_to_judge_are_no_wrong_input(tmp_path: Path) -> None:
    assert limited(tmp_path, "descriptors", 64, *RACE, "--on", "simulator").returncode == 0
    done = limited(tmp_path, "descriptors", 6, "check", "run")
    assert (done.returncode, done.stdout) == (4, "")
    assert "Too many open files (at most 6 descriptors, ulimit -n)\n" in done.stderr
    assert "expected" not in done.stderr


@pytest.mark.processes
@pytest.mark.parametrize("megabytes", [2, 8, 14, 20, 26, 32])
def test_too_little_memory_is_no_verdict(tmp_path: Path, megabytes: int) -> None:
    done = limited(tmp_path, "memory", megabytes, *RACE)
    assert done.returncode in (0, 4)
    if done.returncode == 4:
        assert done.stderr.splitlines()[-1].startswith("launch.py: ")
    else:
        assert done.stdout.startswith("HELD: ")


def test_threads_are_asked_for_before_libzmq_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    resources.check_room(5)

    def none_left(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Thread, "start", none_left)
    with pytest.raises(EmulatorError, match="no room for 2 more threads: can't start new"):
        resources.check_room(5)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"), "x: No space left on device"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "a file of the run, or the output: "),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "this process: Too many open files ("),
        (MemoryError(), "out of memory"),
        (ValueError("other"), ""),
    ],
)
def test_what_there_was_too_little_of_is_told(error: Exception, told: str) -> None:
    assert shortage(error).startswith(told)
    assert bool(shortage(error)) == bool(told)
