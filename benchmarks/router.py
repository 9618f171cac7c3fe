"""What recording, ordering and accounting cost: our router against a bare forwarder.

Eight senders, each with one call in flight (a request to its neighbour and the reply), bodies of
20 to 60 bytes and replies of about 10, as the default stress mix has them.  Both brokers serve
the same kind of peer, in processes of their own: thin ones that only pack and unpack headers, so
that the brokers are what is measured.  The bare forwarder receives three frames and sends them
on, which is the least that a ROUTER in Python can do.

    python -m benchmarks.router [CALLS] [SENDERS]

prints calls and deliveries per second of both, taken in turns, their ratio (wanted: 0.5), and
where our router's processor time goes, part by part, from a run of its own.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import msgpack
import multiprocess
import zmq

from mmurace.broker import router
from mmurace.broker.plan import LAUNCHER, Outcome, Plan
from mmurace.broker.programs import Program, Step
from mmurace.nodes import sockets
from mmurace.nodes.runtime import prepare_child, send
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.protocol import codec, wire
from mmurace.protocol.messages.memory import PteLoad, PteValue
from mmurace.protocol.messages.program import (
    OpDone,
)

TOKEN = "benchmark"
ROUNDS = 3
RUN_SECONDS_MAX = 120.0
BODIES = [codec.pack(PteLoad(7, 3)) + bytes(size) for size in (4, 14, 24, 44)]
"""Requests of 20 to 60 bytes; nobody decodes them."""
REPLY = codec.pack(PteValue(5))
TAIL = msgpack.packb([[], []])


def names(senders: int) -> tuple[str, ...]:
    """Names of the peers."""
    return tuple(f"cpu{index}" for index in range(senders))


# ---- our router ----------------------------------------------------------------------------


def thin_node(name: str, neighbour: str, calls: int, endpoint: str) -> None:
    """A node without a driver: it calls its neighbour so often and answers whoever calls it."""
    prepare_child()
    context: zmq.Context[sockets.Socket] = zmq.Context()
    socket = sockets.dealer(context, endpoint)
    send(socket, [wire.control_frame("hello", name, TOKEN)])
    send(socket, [wire.control_frame("ready")])
    packb, unpackb, done, operation = msgpack.packb, msgpack.unpackb, 0, ""
    while True:
        try:
            frames = socket.recv_multipart()
        except zmq.Again:
            continue
        fields = unpackb(frames[0])
        if fields[0] == "stop":
            break
        n, id_, src, kind = fields[:4]
        if kind == "PteLoad":
            send(socket, [packb([n, [id_ + "~", src, "PteLoad~", id_, ""]]), REPLY, TAIL])
            continue
        if src == "broker":
            operation = id_
        if done == calls:
            head = [operation + "~", "broker", "Dma~", operation, ""]
            body = codec.pack(OpDone(0))
        else:
            head = [f"{operation}.{done}", neighbour, "PteLoad", operation, ""]
            body = BODIES[done % len(BODIES)]
        done += 1
        send(socket, [packb([n, head]), body, TAIL])
    sockets.close(context, 1.0)


def our_run(calls: int, senders: int, profile: str = "") -> float:
    """Seconds that our router needs, recording included."""
    with _directories() as (here, recorded), _Processes() as processes:
        nodes = names(senders)
        step = (Step(Dma("mm0", 0, False)),)
        programs = tuple(Program(name, name, step) for name in nodes)
        run = Plan(Path(recorded), nodes, b"", 0, programs)
        at = router.endpoint(here)
        if profile:
            processes.start(profiled_main, run, here, profile)
        else:
            processes.start(router.main, run, here, TOKEN)
        for index, name in enumerate(nodes):
            processes.start(thin_node, name, nodes[(index + 1) % senders], calls, at)
        context: zmq.Context[sockets.Socket] = zmq.Context()
        launcher = sockets.dealer(context, at)
        send(launcher, [wire.control_frame("hello", LAUNCHER, TOKEN)])
        _expect(launcher, "ready")
        began = time.perf_counter()
        end = _expect(launcher, "end")
        seconds = time.perf_counter() - began
        context.destroy(linger=0)
        outcome = codec.convert(end[1], Outcome)
        assert outcome.ending.deliveries == senders * (2 * calls + 1), outcome
        return seconds


# ---- the bare forwarder --------------------------------------------------------------------


def forwarder(endpoint: str) -> None:
    """Receive from one, send to the other; the launcher ends it."""
    prepare_child()
    context: zmq.Context[sockets.Socket] = zmq.Context()
    socket = sockets.router(context, endpoint)
    receive, pass_on = sockets.receive, socket.send
    while True:
        try:
            src, dst, body = receive(socket)
        except zmq.Again:
            continue
        pass_on(dst, zmq.SNDMORE)
        pass_on(src, zmq.SNDMORE)
        pass_on(body)


def thin_peer(name: bytes, neighbour: bytes, calls: int, endpoint: str) -> None:
    """The same calls, without anything that a router of ours would read."""
    prepare_child()
    context: zmq.Context[sockets.Socket] = zmq.Context()
    socket = _named(context, name, endpoint)
    send(socket, [b"launcher", b"ready"])
    done = 0
    while True:
        try:
            src, body = socket.recv_multipart()
        except zmq.Again:
            continue
        if body in BODIES:
            send(socket, [src, REPLY])
        elif body == b"stop":
            break
        elif done == calls:
            send(socket, [b"launcher", b"end"])
        else:
            send(socket, [neighbour, BODIES[done % len(BODIES)]])
            done += 1
    sockets.close(context, 1.0)


def bare_run(calls: int, senders: int) -> float:
    """Seconds that the bare forwarder needs."""
    with _directories() as (here, _), _Processes() as processes:
        at = router.endpoint(here)
        processes.start(forwarder, at)
        peers = [name.encode() for name in names(senders)]
        context: zmq.Context[sockets.Socket] = zmq.Context()
        launcher = _named(context, b"launcher", at)
        send(launcher, [b"launcher", b"hello"])  # connected once this is back
        _expect_all(launcher, b"hello", 1)
        for index, name in enumerate(peers):
            processes.start(thin_peer, name, peers[(index + 1) % senders], calls, at)
        _expect_all(launcher, b"ready", senders)
        began = time.perf_counter()
        for name in peers:
            send(launcher, [name, b"go"])
        _expect_all(launcher, b"end", senders)
        seconds = time.perf_counter() - began
        for name in peers:
            send(launcher, [name, b"stop"])
        sockets.close(context, 1.0)
        return seconds


def _named(context: zmq.Context[sockets.Socket], name: bytes, endpoint: str) -> sockets.Socket:
    """A peer of the forwarder is addressed by its identity, so it must choose one."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, name)
    socket.setsockopt(zmq.RCVTIMEO, 1000)
    socket.setsockopt(zmq.SNDTIMEO, 1000)
    socket.connect(endpoint)
    return socket


