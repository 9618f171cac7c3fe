"""The broker between processes: an exchange behind a ROUTER socket.

One thread, one socket, one loop: take in what nodes have handled, release what they sent, take
out what may be delivered, write it down, send it.  Bodies pass through as bytes.  Only this
process knows what was lost, repeated or held back; only it decides who is next.

Peers are nodes and one launcher.  No other process can connect (``nodes.sockets``), and once all
are there the socket's file is gone, so that nobody can even try.  A peer says hello with its name
and the run's token; whatever else arrives (wrong token, a name already claimed, frames that do not
parse, a handling that was not asked for, a message to nobody) is counted under its reason and
otherwise ignored.
"""

from __future__ import annotations

import contextlib
import gc
import hmac
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import msgspec
import zmq

from mmurace.broker import dispatch, plan
from mmurace.broker.bounded_waits import Clock, Patience, Pulse
from mmurace.broker.exchange import Exchange
from mmurace.broker.plan import LAUNCHER, Outcome, Plan
from mmurace.broker.programs import Feeder
from mmurace.broker.recorder import BrokerJournal
from mmurace.broker.schedules import Recorded
from mmurace.nodes import sockets
from mmurace.nodes.disk import install
from mmurace.nodes.runtime import EXIT_BROKEN, FAREWELL_SECONDS, prepare_child, what_broke
from mmurace.protocol import limits, wire
from mmurace.protocol.envelope import BROKER, REPLY_MARK, Envelope
from mmurace.protocol.errors import PeerError
from mmurace.protocol.messages.base import kinds


@cache
def known_kinds() -> frozenset[str]:
    """Kinds that a node may send."""
    names = kinds()
    return frozenset(names) | {kind + REPLY_MARK for kind in names}


UNENDING = 1 << 62
LAST_WORDS_SECONDS = 1.0
REASONS_MAX = 64
"""Reasons for rejection that are counted apart; peers can make up any number of them."""


def main(run: Plan, directory: str, token: str, pids: Iterable[int] = ()) -> None:
    """Run the router until the run is over, in a process of its own.

    ``directory`` is private to this run and holds the socket; it goes once all are connected, or
    if the launcher dies.  ``pids`` are the processes that may connect; none given: all.
    """

    def close_door() -> None:
        shutil.rmtree(directory, ignore_errors=True)

    prepare_child(close_door)
    install(run.disk)
    context: zmq.Context[sockets.Socket] = zmq.Context()
    socket = sockets.router(context, endpoint(directory), pids)
    router, broke = Router(run, socket, token, close_door), False
    try:
        router.run()
    except Exception as error:
        broke = True
        router.send(LAUNCHER, [wire.control_frame("broken", what_broke(error))])
    sockets.close(context, FAREWELL_SECONDS)
    close_door()  # the launcher may be gone by now
    if broke:
        sys.exit(EXIT_BROKEN)


def endpoint(directory: str) -> str:
    """Where the router of a run listens."""
    return f"ipc://{directory}/router"


