"""The command line: what it accepts, what it prints where, and its exit status."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from mmurace import launch
from mmurace.explorer.run import session
from mmurace.explorer.run.outcome import Outcome
from mmurace.oracle.rules.table import rules
from mmurace.oracle.violation import Violation
from mmurace.protocol.errors import EmulatorError, PeerError, TimedOut
from mmurace.report import arguments, machine
from mmurace.report.commands import stress, values
from mmurace.scenarios.spec import RunSpec
from tests.test_report import VIOLATION, an_outcome

ROOT = Path(__file__).parent.parent
RACE = ("repro", "E08", "--kernel", "v6.2-end-only", "--on", "simulator", "--seed", "0x1f")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs are put under a temporary directory; the terminal of whoever tests has no say."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Nothing is run: what would have been run is listed, and it all held."""
    made: list[tuple[Any, ...]] = []

    def on_processes(spec: RunSpec, run_dir: Path, *rest: Any) -> Outcome:
        made.append((spec, run_dir, *rest))
        return an_outcome(run_dir=run_dir)

    monkeypatch.setattr(session, "run_on_processes", on_processes)
    monkeypatch.setattr(session, "simulate", on_processes)
    return made


def run(*words: str) -> int:
    """The exit status of the command line."""
    return launch.main(list(words))


# ---- bad usage and bad input -------------------------------------------------------------------

