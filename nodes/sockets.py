"""The one place that makes sockets, because every option here has cost somebody a weekend.

A ROUTER without ``ROUTER_MANDATORY`` loses messages without a word; a default ``LINGER`` hangs
for ever at exit; ZMTP heartbeats cut a node that is merely paused; a context does not survive a
fork.  Sockets are not shared between threads.

Nobody chooses the routing identity of a connection: libzmq does, and a peer can then neither
take over another's nor be silenced by it.  Names are claimed in the hello, with the run's token.

A frame is believed only after its sender has been, and libzmq can bound neither how many
connections there are nor what is read before somebody is known: a thousand idle ones end the
process (no more files), and a frame may have ``MAXMSGSIZE``.  So nobody else is let in: the
kernel says which process connects (``SO_PEERCRED``), and libzmq closes what comes from others
before it reads a byte.
"""

from __future__ import annotations

from collections.abc import Iterable

import zmq

from mmurace.protocol import limits

Socket = zmq.Socket[bytes]


def router(context: zmq.Context[Socket], endpoint: str, pids: Iterable[int] = ()) -> Socket:
    """The broker's end, bound to ``endpoint`` for the processes ``pids``.

    Without any, whoever reaches ``endpoint`` may connect.
    """
    socket = _socket(context, zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    for pid in pids:
        socket.setsockopt(zmq.IPC_FILTER_PID, pid)
    socket.bind(endpoint)
    return socket


def dealer(context: zmq.Context[Socket], endpoint: str) -> Socket:
    """A node's or the launcher's end; it connects as soon as somebody is bound there.

    Not with ``ZMQ_IMMEDIATE``: when the other end closes, it throws away what has arrived and was
    not read yet, such as the broker's last words.
    """
    socket = _socket(context, zmq.DEALER)
    socket.setsockopt(zmq.RECONNECT_IVL, 10)
    socket.connect(endpoint)
    return socket


def _socket(context: zmq.Context[Socket], kind: int) -> Socket:
    """Options that all share; set before bind or connect, or they have no effect."""
    socket = context.socket(kind)
    wait_ms = int(limits.SOCKET_SECONDS_MAX * 1000)
    for option, value in (
        (zmq.SNDHWM, limits.SOCKET_HIGH_WATER_MARK),
        (zmq.RCVHWM, limits.SOCKET_HIGH_WATER_MARK),
        (zmq.SNDTIMEO, wait_ms),
        (zmq.RCVTIMEO, wait_ms),
        (zmq.LINGER, 0),
        (zmq.MAXMSGSIZE, limits.ZMQ_MESSAGE_BYTES_MAX),
        (zmq.HEARTBEAT_IVL, 0),
    ):
        socket.setsockopt(option, value)
    return socket


def receive(socket: Socket, flags: int = 0) -> list[bytes]:
    """All frames of the next message.  Raises ``zmq.Again`` if none comes in time.

    As ``recv_multipart`` does, in half the time: the frame itself says whether another follows.
    """
    frames: list[bytes] = []
    more = True
    while more:
        frame = socket.recv(flags, False)
        frames.append(frame.bytes)
        more = frame.more
    return frames


def close(context: zmq.Context[Socket], linger_seconds: float) -> None:
    """Close everything; what is queued gets so long to leave."""
    context.destroy(linger=int(linger_seconds * 1000))
