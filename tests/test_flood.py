"""A client that floods a running router with nonsense: all refused, all counted, nothing harmed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmurace.broker.follow import compare_runs
from mmurace.broker.plan import Outcome
from mmurace.broker.programs import Program
from mmurace.broker.recorder import read_record
from mmurace.broker.schedules import Recorded
from mmurace.protocol import codec, limits, wire
from mmurace.protocol.errors import PeerError
from mmurace.protocol.messages.memory import PteLoad
from tests import toy
from tests.runs import (
    RUN_SECONDS_MAX,
    Crowded,
    balanced,
    endless,
    finish,
    nothing_left_behind,
    toys,
)
from tests.test_router import Impostor, impostor

__all__ = ["impostor", "nothing_left_behind"]

FLOOD = 100_000
BODY = codec.pack(PteLoad(1, 2))
LARGE = 20
"""Messages that are larger than any may be; each has a quarter of a megabyte."""


def valid_messages(token: str) -> list[list[bytes]]:
    """What nodes and the launcher say."""
    return [
        [wire.control_frame("hello", "cpu0", token)],
        [wire.control_frame("ready")],
        [wire.control_frame("stop", "enough")],
        [wire.control_frame("died", "cpu0", "was killed")],
        [codec.pack([7, ["cpu0-0/1.0", "cpu1", "PteLoad", "cpu0-0/1", ""]]), BODY, b"\x92\x90\x90"],
        [codec.pack([7]), b"\x92\x90\x90"],
    ]


def nonsense(rng: random.Random, token: str) -> Iterator[list[bytes]]:
    """Random frames for ever: bytes of any kind, and what others say with some bytes changed."""
    said = valid_messages(token)
    while True:
        if rng.random() < 0.5:
            yield [rng.randbytes(rng.randrange(48)) for _ in range(rng.randrange(1, 4))]
        else:
            yield [mutated(rng, frame) for frame in rng.choice(said)]


def mutated(rng: random.Random, frame: bytes) -> bytes:
    """The same with a byte changed, cut off, doubled or as it is."""
    way = rng.randrange(4)
    at = rng.randrange(len(frame))
    if way == 0:
        return frame[:at] + rng.randbytes(1) + frame[at + 1 :]
    if way == 1:
        return frame[:at]
    return frame * 2 if way == 2 else frame


def flood(supervisor: Crowded, count: int) -> None:
    """Send it all from one connection, and wait until the router has looked at the last of it."""
    rng = random.Random(1)
    client = supervisor.strangers[0]
    source = nonsense(rng, supervisor.token)
    answers = 1
    for number in range(count - LARGE - 1):
        frames = next(source)
        client.send_multipart(frames)
        answers += is_hello(frames)
        if number % 1000 == 0:
            assert supervisor.wait(0.0) is None
    for _ in range(LARGE):
        client.send_multipart([bytes(limits.MESSAGE_BYTES_MAX + 1)])
    client.send_multipart([wire.control_frame("hello", "the last", supervisor.token)])
    for _ in range(answers):  # in order, so the last one is about the last message
        assert wire.header(client.recv())[0] == "rejected"


def is_hello(frames: list[bytes]) -> bool:
    """Whether it is answered: it can be read as a hello, whatever is wrong with that."""
    try:
        word, *values = wire.header(frames[0])
    except PeerError:
        return False
    return word == "hello" and all(type(value) is str for value in values[:2])


@pytest.mark.processes
def test_a_flood_of_nonsense_is_counted_and_changes_nothing(tmp_path: Path) -> None:
    run = endless(tmp_path / "a")
    supervisor = Crowded(run, 1)
    with supervisor:
        flood(supervisor, FLOOD)
        supervisor.stop_feeding("enough")
        outcome = supervisor.wait(RUN_SECONDS_MAX)
    assert outcome is not None
    assert outcome.ending.complete
    assert balanced(outcome)
    assert sum(outcome.rejected.values()) == FLOOD + 1  # and once while it began
    assert {
        "not msgpack", "header is not a list", "hello with a wrong token",
        "hello with a name already claimed", "hello from a node that does not exist",
        "from somebody who has not said hello", "too long for a hello",
    } <= set(outcome.rejected)  # fmt: skip
    _again(tmp_path, run.programs, outcome)


def _again(tmp_path: Path, programs: tuple[Program, ...], outcome: Outcome) -> None:
    """What was recorded meanwhile runs again to the letter."""
    record = read_record(tmp_path / "a")
    again = toys(
        tmp_path / "b", programs=record.programs(programs), chaos=record.faults,
        schedule=Recorded(record.deliveries),
    )  # fmt: skip
    assert finish(again).ending == outcome.ending
    assert compare_runs(tmp_path / "a", tmp_path / "b") is None


def test_a_node_that_talks_nonsense_is_refused_or_heard_and_never_breaks_the_router(
    impostor: Impostor,
) -> None:
    here = impostor.router
    here.exchange.start()
    here.dispatcher.take()
    source = nonsense(random.Random(2), "token")
    refused = 0
    for _ in range(3000):
        before = dict(here.exchange.counts.as_dict())
        try:
            here._from_node("cpu0", [b"", *next(source)])
        except PeerError as error:
            here.reject(str(error))
            refused += 1
            assert here.exchange.counts.as_dict() == before
        here.dispatcher.take()
        assert here.exchange.counts.balance(here.exchange.pending) == 0
    assert refused > 2000
    assert len(here.rejected) > 3
    assert toy.NODES[0] in here.in_flight
