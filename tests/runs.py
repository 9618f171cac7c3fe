"""Runs of toy nodes on real processes, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mmurace.broker.follow import Follower
from mmurace.broker.plan import Outcome, Plan
from mmurace.broker.programs import Program
from mmurace.broker.supervisor import Supervisor
from mmurace.protocol.trace import TraceStep
from tests import toy

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
