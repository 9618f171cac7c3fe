"""Runs of toy nodes on real processes, for tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from mmurace.broker import router
from mmurace.broker.follow import Follower
from mmurace.broker.plan import Outcome, Plan
from mmurace.broker.programs import Program
from mmurace.broker.supervisor import Supervisor
from mmurace.nodes import sockets
from mmurace.protocol import wire
from mmurace.protocol.trace import TraceStep
from tests import toy

RUN_SECONDS_MAX = 60.0
SERVERS = ("multiprocess.resource_tracker", "multiprocess.forkserver")


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Every process that a test starts is gone at its end; those of ``multiprocess`` stay."""
    before = set(_children())
    yield
    assert set(_children()) <= before


def _children() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())
            forked_off = child.ppid() != os.getpid()  # they have their server's command line
            if not any(name in command for name in SERVERS) or forked_off:
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


def endless(directory: Path, **changes: Any) -> Plan:
    """A plan that does not end by itself."""
    return toys(directory, count=1 << 40, **changes)


def finish(run: Plan) -> Outcome:
    """Run a plan to its end."""
    with Supervisor(run) as supervisor:
        outcome = supervisor.wait(RUN_SECONDS_MAX)
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


class Crowded(Supervisor):
    """A run with strangers: sockets of the launcher's own process, which may connect."""

    def __init__(self, run: Plan, strangers: int) -> None:
        super().__init__(run)
        self.context: zmq.Context[sockets.Socket] = zmq.Context()
        self.strangers = [self.context.socket(zmq.DEALER) for _ in range(strangers)]

    def _say_hello(self) -> None:
        """All of them are connected before the run can begin: each was refused once."""
        for number, stranger in enumerate(self.strangers):
            stranger.setsockopt(zmq.LINGER, 0)
            stranger.setsockopt(zmq.SNDHWM, 0)
            stranger.setsockopt(zmq.RCVTIMEO, int(RUN_SECONDS_MAX * 1000))
            stranger.setsockopt(zmq.IDENTITY, f"cpu{number}".encode())  # nobody's, all the same
            stranger.connect(router.endpoint(self.directory))
            stranger.send(wire.control_frame("hello", "nobody", self.token))
            assert wire.header(stranger.recv())[0] == "rejected"
        super()._say_hello()

    def __exit__(self, *why: Any) -> None:
        self.context.destroy(linger=0)
        super().__exit__(*why)


def change_by_hand(path: Path, old: str, new: str) -> None:
    """Change a sealed file once as a person is told to: the line with the checksum goes."""
    text = path.read_text().partition("\n")[2]
    assert old in text
    path.write_text(text.replace(old, new, 1))
