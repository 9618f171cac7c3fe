"""Disks that are full, broken or slow to take it all: a verdict or a clear error, nothing half."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from mmurace import launch
from mmurace.nodes.disk import Disk, FaultOfDisk, FaultyDisk, disk, on
from mmurace.nodes.files import write_whole
from mmurace.nodes.journal import Journal, JournalReader
from mmurace.protocol.errors import UserError
from tests.runs import nothing_left_behind

__all__ = ["nothing_left_behind"]

ROOT = Path(__file__).parent.parent
BAD = ("repro", "E08", "--kernel", "v6.2-end-only", "--on", "simulator", "--seed", "0x1f")
GOOD = ("repro", "E08", "--kernel", "v6.6", "--on", "simulator", "--seed", "1")
FAULTS: tuple[FaultOfDisk, ...] = ("full", "error")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs are put under a temporary directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class OnlyTheEnd(FaultyDisk):
    """Full once somebody writes how a run ended."""

    def write(self, file: int, data: bytes) -> int:
        """See ``Disk``."""
        if b"\xa3end" in data and self.nth == 0:
            self.nth = 1
        return FaultyDisk.write(self, file, data)


class Told:
    """What a command printed, and its exit status."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *words: str) -> None:
        capsys.readouterr()
        self.status = launch.main(list(words))
        self.out, self.err = capsys.readouterr()
        assert "Traceback" not in self.out + self.err


def operations(*words: str, names: str = "*") -> int:
    """How many operations on the disk a command makes."""
    with on(FaultyDisk(0, names=names)) as counting:
        launch.main(list(words))
    assert isinstance(counting, FaultyDisk)
    return counting.operations


def parts(directory: Path) -> list[Path]:
    """Files that are not whole."""
    return [path for path in directory.rglob("*") if path.name.endswith(".part")]


