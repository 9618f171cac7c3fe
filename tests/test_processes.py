"""Runs on real processes: they work, they repeat, they end, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import zmq
from multiprocess import forkserver, resource_tracker

from mmurace.broker import plan
from mmurace.broker.follow import Follower, compare_runs
from mmurace.broker.plan import ROUTER, Plan
from mmurace.broker.recorder import broker_records, read_record, read_schedule
from mmurace.broker.schedules import RandomWalk, Recorded
from mmurace.broker.supervisor import Supervisor
from mmurace.nodes.packing import pack_world
from mmurace.protocol import signals, wire
from mmurace.protocol.errors import EmulatorError, UserError
from mmurace.protocol.trace import Ending
from tests import toy, worlds
from tests.runs import (
    RUN_SECONDS_MAX,
    balanced,
    endless,
    finish,
    nothing_left_behind,
    one_touch,
    steps_of,
    toys,
)
from tests.test_recorder import chaos, simulate

__all__ = ["nothing_left_behind"]

pytestmark = pytest.mark.processes


# ---- it works ------------------------------------------------------------------------------


def test_a_run_ends_complete_and_its_trace_is_whole(tmp_path: Path) -> None:
    run = toys(tmp_path)
    outcome = finish(run)
    assert outcome.status == plan.QUIESCENT
    assert outcome.ending.complete
    assert outcome.ending.waiting == ()
    assert outcome.ending.finished == 15
    assert balanced(outcome)
    steps = steps_of(run)
    assert [step.n for step in steps] == list(range(1, outcome.ending.deliveries + 1))
    assert read_record(tmp_path).outcome == outcome


def test_one_at_a_time_is_what_the_simulator_does(tmp_path: Path) -> None:
    run = toys(tmp_path / "a", schedule=RandomWalk(7), chaos=chaos())
    outcome = finish(run)
    ending = simulate(tmp_path / "b", RandomWalk(7), chaos())
    assert outcome.ending == ending
    assert compare_runs(tmp_path / "a", tmp_path / "b") is None
    assert read_schedule(tmp_path / "a") == read_schedule(tmp_path / "b")


def test_a_run_under_loss_replays_on_both_brokers(tmp_path: Path) -> None:
    first = finish(toys(tmp_path / "a", count=20, chaos=chaos()))
    assert first.sound, first.detail
    assert balanced(first)
    assert first.chaos["rules"]
    record = read_record(tmp_path / "a")
    assert any(copy for _, _, copy in record.deliveries)
    again = finish(
        toys(tmp_path / "b", count=20, chaos=record.faults, schedule=Recorded(record.deliveries))
    )
    assert again.sound, again.detail
    assert again.ending == first.ending
    assert compare_runs(tmp_path / "a", tmp_path / "b") is None
    assert steps_of(toys(tmp_path / "a")) == steps_of(toys(tmp_path / "b"))
    simulate(tmp_path / "c", Recorded(record.deliveries), count=20, replay=tmp_path / "a")
    assert compare_runs(tmp_path / "a", tmp_path / "c") is None


def test_a_record_that_no_longer_fits_is_named(tmp_path: Path) -> None:
    finish(toys(tmp_path / "a"))
    entries = read_schedule(tmp_path / "a")
    n, _, copy = entries[20]
    entries[20] = (n, "cpu0-0/99", copy)
    outcome = finish(toys(tmp_path / "b", schedule=Recorded(entries)))
    assert outcome.status == plan.DIVERGED
    assert f"delivery {n}" in outcome.detail
    assert "cpu0-0/99" in outcome.detail


def test_given_choices_are_taken(tmp_path: Path) -> None:
    finish(toys(tmp_path / "a"))
    record = read_record(tmp_path / "a")
    first = next(n for n, id_, _ in record.deliveries if id_ == "cpu1-0/0")
    schedule, choices = Recorded(record.deliveries), {first: [("toy", 7, 6)]}
    finish(toys(tmp_path / "b", schedule=schedule, choices=choices))
    taken = [step.records for step in steps_of(toys(tmp_path / "b")) if step.n == first]
    assert taken[0][0].end == 6  # type: ignore[attr-defined]  # an OpBegin


def test_real_nodes_run_on_processes_as_in_the_simulator(tmp_path: Path) -> None:
    world = worlds.small_world()
    run = Plan(tmp_path, world.nodes(), pack_world(world), 1, worlds.small_programs())
    outcome = finish(run)
    assert outcome.ending.complete, outcome
    assert {step.dst for step in steps_of(run)} == set(world.nodes())


def test_the_number_of_deliveries_can_be_bounded(tmp_path: Path) -> None:
    outcome = finish(toys(tmp_path, count=1 << 40, deliveries_max=500))
    assert (outcome.status, outcome.ending.deliveries) == (plan.LIMIT, 500)
    assert not outcome.ending.complete
    assert balanced(outcome)


def test_feeding_can_be_stopped_and_the_run_replays(tmp_path: Path) -> None:
    run = endless(tmp_path / "a")
    follower = Follower(run.directory, run.nodes)
    with Supervisor(run) as supervisor:
        while len(follower.poll()) < 50:
            assert supervisor.wait(0.02) is None
        supervisor.stop_feeding("enough")
        outcome = supervisor.wait(RUN_SECONDS_MAX)
    follower.close()
    assert outcome is not None
    assert outcome.ending.complete
    assert any(record[0] == "stop" for record in broker_records(run.directory))
    record = read_record(run.directory)
    again = toys(
        tmp_path / "b", programs=record.programs(run.programs), chaos=record.faults,
        schedule=Recorded(record.deliveries),
    )  # fmt: skip
    assert finish(again).ending == outcome.ending
    assert compare_runs(tmp_path / "a", tmp_path / "b") is None


class Looking(Supervisor):
    """Looks at the socket before anybody may be told that all are there."""

    def _say_hello(self) -> None:
        directory = Path(self.directory)
        assert directory.stat().st_mode & 0o077 == 0
        super()._say_hello()


def test_nobody_else_can_reach_the_socket(tmp_path: Path) -> None:
    with Looking(endless(tmp_path)) as supervisor:
        assert supervisor.directory
        assert not Path(supervisor.directory).exists()


def test_two_runs_side_by_side_do_not_meet(tmp_path: Path) -> None:
    with (
        Supervisor(toys(tmp_path / "a", schedule=RandomWalk(1))) as one,
        Supervisor(toys(tmp_path / "b", schedule=RandomWalk(1))) as other,
    ):
        assert one.wait(RUN_SECONDS_MAX) == other.wait(RUN_SECONDS_MAX) is not None
    assert compare_runs(tmp_path / "a", tmp_path / "b") is None


def test_whoever_is_never_answered_is_found(tmp_path: Path) -> None:
    outcome = finish(one_touch(tmp_path, toy.HANG))
    assert outcome.status == plan.QUIESCENT
    assert not outcome.ending.complete
    assert ("odd/0.0", "PtlLock", "cpu1", "cpu0") in outcome.ending.waiting
    quiet = [record for record in broker_records(tmp_path) if record[0] == "quiet"]
    assert ["odd/0.0", "PtlLock", "cpu1", "cpu0"] in quiet[0][2]


# ---- it breaks -----------------------------------------------------------------------------


def test_an_error_in_a_node_ends_the_run_with_its_traceback(tmp_path: Path) -> None:
    outcome = finish(one_touch(tmp_path, toy.RAISE))
    assert outcome.status == plan.NODE_DIED
    assert not outcome.sound
    assert "cpu1" in outcome.detail
    assert "RuntimeError: as told" in outcome.detail
    steps_of(toys(tmp_path))


def test_a_node_that_kills_itself_ends_the_run(tmp_path: Path) -> None:
    run = one_touch(tmp_path, toy.DIE)
    outcome = finish(run)
    assert outcome.status == plan.NODE_DIED
    assert outcome.detail.endswith("cpu1 was killed by SIGKILL")
    assert ["died", "cpu1"] in [[r[0], r[2]] for r in broker_records(tmp_path) if r[0] == "died"]
    assert all(step.id != "odd/0" for step in steps_of(run))


@pytest.mark.parametrize("victim", ["router", "cpu0", "cpu2"])
def test_a_killed_process_ends_the_run_at_once(tmp_path: Path, victim: str) -> None:
    run = endless(tmp_path)
    with Supervisor(run) as supervisor:
        assert supervisor.wait(0.2) is None
        os.kill(supervisor.pids[victim], signal.SIGKILL)
        began = time.monotonic()
        outcome = supervisor.wait(RUN_SECONDS_MAX)
    assert time.monotonic() - began < 3.0
    assert outcome is not None
    assert outcome.status == (plan.ROUTER_DIED if victim == "router" else plan.NODE_DIED)
    assert f"{victim} was killed by SIGKILL" in outcome.detail
    assert not Path(supervisor.directory).exists()
    steps = steps_of(run)
    assert steps[-1].n <= outcome.ending.deliveries
    for name in run.nodes:  # what nodes did is in the trace, to the last whole record
        assert sum(step.dst == name for step in steps) > 0


def test_a_world_that_cannot_be_built_does_not_start(tmp_path: Path) -> None:
    with (
        pytest.raises(EmulatorError, match="cannot be imported"),
        Supervisor(toys(tmp_path, build="tests.toy:nothing")),
    ):
        pass


def test_a_program_for_nobody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="program cpu2-0"):
        Supervisor(toys(tmp_path, nodes=("cpu0", "cpu1")))


@pytest.mark.parametrize(
    "names", [("a", "a"), ("broker",), ("launcher",), ("router",), ("../a",), ()]
)
def test_bad_names_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="nodes"):
        Supervisor(toys(tmp_path, nodes=names))


def test_a_directory_with_a_run_is_refused(tmp_path: Path) -> None:
    finish(toys(tmp_path))
    with pytest.raises(UserError, match="recorded here already"):
        Supervisor(toys(tmp_path))
    with pytest.raises(UserError, match="not a directory"):
        Supervisor(toys(tmp_path, directory=tmp_path / "none"))


class _Exited:
    """A process that has left in order."""

    exitcode = 0

    def join(self, _seconds: float) -> None:
        """It has."""


class _LateSocket:
    """A message is there only after somebody has waited for it."""

    def __init__(self, *frames: bytes) -> None:
        self.frames, self.arrived = list(frames), 0

    def poll(self, milliseconds: int) -> int:
        """Waiting is what lets one arrive."""
        self.arrived += milliseconds > 0
        return int(bool(self.frames) and self.arrived > 0)

    def recv(self, _flags: int) -> bytes:
        """Nothing, before."""
        if not self.frames or not self.arrived:
            raise zmq.Again
        self.arrived -= 1
        return self.frames.pop(0)


def test_the_last_word_of_a_router_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    ending = Ending(5, 1, True, ())
    said = plan.Outcome(plan.QUIESCENT, ending, {})
    supervisor = Supervisor(toys(tmp_path))
    supervisor.processes[ROUTER] = _Exited()
    late = _LateSocket(wire.control_frame("end", said))
    supervisor._socket = late  # type: ignore[assignment]  # stands in for one
    supervisor._gone(ROUTER)
    assert supervisor.outcome == said


# ---- it is interrupted ---------------------------------------------------------------------


def test_leaving_early_ends_everything_within_a_second(tmp_path: Path) -> None:
    run = endless(tmp_path)
    supervisor = Supervisor(run)
    supervisor.__enter__()
    assert supervisor.wait(0.2) is None
    began = time.monotonic()
    supervisor.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert time.monotonic() - began < 2.5  # a second, and a busy machine
    assert supervisor.outcome is not None
    assert supervisor.outcome.status == plan.ABORTED
    record = read_record(tmp_path)
    assert record.outcome == supervisor.outcome
    assert len(steps_of(run)) > 0


SCRIPT = """
import os, sys
from pathlib import Path
import psutil
from mmurace.broker.supervisor import Supervisor
from tests.runs import endless
with Supervisor(endless(Path(sys.argv[1]))) as run:
    parents = {psutil.Process(pid).ppid() for pid in run.pids.values()} - {os.getpid()}
    print(run.directory, *run.pids.values(), *parents, flush=True)
    run.wait(60)
