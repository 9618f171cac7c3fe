"""The list of mutants fits the code, and what notices them does not blame the code as it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from benchmarks.mutants import planted
from benchmarks.mutants.command import Asker, Result, Results, table
from benchmarks.mutants.planted import KERNEL_CODE, ROOT, Answer, Mutant, Workshop, listed
from mmurace.protocol.errors import UserError

LIST = listed()
SAMPLE = ("fork-no-flush", "iotlb-one-asid", "copro-not-counted")
SECONDS = 8.0


def test_every_mutant_fits_the_code_and_is_python() -> None:
    for mutant in LIST.mutant:
        assert mutant.file.startswith(KERNEL_CODE)
        before = (ROOT / mutant.file).read_text()
        after = mutant.planted(before)
        assert after != before
        compile(after, mutant.file, "exec")
        for name in mutant.kernels:
            LIST.stock(name).kernel()


def test_there_are_enough_of_every_subsystem() -> None:
    alive = [mutant for mutant in LIST.mutant if not mutant.unseen]
    assert len({mutant.id for mutant in LIST.mutant}) == len(LIST.mutant)
    assert len(alive) >= 40
    counts = Counter(mutant.subsystem for mutant in alive)
    assert set(counts) == set(LIST.suite)
    assert all((ROOT / file).exists() for files in LIST.suite.values() for file in files)


def test_code_that_has_moved_on_is_said_so() -> None:
    mutant = LIST.mutant[0]
    text = (ROOT / mutant.file).read_text()
    for moved in ("", text + text):
        with pytest.raises(UserError, match=rf"{mutant.id}: old: occurs [02] times"):
            mutant.planted(moved)


def test_three_are_noticed_and_the_code_as_it_is_is_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = {mutant.file: (ROOT / mutant.file).read_text() for mutant in LIST.mutant}
    workshop = Workshop()
    asker = Asker(Namespace(seconds=SECONDS, suite=""), LIST, workshop)
    try:
        for mutant in LIST.chosen(list(SAMPLE)):
            row = asker.ask(mutant, "programs")
            assert row.noticed, row
            assert not row.answer.rule.startswith("broken"), row
    finally:
        workshop.close()
    assert not list(tmp_path.iterdir())
    assert before == {name: (ROOT / name).read_text() for name in before}


def test_what_a_killed_run_has_left_goes_with_the_next_one(tmp_path: Path) -> None:
    leave = "from benchmarks.mutants.planted import Workshop; import os; Workshop(); os._exit(9)"
    words = [sys.executable, "-c", leave]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for _ in range(2):
        assert subprocess.run(words, env=environment, check=False).returncode == 9
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(planted.PREFIX)


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "benchmarks/mutants/run.py", "--only", SAMPLE[0], "--by", "catalogue"]
    answers = tmp_path / "answers"
    command = subprocess.Popen(
        [*words, "--results", str(answers)], cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert command.stderr
    with command.stderr:
        assert b"1 mutant" in command.stderr.readline()
        command.send_signal(signal.SIGINT)
        assert command.wait(20) == 130
    assert not list(tmp_path.iterdir())


def test_a_judge_ends_with_its_parent() -> None:
    words = [sys.executable, "-m", "benchmarks.mutants.judges", "programs", LIST.kernel[0].name]
    judge = subprocess.Popen([*words, "--seconds", "600"], cwd=ROOT, stdin=subprocess.PIPE)
    assert judge.stdin
    judge.stdin.close()
    assert judge.wait(20) == 1


def answered(mutant: Mutant, by: str, noticed: bool, seconds: float) -> Result:
    return Result(mutant.id, by, mutant.digest, seconds, Answer(noticed, 1.5, "O" * noticed))


def test_only_what_is_not_known_yet_is_asked(tmp_path: Path) -> None:
    one, two = LIST.mutant[:2]
    results = Results(tmp_path / "answers")
    results.add(answered(one, "hunt", True, 60))
    results.add(answered(two, "hunt", False, 60))
    with results.path.open("ab") as file:
        file.write(b'{"mutant": "cut o')
    again = Results(results.path)
    again.load()
    assert not again.missing(one, "hunt", 600)
    assert again.missing(one, "suite", 600)
    assert not again.missing(two, "hunt", 60)
    assert again.missing(two, "hunt", 600)
    assert again.missing(msgspec.structs.replace(one, new="pass"), "hunt", 60)
    lines = table((one, two), ("hunt", "suite"), again)
    assert lines[2] == f"| {one.id} | {one.subsystem} | 1.5 s | ? | O |"
    assert lines[3] == f"| {two.id} | {two.subsystem} | no | ? |  |"
    assert lines[4] == "| noticed |  | 1 of 2 | 0 of 2 |  |"
