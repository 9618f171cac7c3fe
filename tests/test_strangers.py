"""Other processes that find the socket: they are let in never, and the run is as without them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from mmurace.broker import plan
from mmurace.broker.plan import ROUTER, Plan
from mmurace.broker.router import endpoint
from mmurace.broker.supervisor import Supervisor
from mmurace.nodes import sockets
from tests.runs import RUN_SECONDS_MAX, balanced, endless, nothing_left_behind, toys

__all__ = ["nothing_left_behind"]

pytestmark = pytest.mark.processes

ROUTER_BYTES_MAX = 100 * 1024 * 1024
IDLE, FRAMES, LARGE = 1000, 100_000, 17 * 1024 * 1024
STRANGER = f"""
import socket, sys
path, kind = sys.argv[1:]
GREETING = b"\\xff" + bytes(8) + b"\\x7f\\x03\\x00NULL".ljust(54, b"\\0")
def connected():
    while True:
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(10)
        try:
            one.connect(path)
            return one
        except (BlockingIOError, FileNotFoundError, ConnectionRefusedError):
            one.close()
def say(one, data):
    try:
        one.sendall(data)
        while one.recv(4096):
            pass
        return True
    except OSError:
        return True
kept = []
if kind == "idle":
    for _ in range({IDLE}):
        kept.append(connected())
    closed = sum(say(one, b"") for one in kept)
elif kind == "frames":
    closed = say(connected(), GREETING + b"\\x00\\x03abc" * {FRAMES})
elif kind == "large":
    closed = sum(say(connected(), GREETING + bytes({LARGE})) for _ in range(5))
elif kind == "many":
    closed = sum(say(connected(), GREETING) for _ in range(2000))
print(int(closed), flush=True)
sys.stdin.read()
"""


class Besieged(Supervisor):
    """A run that cannot begin before strangers have done their worst, and keep what they have."""

    def __init__(self, run: Plan, *kinds: str) -> None:
        super().__init__(run)
        self.kinds = kinds
        self.strangers: list[subprocess.Popen[str]] = []
        self.closed: list[int] = []

    def _say_hello(self) -> None:
        where = endpoint(self.directory).removeprefix("ipc://")
        self.strangers = [
            subprocess.Popen(
                [sys.executable, "-c", STRANGER, where, kind], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
            for kind in self.kinds
        ]  # fmt: skip
        for stranger in self.strangers:
            assert stranger.stdout is not None
            self.closed.append(int(stranger.stdout.readline()))
        super()._say_hello()

    def router_bytes(self) -> int:
        """What the router has in memory."""
        size: int = psutil.Process(self.pids[ROUTER]).memory_info().rss
        return size

    def __exit__(self, *why: Any) -> None:
        for stranger in self.strangers:
            stranger.communicate(timeout=RUN_SECONDS_MAX)
        super().__exit__(*why)


@pytest.mark.parametrize(
    ("kind", "closed"), [("idle", IDLE), ("frames", 1), ("large", 5), ("many", 2000)]
)
def test_a_run_is_as_without_them(tmp_path: Path, kind: str, closed: int) -> None:
    supervisor = Besieged(toys(tmp_path, count=2000), kind)
    with supervisor:
        size = supervisor.router_bytes()
        outcome = supervisor.wait(RUN_SECONDS_MAX)
    assert supervisor.closed == [closed]
    assert outcome is not None
    assert outcome.status == plan.QUIESCENT
    assert outcome.ending.complete
    assert outcome.ending.finished == 6000
    assert outcome.rejected == {}
    assert balanced(outcome)
    assert size < ROUTER_BYTES_MAX


def test_a_node_dies_while_they_are_there(tmp_path: Path) -> None:
    supervisor = Besieged(endless(tmp_path), "idle", "frames", "many")
    with supervisor:
        os.kill(supervisor.pids["cpu1"], signal.SIGKILL)
        outcome = supervisor.wait(10.0)
    assert outcome is not None
    assert outcome.status == plan.NODE_DIED
    assert outcome.detail.endswith("cpu1 was killed by SIGKILL")
    assert outcome.rejected == {}


def test_nobody_can_connect_once_it_runs(tmp_path: Path) -> None:
    with Supervisor(endless(tmp_path)) as supervisor:
        where = endpoint(supervisor.directory).removeprefix("ipc://")
        with socket.socket(socket.AF_UNIX) as late, pytest.raises(FileNotFoundError):
            late.connect(where)
        supervisor.stop_feeding()
        assert supervisor.wait(RUN_SECONDS_MAX) is not None


def test_a_process_that_is_not_named_is_not_heard(tmp_path: Path) -> None:
    context: zmq.Context[sockets.Socket] = zmq.Context()
    address = f"ipc://{tmp_path}/s"
    here = sockets.router(context, address, [os.getpid()])
    script = (
        "import sys, zmq\ns = zmq.Context().socket(zmq.DEALER)\ns.setsockopt(zmq.LINGER, 500)\n"
        "s.connect(sys.argv[1])\ns.send(b'theirs')\n"
    )
    subprocess.run([sys.executable, "-c", script, address], timeout=60, check=True)
    ours = sockets.dealer(context, address)
    ours.send(b"ours")
    assert sockets.receive(here)[1:] == [b"ours"]
    with pytest.raises(zmq.Again):
        sockets.receive(here, zmq.NOBLOCK)
    context.destroy(linger=0)