# ---- at every write --------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("words", "right"), [(BAD, 1), (GOOD, 0)], ids=["violated", "held"])
def test_a_disk_that_fails_at_any_operation_makes_no_wrong_verdict(
    words: tuple[str, ...], right: int, fault: FaultOfDisk, elsewhere: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    count = operations(*words, "--out", "counted")
    seen: set[tuple[int, bool]] = set()
    reason = os.strerror(errno.ENOSPC if fault == "full" else errno.EIO)
    for nth in range(1, count + 1):
        out = f"run{nth}"
        with on(FaultyDisk(nth, fault)):
            told = Told(capsys, *words, "--out", out)
        assert told.status in (right, 4)
        assert reason in told.err
        assert parts(elsewhere) == []
        if told.status == 4:
            assert re.search(rf"launch\.py: {out}/[a-z0-9.]+: {reason}\n$", told.err)
            assert told.out == "" or told.out.startswith("BROKE")
        recorded = (elsewhere / out / "broker.journal").exists()
        if recorded:
            checked = Told(capsys, "check", out)
            assert checked.status == (right if told.status == right else 4)
            Told(capsys, "replay", out, "--on", "simulator", "--out", f"again{nth}")
        seen.add((told.status, recorded))
    assert seen >= {(4, False), (4, True), (right, True)}


def test_writes_that_are_cut_short_change_nothing(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = operations(*BAD, "--out", "whole")
    for nth in range(1, count + 1):
        with on(FaultyDisk(nth, "short")):
            assert Told(capsys, *BAD, "--out", f"run{nth}").status == 1
        for path in (elsewhere / "whole").iterdir():
            if path.name not in ("summary.json", "report.html"):  # they have the time that it took
                assert (elsewhere / f"run{nth}" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["schedule", "summary.json", "latest"])
def test_what_can_be_had_again_costs_no_verdict(
    name: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with on(FaultyDisk(1, "full", f"*{name}*")):
        told = Told(capsys, *BAD)
    assert told.status == 1
    assert told.out.startswith("VIOLATED: ")
    assert re.search(rf"{name}[^\n]*: No space left on device\n", told.err)
    (run,) = [path for path in (elsewhere / "runs").iterdir() if not path.is_symlink()]
    assert Told(capsys, "check", str(run)).status == 1
    again = Told(capsys, "replay", str(run), "--on", "simulator", "--out", "again")
    assert again.status == 1


def test_a_disk_that_fills_up_while_the_simulator_runs_ends_the_run_there(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("stress", "--on", "simulator", "--operations", "200", "--seed", "1")
    count = operations(*words, "--out", "whole", names="memory.journal")
    assert count > 5
    with on(FaultyDisk(count - 2, "full", "memory.journal")):
        told = Told(capsys, *words, "--out", "run")
    assert told.status == 4
    assert told.out.startswith("BROKE: run/memory.journal: No space left on device")
    record = re.search(r"\n  record +(ends after delivery [0-9]{4,}): ", told.out)
    assert record is not None
    checked = Told(capsys, "check", "run")
    assert (checked.status, record[1] in checked.out) == (4, True)
    again = Told(capsys, "replay", "run", "--on", "simulator", "--out", "again")
    assert (again.status, record[1] in again.out) == (3, True)


@pytest.mark.parametrize("more", [(), ("--exhaustive",)], ids=["drawn", "exhaustive"])
def test_what_a_search_found_is_told_although_it_cannot_be_recorded(
    more: tuple[str, ...], elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("explore", "E08", "--kernel", "v6.2-end-only", "--seed", "1", *more)
    count = operations(*words)
    for nth in (1, 2, 3, *range(count // 2, count + 1, 4)):
        with on(FaultyDisk(nth)):
            told = Told(capsys, *words)
        assert told.status == 1
        assert "VIOLATED" in told.out
        assert "No space left on device" in told.err
        assert parts(elsewhere) == []


# ---- on processes ----------------------------------------------------------------------------

RACE = ("repro", "E08", "--kernel", "v6.2-end-only", "--seed", "5")
AT: tuple[tuple[str, int, tuple[int, ...]], ...] = (
    ("run.toml", 1, (4,)),
    ("memory.journal", 1, (4,)),
    ("broker.journal", 1, (4,)),
    ("cpu0.journal", 6, (1, 4)),
    ("broker.journal", 40, (1, 4)),
    ("*schedule*", 1, (1,)),
    ("*summary*", 2, (1,)),
)


@pytest.mark.processes
@pytest.mark.parametrize(("names", "nth", "allowed"), AT, ids=[f"{n}-{at}" for n, at, _ in AT])
def test_a_full_disk_on_processes_makes_no_wrong_verdict(
    names: str, nth: int, allowed: tuple[int, ...], elsewhere: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pattern = names if names.startswith("*") or "journal" in names else f"*{names}*"
    with on(FaultyDisk(nth, "full", pattern)):
        told = Told(capsys, *RACE, "--out", "run")
    assert told.status in allowed
    assert "No space left on device" in told.out + told.err
    assert parts(elsewhere) == []
    if (elsewhere / "run" / "broker.journal").exists():
        assert Told(capsys, "check", "run").status == told.status
        again = Told(capsys, "replay", "run", "--on", "simulator", "--out", "again")
        assert again.status == (1 if told.status == 1 else 3)


@pytest.mark.processes
def test_the_end_of_a_run_that_cannot_be_written_costs_no_violation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with on(OnlyTheEnd(0, "full", "broker.journal")):
        told = Told(capsys, *RACE, "--out", "run")
    assert told.status == 1
    assert "broker.journal: No space left on device" in told.out
    assert Told(capsys, "check", "run").status == 1


# ---- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_a_result_is_written_whole_or_not_at_all(tmp_path: Path, fault: FaultOfDisk) -> None:
    path = tmp_path / "result"
    path.write_bytes(b"before")
    for nth in range(1, 5):
        with on(FaultyDisk(nth, fault)), pytest.raises(OSError, match="result"):
            write_whole(path, b"after" * 1000)
        assert path.read_bytes() == b"before"
        assert list(tmp_path.iterdir()) == [path]
    with on(FaultyDisk(9, fault)):
        write_whole(path, b"after" * 1000)
    assert path.read_bytes() == b"after" * 1000


def test_a_minimized_schedule_is_whole_or_what_was_there_before(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Told(capsys, *BAD, "--out", "one").status == 1
    file = elsewhere / "x.schedule.toml"
    words = ("minimize", "one", "--seconds", "0.1", "--out", str(file))
    assert Told(capsys, *words).status == 1
    before = file.read_bytes()
    for nth in (1, 2, 3, 4):
        with on(FaultyDisk(nth, "full", "*.schedule.toml*")):
            told = Told(capsys, *words)
        assert (told.status, told.out) == (4, "")
        assert told.err.endswith(f"launch.py: {file}: No space left on device\n")
        assert file.read_bytes() == before
    assert parts(elsewhere) == []


def test_a_journal_writes_nothing_after_a_record_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    with on(FaultyDisk(4, "full")):
        journal = Journal(path, "a")
        journal.write(b"one" * 50)
        with pytest.raises(OSError, match=r"a\.journal"):
            journal.write(b"two" * 50)
    with pytest.raises(OSError, match=r"a\.journal"):
        journal.write(b"three" * 50)  # there is room again
    journal.abandon()
    reader = JournalReader(path)
    assert [reader.next(), reader.next()] == [b"one" * 50, None]
    assert reader.tail_bytes() > 0
    reader.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO])
def test_a_machine_that_has_nothing_left_is_no_wrong_input(
    number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "a.journal"
    Journal(path, "a").close()

    def none_left(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "open", none_left)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        JournalReader(path)
    assert not isinstance(caught.value, UserError)


def test_a_test_leaves_the_disk_as_it_was() -> None:
    assert type(disk()) is Disk