# ---- where the time goes -------------------------------------------------------------------


class Meter:
    """Processor time of this thread by part, the parts inside it taken out."""

    def __init__(self) -> None:
        self.parts: dict[str, int] = {}
        self._inner = 0

    def part(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, metered."""
        clock = time.thread_time_ns
        parts = self.parts
        parts[name] = 0

        def metered(*args: Any) -> Any:
            outer, self._inner = self._inner, 0
            began = clock()
            try:
                return function(*args)
            finally:
                spent = clock() - began
                parts[name] += spent - self._inner
                self._inner = outer + spent

        return metered


class MeteredSocket:
    """A socket whose sends and receives are metered."""

    def __init__(self, socket: sockets.Socket, meter: Meter) -> None:
        self.poll, self.send_multipart = socket.poll, socket.send_multipart
        self.send = meter.part("send", socket.send)
        self.recv = meter.part("receive", socket.recv)


def profiled_main(run: Plan, directory: str, result: str) -> None:
    """``router.main`` with a meter on every part; writes the parts to the file ``result``."""
    prepare_child()
    context: zmq.Context[sockets.Socket] = zmq.Context()
    meter, socket = Meter(), sockets.router(context, router.endpoint(directory))
    here = router.Router(run, MeteredSocket(socket, meter), TOKEN)  # type: ignore[arg-type]  # as far as Router uses it
    for name, holder, attribute in (
        ("exchange: take", here.dispatcher, "take"),
        ("exchange: release", here.exchange, "release"),
        ("journal: pack", here.journal, "deliver"),
        ("journal: write", here.journal, "flush"),
        ("headers: unpack", wire, "header"),
        ("headers: pack", wire, "deliver_header"),
        ("checks and envelopes", here, "_handled"),
        ("the rest of the loop", here, "run"),
    ):
        setattr(holder, attribute, meter.part(name, getattr(holder, attribute)))
    here.run()
    sockets.close(context, 1.0)
    Path(result).write_bytes(codec.pack(meter.parts))


def profile(calls: int, senders: int) -> dict[str, float]:
    """Microseconds of processor time per delivery, by part."""
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "parts"
        our_run(calls, senders, str(result))
        parts: dict[str, int] = codec.unpack(result.read_bytes())
    deliveries = senders * (2 * calls + 1)
    return {name: spent / deliveries / 1000 for name, spent in parts.items()}


# ---- around it -----------------------------------------------------------------------------


class _Processes:
    """Processes that are gone afterwards."""

    def __init__(self) -> None:
        self.context = multiprocess.get_context("spawn")
        self.started: list[Any] = []

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started[1:]:
            process.join(5.0)
        for process in self.started:
            process.kill()
            process.join(5.0)

    def start(self, target: Callable[..., None], *args: Any) -> None:
        """Start one."""
        process = self.context.Process(target=target, args=args, daemon=True)
        process.start()
        self.started.append(process)


@contextmanager
def _directories() -> Iterator[tuple[str, str]]:
    """A short one for the socket, and one for the journals."""
    here, recorded = tempfile.mkdtemp(prefix="mmu-"), tempfile.mkdtemp(prefix="mmu-run-")
    try:
        yield here, recorded
    finally:
        shutil.rmtree(here, ignore_errors=True)
        shutil.rmtree(recorded, ignore_errors=True)


def _expect(socket: sockets.Socket, word: str) -> list[Any]:
    """The control message that begins with ``word``."""
    fields = wire.header(_receive(socket)[0])
    assert fields[0] == word, fields
    return fields


def _expect_all(socket: sockets.Socket, word: bytes, count: int) -> None:
    for _ in range(count):
        assert _receive(socket)[-1] == word


def _receive(socket: sockets.Socket) -> list[bytes]:
    deadline = time.monotonic() + RUN_SECONDS_MAX
    while time.monotonic() < deadline:
        try:
            return socket.recv_multipart()
        except zmq.Again:
            continue
    raise SystemExit(f"nothing was said for {RUN_SECONDS_MAX:g} s")


def main(calls: int = 2000, senders: int = 8) -> None:
    """Measure and print."""
    ours, bare = [], []
    for _ in range(ROUNDS):  # in turns: whatever else the machine does hits both
        bare.append(senders * calls / bare_run(calls, senders))
        ours.append(senders * calls / our_run(calls, senders))
    print(f"{senders} senders, {calls} calls each, one in flight per sender, {ROUNDS} rounds")
    for name, rates in (("bare forwarder", bare), ("our router, recording", ours)):
        rate = median(rates)
        print(f"{name:24} {rate:8.0f} calls/s {2 * rate:8.0f} deliveries/s")
    print(f"{'ratio':24} {median(ours) / median(bare):8.2f}")
    print("\nour router's processor time, microseconds per delivery (metering included):")
    parts = profile(calls, senders)
    for name, spent in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"{name:24} {spent:8.1f}")
    print(f"{'together':24} {sum(parts.values()):8.1f}")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