CHAOS = 'schema = 1\n[[rule]]\nname = "a"\nfault = "hold"\nmatch = { sorce = "cpu0" }\n'
BAD: Sequence[tuple[tuple[str, ...], str]] = (
    (("--debug",), "usage: no command (see launch.py --help)"),
    (("nothing",), "COMMAND: invalid choice: 'nothing'"),
    (("stress", "--foo", "1"), "usage: unrecognized arguments: --foo"),
    (("stress", "--sec", "1"), "usage: unrecognized arguments: --sec"),
    (("show",), "usage: the following arguments are required: ID"),
    (("show", "E01", "E02"), "usage: unrecognized arguments: E02"),
    (("stress", "--seconds"), "--seconds: expected one argument"),
    (("stress", "--seconds", "soon"), "--seconds: is 'soon' (expected seconds, at least 0.1)"),
    (("stress", "--seconds", "-1"), "--seconds: is '-1' (expected seconds, at least 0.1)"),
    (("stress", "--seconds", "nan"), "--seconds: is 'nan' (expected "),
    (("stress", "--seconds", "inf"), "--seconds: is 'inf' (expected "),
    (("stress", "--operations", "0"), "--operations: is '0' (expected an integer, at least 1)"),
    (("stress", "--operations", "2.5"), "--operations: is '2.5' (expected "),
    (("stress", "--on", "paper"), "--on: is 'paper' (expected processes or simulator)"),
    (("stress", "--seconds", "1", "--operations", "2"), "--seconds, --operations: exclude each"),
    (("stress", "--on", "simulator", "--seconds", "1"), "--seconds: the simulator has no clock"),
    (("stress", "--on", "simulator", "--stop-on", "O"), "--stop-on: the simulator runs to the"),
    (("stress", "--stop-on", "S99"), "--stop-on: no rule 'S99' (expected any, or one of O, "),
    (("stress", "--kernel", "v9.9"), "--kernel: unknown kernel 'v9.9': newer than v7.2 (expected "),
    (("stress", "--arch", "vax"), "--arch: unknown architecture 'vax' (expected one of x86, "),
    (("stress", "--driver", "amd"), "--driver: no driver 'amd' on x86 (expected perhaps amdgpu, "),
    (("stress", "--set", "btm"), "--set: is 'btm' (expected SWITCH=VALUE of a switch)"),
    (("stress", "--set", "release=v5.7"), "--set: is 'release=v5.7' (expected SWITCH=VALUE"),
    (
        ("stress", "--set", "bmt=true"),
        "--set: unknown switch 'bmt' (expected perhaps btm, ",
    ),
    (("stress", "--set", "btm=yes"), "--set: btm: is str (expected bool)"),
    (("stress", "--set", "sva_decoder=x"), "--set: sva_decoder: invalid enum value 'x' (expected "),
    (("stress", "--set", "btm=true"), "--set: btm without broadcast_tlbi (expected "),
    (("stress", "--seed", "seven"), "--seed: is 'seven' (expected an integer or hex, 0 to 0x7f"),
    (("stress", "--seed", "-7"), "--seed: is '-7'"),
    (("stress", "--seed", "0x8000000000000000"), "--seed: is '0x8000000000000000'"),
    (("stress", "--seed", "9" * 5000), "--seed: is '999"),
    (("stress", "--journal-max", ""), "--journal-max: is '' (expected bytes, such as "),
    (("stress", "--journal-max", "9" * 5000), "--journal-max: is '999"),
    (("stress", "--workload", "gone.strace"), "--workload: no workload 'gone.strace' (expected "),
    (("stress", "--workload", "bad.strace"), "bad.strace:1: "),
    (("stress", "--chaos", ""), ".: cannot be read: Is a directory (expected a TOML file)"),
    (("stress", "--chaos", "gone.toml"), "gone.toml: cannot be read: No such file or directory ("),
    (("stress", "--chaos", "empty.toml"), "empty.toml: schema: is missing (expected schema = 1)"),
    (("stress", "--chaos", "deep.toml"), "deep.toml: is not TOML: "),
    (("stress", "--world", "deep.toml"), "deep.toml: is not TOML: "),
    (("stress", "--world", "long.toml"), "long.toml: is not TOML: "),
    (("stress", "--world", "links.toml"), "links.toml: nodes.links: is 1 on x86 (expected 0, or "),
    (("stress", "--chaos", "bad.toml"), "bad.toml: rule[0].match.sorce: unknown key (expected "),
    (("stress", "--chaos", "gone"), "gone: no such chaos configuration (expected "),
    (("stress", "--out", "full"), "--out: full is not empty (expected a new or an empty "),
    (("stress", "--out", "bad.toml"), "bad.toml: cannot be made: "),
    (("show", "E99"), "scenario: unknown scenario 'E99' (expected perhaps E"),
    (("repro", "E99"), "scenario: unknown scenario 'E99'"),
    (("repro", "E08", "--kernel", "v1"), "--kernel: E08 has no kernel 'v1' (expected one of "),
    (("explore", "E08", "--strategy", "best"), "--strategy: is 'best' (expected one of random, "),
    (("explore", "E08", "--exhaustive", "--strategy", "pct"), "--strategy: pct with --exhaustive"),
    (("explore", "E08", "--exhaustive", "--recipe"), "--recipe: an exhaustive search has no chaos"),
    (("explore", "E08", "--strategy", "dpor", "--keep-going"), "--keep-going: an exhaustive"),
    (("explore", "E08", "--scope", "x"), "--scope: says what is searched exhaustively (expected "),
    (("minimize", "odd", "--out", "x.toml"), "--out: is 'x.toml' (expected a name that ends with "),
    (("minimize", "odd", "--out", "gone/x.schedule.toml"), "--out: gone/x.schedule.toml is in no "),
    (("replay", "gone"), "gone: is no run: it has no run.toml (expected a run's directory)"),
    (("check", "full"), "full: is no run: it has no run.toml (expected a run's directory)"),
    (("check", "odd"), "odd/run.toml: schema: "),
)


@pytest.mark.parametrize(("words", "problem"), BAD, ids=[" ".join(w) or "-" for w, _ in BAD])
def test_bad_usage_and_input_are_one_line(
    words: tuple[str, ...], problem: str, elsewhere: Path, capsys: pytest.CaptureFixture[str],
    calls: list[Any],
) -> None:  # fmt: skip
    (elsewhere / "bad.toml").write_text(CHAOS)
    (elsewhere / "bad.strace").write_text("what is this\n")
    (elsewhere / "empty.toml").touch()
    (elsewhere / "deep.toml").write_text(f"schema = {'[' * 5000}")
    (elsewhere / "long.toml").write_text(f"schema = {'9' * 5000}")
    (elsewhere / "links.toml").write_text("schema = 1\n[nodes]\nlinks = 1\n")
    (elsewhere / "full").mkdir()
    (elsewhere / "full" / "file").touch()
    (elsewhere / "odd").mkdir()
    (elsewhere / "odd" / "run.toml").write_text(
        'schema = 99\nname = "x"\nseed = 1\nworld = {}\nworkload = {}\n'
    )
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"launch.py: {problem}")
    assert err.count("\n") == 1
    assert not calls
    assert not (elsewhere / "runs").exists()


