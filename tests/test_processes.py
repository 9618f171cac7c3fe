"""Runs on real processes: they work, they repeat, they end, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from broker import plan, router
from broker.follow import Follower, compare_runs
from broker.plan import Outcome, Plan
from broker.programs import Program
from broker.recorder import broker_records, read_record, read_schedule
from broker.schedules import RandomWalk, Recorded
from broker.supervisor import Supervisor
from nodes import sockets
from protocol import codec, limits, wire
from protocol.errors import EmulatorError, TimedOut, UserError
from protocol.messages.memory import PteLoad
from protocol.trace import TraceStep
from tests import toy, worlds
from tests.test_recorder import chaos, simulate

pytestmark = pytest.mark.processes

RUN_SECONDS_MAX = 60.0


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Every process that a test starts is gone at its end (the resource tracker stays)."""
    before = set(_children())
    yield
    assert set(_children()) <= before


def _children() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "resource_tracker" not in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def toys(path: Path, count: int = 5, **changes: Any) -> Plan:
    """A plan for toy nodes in a new directory."""
    path.mkdir(exist_ok=True)
    fields: dict[str, Any] = {
        "directory": path, "nodes": toy.NODES, "world": toy.world(), "seed": 1,
        "programs": toy.programs(count), "build": toy.BUILD,
    }  # fmt: skip
    return Plan(**(fields | changes))


def one_touch(directory: Path, address: int, **changes: Any) -> Plan:
    """A plan with one touch of a telling address, among others."""
    odd = Program("odd", "cpu1", toy.Touches(1, address))
    return toys(directory, programs=(odd, *toy.programs(3)), **changes)


def endless(directory: Path) -> Plan:
    """A plan that does not end by itself."""
    return toys(directory, count=1 << 40)


def finish(run: Plan) -> Outcome:
    """Run a plan to its end."""
    with Supervisor(run) as supervisor:
        outcome = supervisor.wait(RUN_SECONDS_MAX)
        assert not any(path.stat().st_mode & 0o077 for path in [Path(supervisor.directory)])
    assert outcome is not None
    assert not Path(supervisor.directory).exists()
    return outcome


def steps_of(run: Plan) -> list[TraceStep]:
    """The whole trace of a run that is over."""
    follower = Follower(run.directory, run.nodes)
    steps = [*follower.poll(), *follower.rest()]
    follower.close()
    return steps


def balanced(outcome: Outcome) -> bool:
    """Whether every message is accounted for."""
    c = dict(outcome.counts)
    came = c.pop("sent") + c.pop("duplicated") + c.pop("retransmitted")
    return came == sum(c.values())


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
    assert balanced(first)
    assert first.chaos["rules"]
    record = read_record(tmp_path / "a")
    assert any(copy for _, _, copy in record.deliveries)
    again = finish(
        toys(tmp_path / "b", count=20, chaos=record.faults, schedule=Recorded(record.deliveries))
    )
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
    run = Plan(tmp_path, world.nodes(), codec.pack(world), 1, worlds.small_programs())
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
    assert outcome.detail == "cpu1 was killed by SIGKILL"
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
    assert "SIGKILL" in outcome.detail
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


def test_who_does_not_come_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "READY_SECONDS_MAX", 1.0)
    context: zmq.Context[sockets.Socket] = zmq.Context()
    endpoint = f"ipc://{tmp_path}/s"
    socket = sockets.router(context, endpoint)
    here = router.Router(toys(tmp_path / "run"), socket, "token")
    launcher = sockets.dealer(context, endpoint)
    launcher.send(wire.control_frame("hello", "launcher", "token"))
    here.run()
    words = wire.header(launcher.recv())
    context.destroy(linger=0)
    assert words[0] == "end"
    assert words[1][0] == plan.NOT_READY
    assert words[1][-1] == "no hello from cpu0, cpu1, cpu2"


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


# ---- it is interrupted ---------------------------------------------------------------------


def test_leaving_early_ends_everything_within_a_second(tmp_path: Path) -> None:
    run = endless(tmp_path)
    supervisor = Supervisor(run)
    supervisor.__enter__()
    assert supervisor.wait(0.2) is None
    began = time.monotonic()
    supervisor.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert time.monotonic() - began < 1.5
    assert supervisor.outcome is not None
    assert supervisor.outcome.status == plan.ABORTED
    record = read_record(tmp_path)
    assert record.outcome == supervisor.outcome
    assert len(steps_of(run)) > 0


SCRIPT = """
import sys
from pathlib import Path
from broker.supervisor import Supervisor
from tests.test_processes import endless
with Supervisor(endless(Path(sys.argv[1]))) as run:
    print(run.directory, *run.pids.values(), flush=True)
    run.wait(60)
"""


