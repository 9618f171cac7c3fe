"""The private directory of a socket: made where there is room, swept when its owner is dead."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmurace.broker import socket_directory
from mmurace.broker.router import endpoint
from mmurace.broker.socket_directory import SOCKET_PATH_BYTES_MAX, SocketDirectory, sweep
from mmurace.protocol.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
ABANDON = """
import os, socket, sys
from mmurace.broker.socket_directory import SocketDirectory
place = SocketDirectory()
socket.socket(socket.AF_UNIX).bind(place.path + "/router")
print(place.path, flush=True)
sys.stdin.read()
os._exit(9)
"""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for temporary files that is short enough for a socket."""
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    yield short
    shutil.rmtree(short)


def inside(place: Path) -> list[str]:
    """The names of what is there."""
    return sorted(path.name for path in place.iterdir())


def bind(path: Path) -> None:
    """Leave a socket there."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def test_it_is_private_and_gone_once_removed(here: Path) -> None:
    place = SocketDirectory()
    path = Path(place.path)
    assert (path.parent, path.stat().st_mode & 0o777) == (here, 0o700)
    bind(path / "router")
    place.remove()
    place.remove()
    assert inside(here) == []


def test_what_a_dead_owner_left_goes_at_the_next_start_and_a_living_one_keeps_its_own(
    here: Path,
) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", ABANDON], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(here)},
    )  # fmt: skip
    assert owner.stdout is not None
    left = Path(owner.stdout.readline().strip())
    mine = SocketDirectory()
    assert left.exists()
    owner.communicate(timeout=30)
    assert left.exists()
    other = SocketDirectory()
    assert inside(here) == sorted(Path(place.path).name for place in (mine, other))
    mine.remove()
    other.remove()


def test_nothing_else_is_swept(here: Path) -> None:
    for name in ("mmu-12345678", "mmu-emulator-1234567", "mmu-emulator-12345678x", "other"):
        (here / name).mkdir()
    (here / "mmu-emulator-filefile").write_text("a file")
    (here / "mmu-emulator-linklink").symlink_to(here / "other")
    (here / "mmu-emulator-fullfull").mkdir()
    (here / "mmu-emulator-fullfull" / "notes").write_text("somebody's")
    bind(here / "mmu-emulator-fullfull" / "router")
    before = inside(here)
    sweep(here)
    assert inside(here) == before
    assert inside(here / "mmu-emulator-fullfull") == ["notes", "router"]


def test_one_that_is_swept_before_it_is_locked_is_made_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    make = tempfile.mkdtemp

    def make_and_lose(**words: str) -> str:
        made.append(make(**words))
        if len(made) == 1:
            sweep(here)
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_lose)
    place = SocketDirectory()
    assert [place.path] == made[1:]
    place.remove()


@pytest.mark.parametrize("length", [60, 80, 300])
def test_a_long_tmpdir_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    there = Path(tempfile.mkdtemp(dir="/tmp"))
    long = there / ("d" * (length // 2)) / ("e" * (length // 2))
    long.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    place = SocketDirectory()
    assert len(endpoint(place.path).removeprefix("ipc://")) <= SOCKET_PATH_BYTES_MAX
    bind(Path(place.path) / "listener-12345678")
    place.remove()
    shutil.rmtree(there)


def test_without_any_place_the_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    monkeypatch.setattr(socket_directory, "ELSEWHERE", (str(tmp_path / "neither"),))
    with pytest.raises(UserError, match=r"TMPDIR: no socket can be made in .*none.*at most \d+"):
        SocketDirectory()
