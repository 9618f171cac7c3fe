"""One node as an operating-system process: the only file here that meets the outside.

The loop is: take a delivery, let the driver handle it, write the answer to the journal, send it.
A node that is killed before the write has not handled the delivery, and nobody has heard of it.

Started by ``broker.supervisor``; everything that happens in here reaches the outside by the
journal, by frames to the router, or by the exit status.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import multiprocess
import zmq

from mmurace.nodes import plugin_watchdog, plugins, sockets
from mmurace.nodes.disk import Disk, install
from mmurace.nodes.driver import Driver
from mmurace.nodes.journal import Journal
from mmurace.nodes.packing import read_world
from mmurace.nodes.world import World
from mmurace.protocol import limits, signals, wire
from mmurace.protocol.envelope import Handled
from mmurace.protocol.errors import EmulatorError, PeerError, TimedOut, UserError

Build = Callable[[str, World, int], Driver]

EXIT_BROKEN = 4
EXIT_ORPHANED = 70
FAREWELL_SECONDS = 1.0
"""How long the last frames of a process may take to leave."""


def main(
    name: str,
    endpoint: str,
    token: str,
    world: bytes,
    seed: int,
    journal: str,
    build: str,
    disk: Disk | None = None,
) -> None:
    """Run the node ``name`` until the router says stop.

    ``world`` is the packed ``World``; ``build`` is ``module:function`` and makes the driver
    (``nodes.build:build``).  Exits with ``EXIT_BROKEN`` after reporting what broke.
    """
    prepare_child()
    if disk is not None:
        install(disk)
    context: zmq.Context[sockets.Socket] = zmq.Context()
    socket = sockets.dealer(context, endpoint)
    broke = False
    plugin_watchdog.last_word(functools.partial(_last_word, context, socket))
    try:
        send(socket, [wire.control_frame("hello", name, token)])
        driver = builder(build)(name, read_world(world), seed)
        book = Journal(Path(journal), name)
        send(socket, [wire.control_frame("ready")])
        _Runtime(socket, driver, book).loop()
        book.close()
    except Exception as error:
        broke = True
        _report(socket, plugins.said_of(error) or what_broke(error))
    sockets.close(context, FAREWELL_SECONDS)
    if broke:
        sys.exit(EXIT_BROKEN)


def what_broke(error: Exception) -> str:
    """The file that could not be written or opened, or what a user can mend; else the traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return "".join(traceback.format_exception(error))


def prepare_child(farewell: Callable[[], object] = lambda: None) -> None:
    """What every child process does first.

    Ctrl-C reaches the whole process group: only the launcher decides what it means.  A child
    whose launcher is gone calls ``farewell`` and leaves at once.
    """
    signals.ignore()
    threading.Thread(target=_watch_parent, args=(farewell,), daemon=True).start()


def _watch_parent(farewell: Callable[[], object]) -> None:
    parent = multiprocess.parent_process()
    if parent is None:
        return  # run by hand
    parent.join()
    try:
        farewell()
    finally:
        os._exit(EXIT_ORPHANED)


def builder(name: str) -> Build:
    """The function ``module:function``.  Raises ``UserError``."""
    module, _, function = name.partition(":")
    try:
        found: Build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(name, f"cannot be imported: {error}", "module:function") from None
    return found


def send(socket: sockets.Socket, frames: list[bytes]) -> None:
    """Send one message.  Raises ``TimedOut`` if the router takes nothing any more."""
    last = len(frames) - 1
    try:
        for index, frame in enumerate(frames):
            socket.send(frame, zmq.SNDMORE if index < last else 0)
    except zmq.Again:
        raise TimedOut("the router to take a message", limits.SOCKET_SECONDS_MAX) from None


def _report(socket: sockets.Socket, text: str) -> None:
    try:
        send(socket, [wire.control_frame("broken", text[-limits.MESSAGE_BYTES_MAX // 2 :])])
    except (zmq.ZMQError, TimedOut):
        sys.stderr.write(text)  # the last way to be heard


def _last_word(context: zmq.Context[sockets.Socket], socket: sockets.Socket, said: str) -> int:
    """A plug-in is stuck in the main thread, which so does not use the socket."""
    _report(socket, said)
    sockets.close(context, FAREWELL_SECONDS)
    return EXIT_BROKEN


class _Runtime:
    """The loop of one node."""

    def __init__(self, socket: sockets.Socket, driver: Driver, journal: Journal) -> None:
        self.socket, self.driver, self.journal = socket, driver, journal

    def loop(self) -> None:
        """Handle deliveries until told to stop."""
        receive, socket = sockets.receive, self.socket
        while True:
            try:
                frames = receive(socket)
            except zmq.Again:  # SOCKET_SECONDS_MAX without a delivery; the watchdog has the rest
                continue
            fields = wire.header(frames[0])
            if type(fields[0]) is int:
                self._deliver(fields, frames[1])
            elif fields[0] == "stop":
                return
            elif fields[0] == "rejected":
                raise PeerError(f"the router rejected this node: {fields[1]}")

    def _deliver(self, fields: list[Any], body: bytes) -> None:
        n, request = fields[0], fields[1]
        try:
            envelope, choices = wire.read_deliver(fields, self.driver.name, body)
        except PeerError as error:
            # Only the receiver decodes a body, so only it can reject one; it answers all the same.
            send(self.socket, [wire.control_frame("rejected", n, str(error))])
            handled = Handled(n)
        else:
            handled = self.driver.deliver(n, envelope, choices)
        if len(handled.messages) > limits.HANDLED_MESSAGES_MAX:
            raise EmulatorError(f"{request} sent {len(handled.messages)} messages at once")
        frames = wire.handled_frames(handled)
        self.journal.write(wire.journal_record(request, frames))
        send(self.socket, frames)