"""


def _launch(directory: Path) -> tuple[subprocess.Popen[str], Path, list[int]]:
    """A launcher of its own, as a user would start it, in a process group of its own."""
    script = directory / "script.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parent.parent)
    launcher = subprocess.Popen(
        [sys.executable, str(script), str(directory / "run")],
        text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": root},
    )  # fmt: skip
    assert launcher.stdout is not None
    sockets_at, *pids = launcher.stdout.readline().split()
    return launcher, Path(sockets_at), [int(pid) for pid in pids]


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(_alive, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_ctrl_c_ends_every_process_within_a_second(tmp_path: Path) -> None:
    launcher, sockets_at, pids = _launch(tmp_path)
    os.killpg(launcher.pid, signal.SIGINT)
    assert _gone(pids, 2.5)  # a second, and a busy machine
    _, errors = launcher.communicate(timeout=10)
    assert errors.count("Traceback") == 1  # the launcher's own KeyboardInterrupt, no child's
    assert not sockets_at.exists()
    outcome = read_record(tmp_path / "run").outcome
    assert outcome is not None
    assert outcome.status == plan.ABORTED


def test_children_of_a_killed_launcher_leave(tmp_path: Path) -> None:
    launcher, sockets_at, pids = _launch(tmp_path)
    launcher.kill()
    assert _gone(pids, 5.0)
    launcher.communicate(timeout=10)
    assert not sockets_at.exists()
    assert len(steps_of(toys(tmp_path / "run"))) > 0


def test_a_killed_server_of_processes_leaves_none_behind(tmp_path: Path) -> None:
    with Supervisor(endless(tmp_path)) as supervisor:
        pids = list(supervisor.pids.values())
        server = psutil.Process(pids[0]).ppid()
        assert server != os.getpid()
        os.kill(server, signal.SIGKILL)
        outcome = supervisor.wait(RUN_SECONDS_MAX)
    assert outcome is not None
    assert not outcome.sound
    assert _gone(pids, 0.0)


def test_processes_import_what_the_launcher_does(tmp_path: Path) -> None:
    """Not what lies in the directory that a user is in."""
    for name in ("broker", "nodes", "protocol"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)\n")
    launcher = Path(__file__).parent.parent / "launch.py"
    command = [sys.executable, str(launcher), "repro", "E08", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert (done.returncode, b"SystemExit" in done.stderr) == (1, False)


def test_a_server_of_processes_that_is_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: object) -> None:
        raise EOFError("unexpected EOF")

    monkeypatch.setattr(forkserver, "connect_to_new_process", gone)
    with (
        pytest.raises(EmulatorError, match="cpu0 could not be started"),
        Supervisor(endless(tmp_path)),
    ):
        pass


def test_a_killed_tracker_is_no_news(tmp_path: Path) -> None:
    finish(toys(tmp_path / "a"))
    tracker = resource_tracker._resource_tracker._pid
    os.kill(tracker, signal.SIGKILL)
    psutil.Process(tracker).wait(timeout=10)
    assert finish(toys(tmp_path / "b")).sound  # a warning would be an error
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & signals.ENDING


def test_a_paused_node_is_waited_for(tmp_path: Path) -> None:
    run = endless(tmp_path)
    with Supervisor(run) as supervisor:
        os.kill(supervisor.pids["cpu1"], signal.SIGSTOP)
        assert supervisor.wait(1.0) is None
        os.kill(supervisor.pids["cpu1"], signal.SIGCONT)
        supervisor.stop_feeding()
        outcome = supervisor.wait(RUN_SECONDS_MAX)
    assert outcome is not None
    assert outcome.ending.complete
