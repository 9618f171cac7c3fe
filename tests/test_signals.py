"""The signals that end a run, to whom and whenever: quiet, the right exit status, nothing left."""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mmurace.broker import supervisor
from mmurace.explorer.run import session
from mmurace.protocol import signals
from mmurace.report.interrupts import TOGETHER_SECONDS, Interrupter, interruptible
from mmurace.scenarios.catalogue import find

ROOT = Path(__file__).resolve().parents[1]
SECONDS_MAX = 60.0
RUN = ["stress", "--seconds", "60", "--out", "run"]


class Launched:
    """A run in a session of its own, with a directory of its own for temporary files."""

    def __init__(self, directory: Path, *words: str, **more: object) -> None:
        self.directory = directory
        self.temporary = directory / "t"
        self.temporary.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch.py"), *words], cwd=directory, text=True,
            start_new_session=True, env=os.environ | {"TMPDIR": str(self.temporary)},
            **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more),  # type: ignore[call-overload]  # as Popen takes them
        )  # fmt: skip

    def wait_for(self, what: str) -> None:
        """Until a file is there that fits."""
        for _ in range(int(SECONDS_MAX * 100)):
            if any(self.directory.glob(what)):
                return
            assert self.process.poll() is None, "it ended before it came so far"
            psutil.wait_procs([psutil.Process(self.process.pid)], timeout=0.01)
        pytest.fail(f"waited {SECONDS_MAX} s for {what}")

    def all(self) -> list[psutil.Process]:
        """Every process of its session that lives."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.process.pid and process.is_running():
                    found.append(process)
            except (OSError, psutil.NoSuchProcess):
                continue
        return [p for p in found if p.pid != self.process.pid]

    def check_end(self, status: int = 130) -> None:
        """It ended so, said nothing of its inside, and left nothing."""
        _, errors = self.process.communicate(timeout=SECONDS_MAX)
        assert self.process.returncode == status, errors
        for word in ("Traceback", "Error", "Exception", "Warning"):
            assert word not in (errors or "")
        psutil.wait_procs(self.all(), timeout=5)
        assert self.all() == []
        assert list(self.temporary.iterdir()) == []
        command = [sys.executable, str(ROOT / "launch.py"), "check", "run"]
        done = subprocess.run(
            command, cwd=self.directory, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == status


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose name is short enough for a socket."""
    made = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    yield made
    shutil.rmtree(made)


TO_GROUP, TO_LAUNCHER, TWICE = "group", "launcher", "as timeout does"
MOMENTS = {
    "it starts": "run/run.toml", "its server starts": "t/mmu-emulator-*/listener-*",
    "its router is there": "run/broker.journal", "it runs": "run/memory.journal",
}  # fmt: skip


@pytest.mark.processes
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    ("ending", "whom"),
    [
        (signal.SIGINT, TO_GROUP), (signal.SIGTERM, TWICE), (signal.SIGHUP, TO_GROUP),
        (signal.SIGTERM, TO_LAUNCHER),
    ],
)  # fmt: skip
def test_a_run_is_interrupted(short: Path, moment: str, ending: signal.Signals, whom: str) -> None:
    run = Launched(short, *RUN)
    run.wait_for(MOMENTS[moment])
    if whom in (TO_LAUNCHER, TWICE):
        run.process.send_signal(ending)
    if whom in (TO_GROUP, TWICE):
        os.killpg(run.process.pid, ending)
    run.check_end()


def test_who_reads_a_run_that_was_interrupted_before_anything_started_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(supervisor, "_start_tracker", interrupted)
    spec = find("E01").run("v5.7").save(tmp_path)
    assert session.run_on_processes(spec, tmp_path).status == "interrupted"
    assert session.check(tmp_path).status == "interrupted"


@pytest.mark.processes
@pytest.mark.parametrize("ending", [*signals.ENDING, signal.SIGPIPE])
def test_a_child_leaves_that_to_the_launcher(short: Path, ending: signal.Signals) -> None:
    run = Launched(short, *RUN)
    run.wait_for("run/run.toml")
    run.wait_for("t/mmu-emulator-*/listener-*")
    for _ in range(2):
        for child in run.all():
            child.send_signal(ending)
        run.wait_for("run/memory.journal")
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGINT)
    run.check_end()


@pytest.mark.processes
def test_a_terminal_is_closed(short: Path) -> None:
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    run = Launched(
        short, *RUN, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=take_terminal
    )
    os.close(theirs)
    run.wait_for("run/memory.journal")
    os.close(ours)
    run.check_end()


@pytest.mark.processes
def test_what_a_killed_group_leaves_goes_at_the_next_start(short: Path) -> None:
    run = Launched(short, *RUN)
    run.wait_for("t/mmu-emulator-*/listener-*")
    os.killpg(run.process.pid, signal.SIGKILL)
    run.process.communicate(timeout=SECONDS_MAX)
    psutil.wait_procs(run.all(), timeout=5)
    left = {path.name for path in run.temporary.iterdir()}
    assert left
    command = [sys.executable, str(ROOT / "launch.py"), "repro", "E08", "--out", "again"]
    environment = os.environ | {"TMPDIR": str(run.temporary)}
    done = subprocess.run(
        command, cwd=short, env=environment, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert list(run.temporary.iterdir()) == []


# ---- the handler ---------------------------------------------------------------------------


@pytest.fixture
def own_handlers() -> Iterator[None]:
    """The handlers of before come back."""
    before = {ending: signal.getsignal(ending) for ending in signals.ENDING}
    yield
    for ending, handler in before.items():
        signal.signal(ending, handler)


def struck(by: signal.Signals) -> int:
    """A command at whose end a signal comes."""
    signal.raise_signal(by)
    return 0


def interrupting(then: Callable[[], int]) -> Callable[[], int]:
    """A command that is interrupted, and what it does about that."""

    def command() -> int:
        try:
            signal.raise_signal(signal.SIGHUP)
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGTERM)  # the same one again
            return then()
        return 99

    return command


@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize(("status", "told"), [(0, 0), (1, 1), (4, 130), (130, 130)])
def test_what_there_is_of_an_interrupted_command_counts(status: int, told: int) -> None:
    assert interruptible(interrupting(lambda: status)) == told
    assert all(signal.getsignal(ending) is signal.SIG_IGN for ending in signals.ENDING)


@pytest.mark.usefixtures("own_handlers")
def test_a_signal_as_the_command_begins_or_ends_is_no_traceback() -> None:
    assert interruptible(lambda: struck(signal.SIGTERM)) == 130


@pytest.mark.usefixtures("own_handlers")
def test_what_shall_be_ignored_is_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert interruptible(lambda: struck(signal.SIGHUP)) == 0


def test_the_next_one_that_is_meant_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5.0]
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    handler = Interrupter(lambda: now[0])
    with pytest.raises(KeyboardInterrupt):
        handler()
    handler()
    assert ended == []
    now[0] += TOGETHER_SECONDS + 0.1
    handler()
    assert ended == [130]


def test_held_signals_come_afterwards() -> None:
    reached = False

    def interrupted_inside() -> None:
        nonlocal reached
        with signals.held():
            signal.raise_signal(signal.SIGINT)
            reached = True

    with pytest.raises(KeyboardInterrupt):
        interrupted_inside()
    assert reached
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & signals.ENDING