def _launch(directory: Path) -> tuple[subprocess.Popen[str], Path, list[int]]:
    """A launcher of its own, as a user would start it, in a process group of its own."""
    script = directory / "script.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parent.parent)
    launcher = subprocess.Popen(
        [sys.executable, str(script), str(directory / "run")], text=True, start_new_session=True,
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
    assert _gone(pids, 1.5)
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


# ---- strangers -----------------------------------------------------------------------------


def _frames_of_strangers(token: str) -> dict[str, list[bytes]]:
    """What a stranger may say, by the reason for which it is rejected."""
    body = codec.pack(PteLoad(0, 0))
    return {
        "hello with a wrong token": [wire.control_frame("hello", "cpu0", "guess")],
        "hello with a name already claimed": [wire.control_frame("hello", "cpu0", token)],
        "hello from a node that does not exist": [wire.control_frame("hello", "cpu9", token)],
        "malformed control message": [wire.control_frame("hello", 7, token)],
        "from somebody who has not said hello": [wire.control_frame("stop", "now")],
        "not msgpack": [b"\xc1\xc1\xc1"],
        "header is not a list": [codec.pack({"n": 1})],
        "oversized": [b"\x00" * (limits.ZMQ_MESSAGE_BYTES_MAX - 100) + bytes(101)],
        "a handling": [codec.pack([1, ["x", "cpu1", "PteLoad", "", ""]]), body, b""],
    }


def test_strangers_are_counted_and_change_nothing(tmp_path: Path) -> None:
    run = endless(tmp_path)
    with Supervisor(run) as supervisor:
        context: zmq.Context[sockets.Socket] = zmq.Context()
        said = _frames_of_strangers(supervisor.token)
        endpoint = router.endpoint(supervisor.directory)
        strangers = [sockets.dealer(context, endpoint) for _ in said]
        for stranger, frames in zip(strangers, said.values(), strict=True):
            stranger.send_multipart(frames)
        named = context.socket(zmq.DEALER)  # one that claims the identity of a connection
        named.setsockopt(zmq.IDENTITY, b"cpu0")
        named.connect(endpoint)
        named.send(wire.control_frame("hello", "cpu0", "guess"))
        supervisor.wait(0.5)
        context.destroy(linger=0)
        supervisor.stop_feeding()
        outcome = supervisor.wait(RUN_SECONDS_MAX)
    assert outcome is not None
    assert outcome.ending.complete
    assert outcome.rejected.pop("hello with a wrong token") == 2
    assert outcome.rejected.pop("from somebody who has not said hello") == 2
    assert set(outcome.rejected) == {
        "hello with a name already claimed", "hello from a node that does not exist",
        "malformed control message", "not msgpack", "header is not a list",
    }  # fmt: skip
    assert balanced(outcome)


class Impostor:
    """A router in this process, and a node that says what it likes."""

    def __init__(self, directory: Path) -> None:
        self.context: zmq.Context[sockets.Socket] = zmq.Context()
        endpoint = f"ipc://{directory}/s"
        socket = sockets.router(self.context, endpoint)
        self.run = toys(directory / "run", nodes=("cpu0",), programs=toy.programs(1, ("cpu0",)))
        self.router = router.Router(self.run, socket, "token")
        self.node = sockets.dealer(self.context, endpoint)


BODY = codec.pack(PteLoad(0, 0))
LARGE = b"\x00" * (limits.MESSAGE_BYTES_MAX + 1)


@pytest.mark.parametrize(
    ("head", "body", "reason"),
    [
        (["x", "nobody", "PteLoad", "", ""], BODY, "to a node that does not exist"),
        (["x", "cpu0", "NoSuchKind", "", ""], BODY, "of an unknown kind"),
        (["x", "cpu0", "PteLoad", "", ""], LARGE, "oversized"),
        (["x", "cpu0", "PteLoad", ""], BODY, "malformed address"),
        (["x", ["cpu0"], "PteLoad", "", ""], BODY, "malformed address"),
        ([7, "cpu0", "PteLoad", "", ""], BODY, "malformed address"),
        ("x", BODY, "malformed address"),
    ],
)
def test_a_bad_message_of_a_node_is_counted(
    tmp_path: Path, head: Any, body: bytes, reason: str
) -> None:
    impostor = Impostor(tmp_path)
    here = impostor.router
    here.exchange.start()
    ((n, envelope),) = here.dispatcher.take()
    here._from_node("cpu0", [b"", codec.pack([n, head]), body, b""])
    impostor.context.destroy(linger=0)
    assert here.rejected == {reason: 1}
    assert here.exchange.counts.rejected == 1
    assert here.exchange.counts.balance(here.exchange.pending) == 0
    assert here.in_flight[envelope.dst] == here.in_flight["cpu0"]
    assert not here.in_flight["cpu0"]


def test_a_body_that_does_not_parse_is_rejected_by_its_receiver(tmp_path: Path) -> None:
    run = toys(tmp_path, chaos=Garble())
    outcome = finish(run)
    assert outcome.status == plan.QUIESCENT
    assert sum(outcome.rejected.values()) == 1
    assert next(iter(outcome.rejected)).startswith("body of a message to cpu")
    assert not outcome.ending.complete


class Garble:
    """A chaos that breaks the body of one message; no rule can do that."""

    done = False

    def fault(self, envelope: Any) -> None:
        """Break the first ``PteLoad``."""
        if envelope.kind == "PteLoad" and not self.done:
            self.done, envelope.body = True, b"\xc1"

    def delivered(self, envelope: Any) -> tuple[()]:
        """Nothing is held."""
        return ()

    def hold(self, envelope: Any, rule: str) -> None:
        """Never called."""

    def give_up(self) -> tuple[()]:
        """Nothing is held."""
        return ()

    def heal(self) -> tuple[()]:
        """Nothing is held."""
        return ()


def test_a_node_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HANDLING_SECONDS_MAX", 0.05)
    monkeypatch.setattr(limits, "SOCKET_SECONDS_MAX", 0.02)
    impostor = Impostor(tmp_path)
    impostor.node.send(wire.control_frame("hello", "cpu0", "token"))
    impostor.node.send(wire.control_frame("ready"))
    launcher = sockets.dealer(impostor.context, f"ipc://{tmp_path}/s")
    launcher.send(wire.control_frame("hello", "launcher", "token"))
    impostor.router.run()
    impostor.context.destroy(linger=0)
    assert impostor.router.status == plan.STUCK
    assert impostor.router.detail.startswith("cpu0 has not handled delivery 1")


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


def test_timed_out_says_what_and_how_long() -> None:
    assert str(TimedOut("the router", 2.0)) == "waited 2 s for the router"