class Router:
    """One run.  ``run`` returns when it is over and everybody has been told."""

    def __init__(
        self,
        run: Plan,
        socket: sockets.Socket,
        token: str,
        close_door: Callable[[], object] = lambda: None,
        clock: Clock = time.monotonic,
    ) -> None:
        """``close_door`` is called once all are connected: nobody else need come."""
        self.plan, self.socket, self.token = run, socket, token.encode()
        self.close_door, self.clock = close_door, clock
        self.journal = BrokerJournal(run.directory, late=True)  # when there is somebody to tell
        feeder = Feeder(run.programs, run.operations_max)
        recorded = isinstance(run.schedule, Recorded)
        self.exchange = Exchange(feeder, self.journal.watch(run.chaos), recorded)
        self.in_flight: dispatch.InFlight = {name: deque() for name in run.nodes}
        self.dispatcher = dispatch.dispatcher(
            run.schedule, self.exchange, self.in_flight, run.deliveries_max or UNENDING
        )
        self.peers: dict[bytes, str] = {}
        """Who is behind a connection, once it has said hello."""
        self.connections: dict[str, bytes] = {}
        self.ready: set[str] = set()
        self.rejected: dict[str, int] = {}
        self.status = self.detail = ""
        """Why the run is over, once it is."""
        self._death_seen = False
        """The launcher has said that a process is gone."""
        self._check_at = 0.0
        self._pulse = Pulse(clock)
        self._low_at = limits.LOW_WATER_EVERY
        """The delivery at which the low-water mark is noted next."""
        self._oldest: dict[str, tuple[int, float]] = {}
        """Per node the oldest delivery it has not handled, and since when that is known."""

    def run(self) -> None:
        """From the first hello to the last farewell."""
        self._gather_peers()
        if not self.status:
            self.close_door()
            self.send(LAUNCHER, [wire.control_frame("ready")])
            gc.freeze()
            self.exchange.start()
        while not self.status:
            self._deliver()
            if not self.status:
                self._receive()
        self._end()

    def _gather_peers(self) -> None:
        """Wait, within bounds, until every node is ready and the launcher is there."""
        patience = Patience(limits.READY_SECONDS_MAX, self.clock)
        wanted = {LAUNCHER, *self.plan.nodes}
        while self.ready != wanted and not self.status:
            if patience.over():
                self.status = plan.NOT_READY
                self.detail = f"no hello from {', '.join(sorted(wanted - self.ready))}"
            self._receive()

    # -- out -----------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Send what may be delivered now; in the journal first."""
        deliveries = self.dispatcher.take()
        if self.dispatcher.status:
            self.status, self.detail = self.dispatcher.status, self.dispatcher.detail
        if self.dispatcher.gone:
            self._kill()
        journal, connections, choices = self.journal, self.connections, self.plan.choices
        for n, envelope in deliveries:
            journal.deliver(n, envelope)
        if self.exchange.number >= self._low_at:
            self._note_low_water()
        journal.flush()
        send, more = self.socket.send, zmq.SNDMORE | zmq.NOBLOCK
        try:
            for n, envelope in deliveries:
                send(connections[envelope.dst], more)
                given = choices.get(n) if choices else None
                send(wire.deliver_header(n, envelope, given), more)
                send(wire.body_bytes(envelope), zmq.NOBLOCK)
        except zmq.ZMQError as error:  # nobody there, or the high-water mark
            self._lost(f"cannot deliver to {envelope.dst}: {error}")

    def _kill(self) -> None:
        """Have the processes of dead nodes killed: nothing more is sent to them."""
        for node in self.dispatcher.gone:
            self.send(LAUNCHER, [wire.control_frame("kill", node)])
        self.dispatcher.gone.clear()

    def _note_low_water(self) -> None:
        """Tell whoever reads the journals what no later delivery comes straight after."""
        self._low_at = self.exchange.number + limits.LOW_WATER_EVERY
        unhandled = (queue[0] for queue in self.in_flight.values() if queue)
        self.journal.note("low", min((self.exchange.low_water(), *unhandled)))

    def send(self, name: str, frames: list[bytes]) -> None:
        """Send a control message to a peer that may never have come."""
        connection = self.connections.get(name)
        if connection is not None:
            self._send(connection, frames)

    def _send(self, connection: bytes, frames: list[bytes]) -> None:
        """Send a control message to a peer that may have gone."""
        with contextlib.suppress(zmq.ZMQError):  # it has no use for it any more
            self.socket.send_multipart([connection, *frames], zmq.NOBLOCK)

    # -- in ------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Take in what has arrived; wait for it, within bounds, if nothing has."""
        receive, socket, peers = sockets.receive, self.socket, self.peers
        flags = 0
        try:
            for _ in range(limits.RECEIVE_ROUND_MAX):
                frames = receive(socket, flags)
                flags = zmq.NOBLOCK
                name = peers.get(frames[0])
                try:
                    if name is None:
                        self._from_stranger(frames)
                    elif name == LAUNCHER:
                        self._from_launcher(frames)
                    else:
                        self._from_node(name, frames)
                except PeerError as error:
                    self.reject(str(error))
                if self.status:
                    return
        except zmq.Again:
            pass
        if self.clock() >= self._check_at:
            self._look_for_stuck()

    def reject(self, reason: str) -> None:
        """Count what is not taken, by the part of the reason that does not vary."""
        reason = reason.partition(":")[0]
        if reason not in self.rejected and len(self.rejected) >= REASONS_MAX:
            reason = "other"
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def _from_node(self, name: str, frames: list[bytes]) -> None:
        fields = _fields(frames)
        if type(fields[0]) is int:
            self._handled(name, fields, frames)
        elif fields[0] == "ready":
            self.ready.add(name)
        elif fields[0] == "broken":
            self._lost(f"{name} broke:\n{_text(fields, 1)}")
        elif fields[0] == "rejected":
            self.reject(f"body of a message to {name}: {_text(fields, 2)}")
        else:
            raise PeerError("unknown control word")

    def _handled(self, name: str, fields: list[Any], frames: list[bytes]) -> None:
        """A node has handled a delivery: release what it sent."""
        n, queue = fields[0], self.in_flight[name]
        if not queue or queue[0] != n:
            raise PeerError("handled what was not delivered next")
        if len(frames) != len(fields) + 2:
            raise PeerError("handled with a frame too many or too few")
        released: list[Envelope] = []
        for index in range(1, len(fields)):
            body = frames[index + 1]
            try:
                id_, dst, kind, path, stream = fields[index]
                self._check(dst, kind, (id_, path, stream), body)
            except (PeerError, TypeError, ValueError) as error:
                self.exchange.counts.sent += 1
                self.exchange.counts.rejected += 1
                self.reject(str(error) if isinstance(error, PeerError) else "malformed address")
            else:
                released.append(Envelope(id_, name, dst, kind, path, stream, body))
        queue.popleft()
        self.exchange.release(n, released)

    def _check(self, dst: Any, kind: Any, words: tuple[Any, ...], body: bytes) -> None:
        """Whether a message may go on.  Raises ``PeerError`` or ``TypeError``."""
        if dst not in self.in_flight and dst != BROKER:
            raise PeerError("to a node that does not exist")
        if kind not in known_kinds():
            raise PeerError("of an unknown kind")
        if len(body) > limits.MESSAGE_BYTES_MAX:
            raise PeerError("oversized")
        "".join(words)

    # -- everybody else ------------------------------------------------------------------

    def _from_stranger(self, frames: list[bytes]) -> None:
        """Only a hello with the token and a free name makes a peer; nothing longer is read."""
        if len(frames) > 2 or len(frames[-1]) > limits.HELLO_BYTES_MAX:
            raise PeerError("too long for a hello")
        fields = _fields(frames)
        if fields[0] != "hello":
            raise PeerError("from somebody who has not said hello")
        name, token = _text(fields, 1), _text(fields, 2)
        reason = ""
        if not hmac.compare_digest(token.encode(errors="replace"), self.token):
            reason = "hello with a wrong token"
        elif name not in self.in_flight and name != LAUNCHER:
            reason = "hello from a node that does not exist"
        elif name in self.connections:
            reason = "hello with a name already claimed"
        if reason:
            self.reject(reason)
            self._send(frames[0], [wire.control_frame("rejected", reason)])
            return
        self.peers[frames[0]] = name
        self.connections[name] = frames[0]
        if name == LAUNCHER:
            self.ready.add(name)

    def _from_launcher(self, frames: list[bytes]) -> None:
        fields = _fields(frames)
        word, why = fields[0], _text(fields, 1)
        number = self.exchange.number
        if word == "stop":
            self.journal.note("stop", number, why)
            self.exchange.feeder.stop()
        elif word == "heal":
            self.journal.note("heal", number)
            self.exchange.heal()
        elif word == "abort":
            self._over(plan.ABORTED, why)
        elif word == "died":
            self.journal.note("died", number, why, _text(fields, 2))
            self._lost(f"{why} {_text(fields, 2)}")
            self._death_seen = True
        else:
            raise PeerError("unknown control word")

    # -- the end -------------------------------------------------------------------------

    def _over(self, status: str, detail: str) -> None:
        """The first reason counts."""
        if not self.status:
            self.status, self.detail = status, detail

    def _lost(self, witness: str) -> None:
        """A node is gone.  What else is said about it is added (``_last_words``)."""
        if self.status == plan.NODE_DIED:
            self.detail += f"; {witness}"
        self._over(plan.NODE_DIED, witness)

    def _last_words(self) -> None:
        """A death has several witnesses (it, the launcher, a send that failed): hear them all.

        Whoever goes on talking does not keep the run from its end.
        """
        patience = Patience(LAST_WORDS_SECONDS, self.clock)
        while not self._death_seen and not patience.over():
            self._receive()
        while self.socket.poll(0) and not patience.over():
            self._receive()

    def _look_for_stuck(self) -> None:
        """Name a node whose oldest delivery has been with it for too long."""
        now = self.clock()
        self._check_at = now + limits.SOCKET_SECONDS_MAX
        if self._pulse.stood_still():
            self._oldest.clear()
        for name, queue in self.in_flight.items():
            oldest = queue[0] if queue else 0
            seen, since = self._oldest.get(name, (0, now))
            if oldest != seen:
                self._oldest[name] = (oldest, now)
            elif oldest and now - since > limits.HANDLING_SECONDS_MAX:
                seconds = limits.HANDLING_SECONDS_MAX
                self._over(
                    plan.STUCK, f"{name} has not handled delivery {oldest} within {seconds:g} s"
                )

    def _end(self) -> None:
        """Write the end down and tell everybody."""
        if self.status == plan.NODE_DIED:
            self._last_words()
        outcome = self._outcome()
        try:
            self.journal.end(outcome)
            self.journal.close()
        except OSError as error:  # all that was handled is on file, and how it ended is known
            detail = what_broke(error)
            outcome = msgspec.structs.replace(outcome, status=plan.UNRECORDED, detail=detail)
        deaths = self.exchange.deaths
        for name in self.plan.nodes:
            if deaths is None or name not in deaths.dead:
                self.send(name, [wire.control_frame("stop")])
        self.send(LAUNCHER, [wire.control_frame("end", outcome)])

    def _outcome(self) -> Outcome:
        exchange, chaos = self.exchange, self.plan.chaos
        pending = exchange.pending
        off = exchange.counts.balance(pending)
        if off:
            self.detail = f"{off} messages unaccounted for ({self.status}: {self.detail})"
            self.status = plan.UNBALANCED
        return Outcome(
            status=self.status,
            ending=exchange.ending(),
            counts=exchange.counts.as_dict() | {"pending": pending},
            rejected=self.rejected,
            chaos=chaos.report() if isinstance(chaos, plan.Reporting) else {},
            detail=self.detail,
        )


def _fields(frames: list[bytes]) -> list[Any]:
    """The header.  Raises ``PeerError``."""
    if len(frames) < 2:
        raise PeerError("a message without a header")
    return wire.header(frames[1])


def _text(fields: list[Any], index: int) -> str:
    """A word of a control header, or nothing.  Raises ``PeerError``."""
    value = fields[index] if index < len(fields) else ""
    if type(value) is not str:
        raise PeerError("malformed control message")
    return value
