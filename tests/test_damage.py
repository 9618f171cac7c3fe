"""Damaged files are named and never believed: flipped bits, changed schedules, older versions."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mmurace import launch
from mmurace.broker.recorder import read_record, read_schedule
from mmurace.explorer.run import session
from mmurace.explorer.run.schedule_file import read_case
from mmurace.nodes.files import read_sealed, sealed
from mmurace.nodes.journal import Journal, JournalReader, journal_path
from mmurace.nodes.kernel.variant import preset
from mmurace.protocol import codec
from mmurace.protocol.errors import UserError
from mmurace.scenarios.catalogue import find
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.strace import StraceLog

RACES = (("E08", "v6.2-end-only"), ("E08", "v6.6"))
FLIPS = 60
"""Flipped bits for each of the files, with a whole command each."""
LOG = Path(__file__).parent / "data" / "numpy.strace"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs are put under a temporary directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=RACES, ids=["violated", "held"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small run in the simulator."""
    race, kernel = request.param
    directory = tmp_path / "run"
    directory.mkdir()
    session.simulate(find(race).run(kernel, 3).save(directory), directory)
    return directory


def flipped(data: bytes, bit: int) -> bytes:
    """The same with one other bit."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def records(path: Path) -> list[bytes]:
    """All whole records of a journal."""
    with closing(JournalReader(path)) as reader:
        return list(iter(reader.next, None))


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any, str]:
    """Exit status of a command, its object, and what it said besides."""
    capsys.readouterr()
    status = launch.main([*words, "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return status, json.loads(out), err


def verdict(value: dict[str, Any]) -> tuple[Any, ...]:
    """What must not change in silence."""
    return value["exit_code"], value["verdict"], value["violations"], value["operations"]


# ---- journals --------------------------------------------------------------------------------


def test_every_bit_of_a_journal_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    with closing(Journal(path, "a")) as journal:
        for record in (b"", b"one", b"\0" * 40, b"another one"):
            journal.write(record)
    whole, written = path.read_bytes(), records(path)
    for bit in range(8 * len(whole)):
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(UserError) as caught:
            records(path)
        assert caught.value.where.startswith(str(path))
    path.write_bytes(whole)
    assert records(path) == written


def test_a_damaged_record_is_named_by_its_number_and_place(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    with closing(Journal(path, "a")) as journal:
        journal.write(b"one")
        size = path.stat().st_size
        journal.write(b"two" * 9)
    whole = path.read_bytes()
    for at, part in ((size + 12 + 5, "content"), (size + 3, "length"), (size + 5, "length")):
        path.write_bytes(flipped(whole, 8 * at))
        with closing(JournalReader(path)) as reader:
            assert reader.next() == b"one"
            with pytest.raises(UserError) as caught:
                reader.next()
        assert str(caught.value) == (
            f"{path}: record 2 at byte {size}: its {part} does not fit its checksum"
            " (expected a journal as written)"
        )


def test_a_journal_in_the_place_of_another_is_named(tmp_path: Path) -> None:
    Journal(tmp_path / "a.journal", "a").close()
    (tmp_path / "a.journal").rename(tmp_path / "b.journal")
    with pytest.raises(UserError, match=r"b\.journal: is the journal of a \(expected that of b\)"):
        records(tmp_path / "b.journal")


def test_a_journal_of_the_version_before_is_refused_by_name(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = [codec.pack(["mmu-notifier-emulator journal", 1, "broker"]), codec.pack(["stop", 0, ""])]
    path = journal_path(run, "broker")
    path.write_bytes(b"".join(len(record).to_bytes(4, "big") + record for record in old))
    for command in ("check", "replay"):
        status, _, err = told(capsys, command, str(run))
        assert status == 2
        expected = "journal version 1 (expected a journal of version 2)"
        assert err.splitlines()[-1] == f"launch.py: {path}: {expected}"


@pytest.mark.parametrize("command", ["check", "replay"])
def test_no_flipped_bit_changes_what_is_said_of_a_run(
    run: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (command, str(run)) + (("--on", "simulator") if command == "replay" else ())
    right, chance = verdict(told(capsys, *words)[1]), random.Random(command)
    for path in sorted(run.iterdir()):
        whole, named = path.read_bytes(), 0
        believed = path.suffix == ".journal" or path.name == "run.toml"
        for _ in range(FLIPS if believed else 5):
            path.write_bytes(flipped(whole, chance.randrange(8 * len(whole))))
            status, value, err = told(capsys, *words)
            if status == 2:
                assert f"launch.py: {path}" in err
                named += 1
            else:
                assert verdict(value) == right
        path.write_bytes(whole)
        assert named >= (FLIPS - 5 if believed else 0), path


# ---- sealed files ----------------------------------------------------------------------------


def seals(run: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[tuple[Path, Any]]:
    """Every sealed file with what reads it."""
    file = run / "x.schedule.toml"
    if told(capsys, "minimize", str(run), "--seconds", "0.1", "--out", str(file))[0] == 1:
        yield file, lambda: read_case(file)
    yield run / "run.toml", lambda: RunSpec.load(run)
    yield run / "schedule", lambda: read_schedule(run / "schedule")


def test_every_byte_of_a_sealed_file_is_checked(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(1)
    for path, read in seals(run, capsys):
        whole = path.read_bytes()
        read()
        for at in range(len(whole)):
            path.write_bytes(flipped(whole, 8 * at + chance.randrange(8)))
            with pytest.raises(UserError) as caught:
                read()
            assert caught.value.where.startswith(str(path))
        path.write_bytes(whole)


def test_whoever_takes_the_seal_out_is_believed(run: Path) -> None:
    path = run / "schedule"
    right, text = read_schedule(path), path.read_text()
    path.write_text(text.partition("\n")[2])
    assert read_schedule(path) == right
    path.write_text(text.replace("\n", "\n\n", 1))
    with pytest.raises(UserError, match=r"schedule:1: does not fit its checksum, which is "):
        read_schedule(path)
    path.write_text(sealed(text.split("\n")[1] + "\n1 0\n"))
    with pytest.raises(UserError, match=r"schedule:3: not a delivery"):
        read_schedule(path)


def test_the_copy_of_a_log_is_checked(tmp_path: Path) -> None:
    log = StraceLog(LOG)
    spec = RunSpec("log", log.world(preset("v6.6")), 1, log).save(tmp_path)
    copy = tmp_path / "workload.strace"
    assert RunSpec.load(tmp_path).workload == spec.workload
    copy.write_bytes(flipped(copy.read_bytes(), 12_345))
    with pytest.raises(UserError, match=r"workload\.strace: does not fit its checksum, which is "):
        RunSpec.load(tmp_path)


def test_a_file_without_a_seal_is_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("# a comment\nx\n")
    assert read_sealed(path) == "# a comment\nx\n"
    path.write_text(sealed("x\n"))
    assert read_sealed(path) == "\nx\n"


# ---- the schedule that is named is the one that is played --------------------------------------


def edits(lines: list[str], chance: random.Random) -> list[str]:
    """A schedule with one random change: a line gone, two swapped, or one of another."""
    changed = lines.copy()
    at = chance.randrange(len(lines) - 1)
    n, copy, id_ = changed[at].split(" ", 2)
    match chance.randrange(5):
        case 0:
            del changed[at]
        case 1:
            changed[at], changed[at + 1] = changed[at + 1], changed[at]
        case 2:  # the two messages the other way round
            m, other = changed[at + 1].split(" ", 1)
            changed[at], changed[at + 1] = f"{n} {other}", f"{m} {copy} {id_}"
        case 3:
            changed[at] = f"{n} {int(copy) + 1} {id_}"
        case _:
            changed[at] = f"{n} {copy} {id_}0"
    return changed


def test_a_schedule_is_played_as_it_is_on_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, chance = run / "schedule", random.Random(9)
    _, header, *lines = path.read_text().splitlines()
    seal_out = "\n".join((header, *lines, ""))
    path.write_text(seal_out)
    status, value, _ = told(capsys, "replay", str(path), "--on", "simulator", "--out", "same")
    assert (value["status"], value["record"]) == ("finished", "")
    seen: dict[str, int] = {}
    for number in range(100):
        changed = edits(lines, chance)
        path.write_text("\n".join((header, *changed, "")))
        out = tmp_path / f"out{number}"
        words = ("replay", str(path), "--on", "simulator", "--out", str(out))
        status, value, err = told(capsys, *words)
        how = "refused" if status == 2 else str(value["status"])
        seen[how] = seen.get(how, 0) + 1
        if how == "refused":
            assert f"launch.py: {path}:" in err
        elif how == "finished":
            assert value["record"].startswith(f"is another schedule than {path}, from delivery ")
            assert read_record(out).deliveries == read_schedule(path)
        else:
            assert (status, "diverged at delivery" in value["detail"]) == (4, True)
        shutil.rmtree(out, ignore_errors=True)
    assert set(seen) == {"refused", "finished", "diverged"}


def test_every_command_reads_the_schedule_that_it_is_given(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "schedule"
    path.write_bytes(flipped(path.read_bytes(), 9_999))
    for command in ("replay", "minimize", "explain"):
        status, _, err = told(capsys, command, str(path))
        assert (status, f"launch.py: {path}:1: does not fit" in err) == (2, True)
    status, _, err = told(capsys, "check", str(path))
    assert (status, "which can be replayed and not judged" in err) == (2, True)
    assert told(capsys, "check", str(run))[0] in (0, 1)


@pytest.mark.processes
def test_a_schedule_is_played_on_processes_too(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "schedule"
    _, header, *lines = path.read_text().splitlines()
    path.write_text("\n".join((header, *lines[: len(lines) // 2], "")))
    status, value, _ = told(capsys, "replay", str(path), "--out", "half")
    assert (value["status"], value["ending"]["deliveries"]) == ("finished", len(lines) // 2)
    assert status in (1, 3)
    assert value["record"].startswith("is another schedule than ")
    assert read_record(tmp_path / "half").deliveries == read_schedule(path)