def test_an_error_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "E99", "--json") == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["exit_code"] == 2
    assert json.loads(out)["error"] in err


# ---- our own faults ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (EmulatorError("two\nlines"), 4, "EmulatorError: two lines"),
        (TimedOut("every process to start", 60.0), 4, "TimedOut: waited 60 s for every process"),
        (ZeroDivisionError("oops"), 4, "ZeroDivisionError: oops"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_our_own_faults_are_one_line(
    error: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr(session, "run_on_processes", broken)
    assert run("repro", "E08") == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith(f"launch.py: {line}")
    assert "Traceback" not in err
    if status == 4:
        assert run("repro", "--debug", "E08") == status
        assert "Traceback" in capsys.readouterr().err


def test_a_damaged_run_is_bad_input(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged(*_: Any) -> None:
        raise PeerError("unknown kind 'X'")

    monkeypatch.setattr(session, "check", damaged)
    (elsewhere / "run.toml").touch()
    assert run("check", ".") == 2
    assert capsys.readouterr().err == (
        "launch.py: .: is damaged: unknown kind 'X' (expected a saved run)\n"
    )


# ---- options reach the run ---------------------------------------------------------------------


def test_stress_runs_what_was_asked_for(calls: list[Any], elsewhere: Path) -> None:
    words = "--kernel v6.2 --set gather_calls_ir=false --chaos jitter --seconds 2.5 --stop-on S1"
    words += " --journal-max 64M"
    assert run("stress", *words.split(), "--seed", "0xAB", "--out", "here") == 0
    spec, directory, seconds, _progress, stop_on, size = calls[0]
    assert (spec.workload.kind, spec.seed, spec.operations_max) == ("mixed", 0xAB, None)
    assert (spec.world.kernel.release, spec.world.kernel.mm.gather_calls_ir) == ("v6.2", False)
    assert [rule.name for rule in spec.chaos.rule] == ["jitter"]
    assert (directory, seconds, stop_on, size) == (Path("here"), 2.5, "S1", 64_000_000)
    assert RunSpec.load(elsewhere / "here").world == spec.world
    assert json.loads((elsewhere / "here" / "summary.json").read_text())["exit_code"] == 0


def test_an_endless_workload_is_bounded(calls: list[Any]) -> None:
    run("stress")
    run("stress", "--on", "simulator")
    run("stress", "--operations", "7")
    assert calls[0][2] == stress.SECONDS
    assert calls[1][0].operations_max == stress.OPERATIONS
    assert (calls[2][0].operations_max, calls[2][2]) == (7, None)


def test_a_log_runs_to_its_end(calls: list[Any], elsewhere: Path) -> None:
    log = Path(__file__).parent / "data" / "numpy.strace"
    assert run("stress", "--workload", str(log), "--arch", "arm64") == 0
    spec, directory, seconds, *_ = calls[0]
    assert (spec.workload.kind, spec.world.kernel.machine, seconds) == ("strace", "arm64", None)
    saved = RunSpec.load(elsewhere / directory)
    assert saved.programs()[0].name == spec.programs()[0].name
    assert (elsewhere / directory / "workload.strace").read_bytes() == log.read_bytes()


def test_a_drawn_seed_is_printed(calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    run("stress")
    assert f"seed {calls[0][0].seed:#x}, in runs/" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "seed"), [("12", 12), ("0x12", 18), ("012", 12), ("0", 0)])
def test_seeds(given: str, seed: int) -> None:
    assert values.seed_from(given) == seed


@pytest.mark.parametrize(
    ("given", "value"), [("true", True), ("2", 2), ("neg1_neg1", "neg1_neg1"), ('"a"', "a")]
)
def test_switch_values(given: str, value: object) -> None:
    assert values.switch_value(given) == value


def test_rules_that_stress_can_stop_on_are_all_that_the_oracle_has() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "oracle").glob("*.py"))
    used = {*re.findall(r'rule="(\w+)"', sources), *re.findall(r'Violation\(\s*"(\w+)"', sources)}
    assert used <= {rule.id for rule in rules()}


