"""The router: whom it hears, what it refuses, what it sends next."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from mmurace.broker import dispatch, plan, router
from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder
from mmurace.broker.recorder import broker_records
from mmurace.broker.schedules import Arrival, RandomWalk, Recorded
from mmurace.nodes import sockets
from mmurace.protocol import codec, limits, wire
from mmurace.protocol.envelope import Envelope
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

__all__ = ["nothing_left_behind"]


# ---- what goes out -------------------------------------------------------------------------


def _flood(count: int) -> tuple[Exchange, dispatch.InFlight]:
    """An exchange with so many messages for one node, each in a channel of its own."""
    exchange = Exchange(Feeder(()))
    for n in range(1, count + 1):
        exchange.release(n, [Envelope(f"p/{n}.0", "a", "b", "PteLoad", f"p/{n}", "", b"")])
    return exchange, {"a": deque(), "b": deque()}


def test_a_node_never_has_more_in_flight_than_the_limit() -> None:
    exchange, in_flight = _flood(limits.DELIVERIES_IN_FLIGHT_MAX + 10)
    pipelined = dispatch.dispatcher(Arrival(), exchange, in_flight, router.UNENDING)
    first = [envelope.id for _, envelope in pipelined.take()]
    assert first == [f"p/{n}.0" for n in range(1, limits.DELIVERIES_IN_FLIGHT_MAX + 1)]
    assert pipelined.take() == []
    in_flight["b"].popleft()
    ((_, envelope),) = pipelined.take()
    assert envelope.id == f"p/{limits.DELIVERIES_IN_FLIGHT_MAX + 1}.0"
    assert pipelined.status == ""


def test_numbers_rise_and_stop_at_the_last() -> None:
    exchange, in_flight = _flood(10)
    pipelined = dispatch.dispatcher(Arrival(), exchange, in_flight, 4)
    assert [n for n, _ in pipelined.take()] == [1, 2, 3, 4]
    assert (pipelined.take(), pipelined.status) == ([], "")
    in_flight["b"].clear()
    assert (pipelined.take(), pipelined.status) == ([], plan.LIMIT)


def test_one_by_one_waits_for_each() -> None:
    exchange, in_flight = _flood(3)
    serial = dispatch.dispatcher(RandomWalk(1), exchange, in_flight, 2)
    assert [n for n, _ in serial.take()] == [1]
    assert serial.take() == []
    in_flight["b"].clear()
    assert [n for n, _ in serial.take()] == [2]
    in_flight["b"].clear()
    assert (serial.take(), serial.status) == ([], plan.LIMIT)


def test_recorded_numbers_are_given_again() -> None:
    exchange, in_flight = _flood(3)
    entries = [(4, "p/2.0", 0), (9, "p/1.0", 0)]
    replayed = dispatch.dispatcher(Recorded(entries), exchange, in_flight, router.UNENDING)
    assert [(n, envelope.id) for n, envelope in replayed.take()] == [(4, "p/2.0"), (9, "p/1.0")]
    assert (replayed.take(), replayed.status) == ([], "")
    in_flight["b"].clear()
    assert (replayed.take(), replayed.status) == ([], plan.SCHEDULE_END)


class NeverMind:
    """A schedule that ends at once."""

    def pick(self, heads: list[Envelope]) -> int:
        """No more."""
        return -1


def test_a_schedule_may_end_the_run() -> None:
    exchange, in_flight = _flood(3)
    serial = dispatch.dispatcher(NeverMind(), exchange, in_flight, router.UNENDING)
    assert (serial.take(), serial.status) == ([], plan.SCHEDULE_END)


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


@pytest.mark.processes
def test_strangers_are_counted_and_change_nothing(tmp_path: Path) -> None:
    run = endless(tmp_path)
    supervisor = Crowded(run, 10)
    with supervisor:
        said = _frames_of_strangers(supervisor.token)
        for stranger, frames in zip(supervisor.strangers, said.values(), strict=False):
            stranger.send_multipart(frames)
        supervisor.wait(0.5)
        supervisor.stop_feeding()
        outcome = supervisor.wait(RUN_SECONDS_MAX)
    assert outcome is not None
    assert outcome.ending.complete
    assert outcome.rejected.pop("hello from a node that does not exist") == 11
    assert outcome.rejected.pop("too long for a hello") == 1  # libzmq cuts what is still longer
    assert set(outcome.rejected) == {
        "hello with a wrong token", "hello with a name already claimed",
        "malformed control message", "not msgpack", "header is not a list",
        "from somebody who has not said hello",
    }  # fmt: skip
    assert balanced(outcome)


class Impostor:
    """A router in this process, and a node and a launcher that say what they like."""

    def __init__(self, directory: Path) -> None:
        self.context: zmq.Context[sockets.Socket] = zmq.Context()
        endpoint = f"ipc://{directory}/s"
        socket = sockets.router(self.context, endpoint)
        self.run = toys(directory / "run", nodes=("cpu0",), programs=toy.programs(1, ("cpu0",)))
        self.router = router.Router(self.run, socket, "token")
        self.node = sockets.dealer(self.context, endpoint)
        self.launcher = sockets.dealer(self.context, endpoint)

    def close(self) -> None:
        """Close the sockets."""
        self.context.destroy(linger=0)
        self.router.journal.close()


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[Impostor]:
    """A router that waits for one node."""
    one = Impostor(tmp_path)
    yield one
    one.close()


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
    impostor: Impostor, head: Any, body: bytes, reason: str
) -> None:
    here = impostor.router
    here.exchange.start()
    ((n, envelope),) = here.dispatcher.take()
    here._from_node("cpu0", [b"", codec.pack([n, head]), body, b""])
    assert here.rejected == {reason: 1}
    assert here.exchange.counts.rejected == 1
    assert here.exchange.counts.balance(here.exchange.pending) == 0
    assert here.in_flight[envelope.dst] == here.in_flight["cpu0"]
    assert not here.in_flight["cpu0"]


@pytest.mark.processes
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
    impostor: Impostor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HANDLING_SECONDS_MAX", 0.05)
    monkeypatch.setattr(limits, "SOCKET_SECONDS_MAX", 0.02)
    impostor.node.send(wire.control_frame("hello", "cpu0", "token"))
    impostor.node.send(wire.control_frame("ready"))
    impostor.launcher.send(wire.control_frame("hello", "launcher", "token"))
    impostor.router.run()
    assert impostor.router.status == plan.STUCK
    assert impostor.router.detail.startswith("cpu0 has not handled delivery 1")


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


# ---- the launcher and the nodes ------------------------------------------------------------


def test_what_the_launcher_says_is_in_the_journal(impostor: Impostor) -> None:
    here = impostor.router
    for words in (("heal",), ("stop", "enough"), ("died", "cpu0", "was killed"), ("abort", "late")):
        here._from_launcher([b"", wire.control_frame(*words)])
    assert here.exchange.feeder.stopped
    assert (here.status, here.detail) == (plan.NODE_DIED, "cpu0 was killed")  # the first counts
    here.journal.close()
    told = list(broker_records(impostor.run.directory))
    assert told == [["heal", 0], ["stop", 0, "enough"], ["died", 0, "cpu0", "was killed"]]


@pytest.mark.parametrize(
    "frames", [[b""], [b"", wire.control_frame("dance")], [b"", wire.control_frame("stop", 7)]]
)
def test_nonsense_from_the_launcher_is_refused(impostor: Impostor, frames: list[bytes]) -> None:
    with pytest.raises(PeerError):
        impostor.router._from_launcher(frames)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b"", codec.pack([5]), b""], "handled what was not delivered next"),
        ([b"", codec.pack([1]), b"", b""], "handled with a frame too many or too few"),
        ([b"", codec.pack([1])], "handled with a frame too many or too few"),
        ([b"", wire.control_frame("dance")], "unknown control word"),
    ],
)
def test_nonsense_from_a_node_is_refused(
    impostor: Impostor, frames: list[bytes], reason: str
) -> None:
    impostor.router.exchange.start()
    assert [n for n, _ in impostor.router.dispatcher.take()] == [1]
    with pytest.raises(PeerError, match=reason):
        impostor.router._from_node("cpu0", frames)
    assert list(impostor.router.in_flight["cpu0"]) == [1]


def test_reasons_that_peers_make_up_are_counted_together(impostor: Impostor) -> None:
    for number in range(2 * router.REASONS_MAX):
        impostor.router.reject(f"reason {number}: whatever")
    assert len(impostor.router.rejected) == router.REASONS_MAX + 1
    assert impostor.router.rejected["other"] == router.REASONS_MAX