# ---- what is printed where ---------------------------------------------------------------------


def test_json_is_one_object_and_all_else_is_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "run_on_processes", lambda *_: an_outcome(VIOLATION))
    monkeypatch.setattr("mmurace.report.machine.save_summary", lambda _: None)
    assert run("repro", "E08", "--json") == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["violations"][0]["rule"] == "S1"
    assert err.startswith("running E08-")


def test_a_violation_of_progress_alone_has_a_status_of_its_own() -> None:
    assert an_outcome(Violation("S1", "a", "")).exit_code == 1


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["id", "race", "family", "kernel", "expected"]
    assert err == ""
    assert run("list", "--json") == 0
    races = json.loads(capsys.readouterr().out)["races"]
    assert {"E01", "E08"} <= {race["id"] for race in races}
    assert run("show", "e08") == 0
    assert capsys.readouterr().out.startswith("E08 secondary-flush-after-free: ")
    assert run("show", "secondary-flush-after-free", "--json") == 0
    assert json.loads(capsys.readouterr().out)["id"] == "E08"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert all(f"\n    {command} " in out for command in launch.COMMANDS)


@pytest.mark.parametrize("command", launch.COMMANDS)
def test_a_command_takes_what_the_parser_gives(command: str) -> None:
    needs = {"stress": "", "list": "", "matrix": "", "hunt": "", "tour": "", "conform": "kvm x"}
    given = arguments.parse([command, *needs.get(command, "x").split()])
    assert given.pop("command") == command
    assert set(given) == set(inspect.signature(launch.COMMANDS[command]).parameters)


# ---- all of it, in the simulator ---------------------------------------------------------------


def test_a_race_is_provoked_replayed_and_checked(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*RACE, "--out", "one") == 1
    out = capsys.readouterr().out
    assert out.startswith("VIOLATED: ")
    assert "violated: S1 by iommu0 (iotlb): as expected" in out
    assert "BUG: mmu_notifier: S1: use-after-free in zap_pte_range / DMA store" in out
    command = out.splitlines()[-2].partition("launch.py ")[2].split()
    assert run(*command, "--out", "two") == 1
    assert capsys.readouterr().out.startswith("VIOLATED: ")
    assert run("check", "one", "--json") == 1
    assert json.loads(capsys.readouterr().out)["on"] == "file"
    files = {"schedule", *(path.name for path in (elsewhere / "one").glob("*.journal"))}
    for name in files - {"broker.journal"}:  # the broker's also tells of delays, replayed or not
        assert (elsewhere / "one" / name).read_bytes() == (elsewhere / "two" / name).read_bytes()


def test_a_replay_that_cannot_begin_leaves_nothing(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*RACE, "--out", "one") == 1
    (elsewhere / "one" / "broker.journal").unlink()
    assert run("replay", "one") == 2
    assert "broker.journal: cannot" in capsys.readouterr().err
    assert not list((elsewhere / "runs").iterdir())


def test_a_record_that_is_not_whole_is_no_fault_of_ours(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*RACE, "--out", "one") == 1
    for journal in sorted((elsewhere / "one").glob("*[0-9].journal")):
        whole = journal.read_bytes()
        for size in (999, len(whole) - 1):  # nothing may depend on the last record, which is lost
            journal.write_bytes(whole[:size])
            assert run("check", "one") == 2
            assert "one: is damaged: delivery " in capsys.readouterr().err
        journal.write_bytes(whole)
    assert run("check", "one") == 1
    journal = elsewhere / "one" / "cpu0.journal"
    journal.unlink()
    assert run("replay", "one") == 2
    assert "one/cpu0.journal: cannot be read: No such file" in capsys.readouterr().err


def test_a_schedule_that_does_not_fit_is_bad_input(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*RACE, "--out", "one") == 1
    file = elsewhere / "cut.schedule.toml"
    assert run("minimize", "one", "--seconds", "0.1", "--out", str(file)) == 1
    seal, _, text = file.read_text().partition("\n")
    head, quotes, rest = text.partition("'''")
    file.write_text(f"{head}{quotes}\nnobody/0\n{quotes}{rest.partition(quotes)[2]}")
    for command in ("explain", "minimize"):
        assert run(command, str(file)) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"launch.py: {file}: does not fit: diverged at delivery ")
    file.write_text(f"{seal}\n{file.read_text()}")
    assert run("explain", str(file)) == 2
    assert ":1: does not fit its checksum" in capsys.readouterr().err


def test_time_that_is_over_is_no_interruption(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*RACE, "--out", "one") == 1
    capsys.readouterr()
    assert run("minimize", "one", "--seconds", "0.1", "--json") == 1
    value = json.loads(capsys.readouterr().out)
    assert (value["interrupted"], value["out_of_time"]) == (False, True)
    assert (elsewhere / "one" / "min.schedule.toml").exists()


def test_a_good_kernel_holds(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("repro", "E08", "--kernel", "v6.6", "--on", "simulator", "--seed", "1") == 0
    assert capsys.readouterr().out.startswith("HELD: ")
    assert (elsewhere / "runs" / "latest" / "summary.json").exists()


# ---- all of it, as a program -------------------------------------------------------------------


def program(*words: str, cwd: Path) -> subprocess.Popen[str]:
    """The command line as a process of its own, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *words], cwd=cwd, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_disk_that_is_full_is_named(elsewhere: Path) -> None:
    command = shlex.join([sys.executable, str(ROOT / "launch.py"), *RACE, "--out", "one"])
    done = subprocess.run(  # no file may have more than 16 blocks of 512 bytes
        ["/bin/sh", "-c", f"trap '' XFSZ; ulimit -f 16; exec {command}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert re.search(r"\nlaunch\.py: one/[a-z0-9]+\.journal: File too large\n$", done.stderr)


def test_a_summary_that_cannot_be_written_is_no_verdict(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.save_summary(an_outcome(run_dir=elsewhere / "gone"))
    assert "gone/summary.json cannot be written: No such file" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(elsewhere: Path) -> None:
    process = program("show", "E08", cwd=elsewhere)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.wait(30)
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize("words", [("show", "E99", "--json"), ("show", "E99")])
def test_full_streams_leave_the_status(elsewhere: Path, words: tuple[str, ...]) -> None:
    command = [sys.executable, str(ROOT / "launch.py"), *words]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=full, timeout=60, check=False)
    assert done.returncode == 2


def test_streams_that_are_closed_are_no_error(elsewhere: Path) -> None:
    command = shlex.join([sys.executable, str(ROOT / "launch.py"), *RACE, "--out", "one"])
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {command} <&- >&- 2>&-"], timeout=60, check=False
    )
    assert done.returncode == 1
    assert run("check", "one") == 1


def test_ctrl_c_while_it_starts_is_silent(elsewhere: Path) -> None:
    (elsewhere / "msgspec.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "list"], cwd=elsewhere, capture_output=True,
        text=True, timeout=60, check=False, env=os.environ | {"PYTHONPATH": str(elsewhere)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.processes
def test_a_race_on_processes(elsewhere: Path) -> None:
    process = program("repro", "E08", "--json", "--seed", "5", cwd=elsewhere)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    value = json.loads(out)
    assert value["as_expected"] is True
    assert value["on"] == "processes"


@pytest.mark.processes
def test_ctrl_c_ends_everything_and_leaves_a_readable_run(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = program("stress", "--seconds", "60", "--out", "cut", cwd=elsewhere)
    try:
        wait_until_it_runs(process, elsewhere / "cut" / "memory.journal")
        started = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, 2)
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert out.startswith("INTERRUPTED: ")
    _, alive = psutil.wait_procs(started, timeout=2)
    assert not alive
    capsys.readouterr()
    assert run("check", "cut") == 130
    assert capsys.readouterr().out.startswith("INTERRUPTED: Ctrl-C; ")


def wait_until_it_runs(process: subprocess.Popen[str], journal: Path) -> None:
    """Until the memory node has written something; at most 60 s."""
    for _ in range(600):
        if journal.exists() and journal.stat().st_size > 1000:
            return
        assert process.poll() is None, "it ended before it ran"
        psutil.wait_procs([psutil.Process(process.pid)], timeout=0.1)
    pytest.fail("waited 60 s for the memory node to write its journal")
