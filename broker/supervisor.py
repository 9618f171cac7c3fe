"""The processes of a run: started, watched, ended; whatever happens, none is left behind.

The launcher uses it so::

    with Supervisor(plan) as run:                # every process is up and has said hello
        while (outcome := run.wait(0.1)) is None:
            steps = follower.poll()              # broker.follow.Follower(plan.directory, ...)
            if found_something(steps):
                run.stop_feeding("violation")    # operations in flight are finished
    # here all processes and the socket are gone

Leaving the block early, by Ctrl-C or any other exception, aborts the run: its files end with
status ``aborted`` and every process is gone within a second.

The signals that end a run (``protocol.signals``) are let in only while something is waited for
here.  So none can come between a process and the note that it is there, or cut the clearing away
short; and what begins meanwhile begins with them held, until it can ignore them.
"""

from __future__ import annotations

import atexit
import os
import secrets
import select
import signal
import sys
import threading
import time
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

import msgspec
import multiprocess
import zmq
from multiprocess import forkserver, resource_tracker

from mmurace.broker import plan, router
from mmurace.broker.aborted import write_aborted
from mmurace.broker.bounded_waits import Patience
from mmurace.broker.counts import Counts
from mmurace.broker.plan import ROUTER, Outcome, Plan
from mmurace.broker.recorder import last_number, write_schedule
from mmurace.broker.resources import check_room
from mmurace.broker.socket_directory import SocketDirectory
from mmurace.nodes import plugins, runtime, sockets
from mmurace.nodes.journal import journal_path
from mmurace.protocol import limits, signals, wire
from mmurace.protocol.envelope import BROKER
from mmurace.protocol.errors import EmulatorError, TimedOut, UserError
from mmurace.protocol.trace import Ending

PRELOADED = ["mmurace.broker.router", "mmurace.nodes.build", "mmurace.nodes.runtime"]
"""What the server that forks off our processes has imported; it has no socket and no thread."""
ABORT_SECONDS = 1.0
"""How long an aborted run may take to write its end; it takes a few milliseconds."""
LEAVE_SECONDS = 0.4
"""How long its processes may then take to leave; then they are killed."""
LAST_WORD_SECONDS = 2.0
"""How long the last word of a router that left in order may take."""


class Supervisor:
    """One run on processes.  See the module's docstring."""

    def __init__(self, run: Plan) -> None:
        _check_run(run)
        self.plan = run
        self.processes: dict[str, Any] = {}
        """By name; the broker's is called ``router``."""
        self.outcome: Outcome | None = None
        """How it ended, once it has."""
        self.token = secrets.token_hex(16)
        """What a peer must know to be heard."""
        self.directory = ""
        """Where the socket is while it starts; gone once it has."""
        self.unwritten = ""
        """Why the schedule could not be written; what it says is in the broker's journal."""
        self._exits: dict[str, int] = {}
        self._handles: list[int] = []
        """Of all processes (``pidfd_open``): their server may be killed, and then knows nothing."""
        self._killed: set[str] = set()
        """Nodes that the router had killed: their deaths are no news."""
        self._context: zmq.Context[sockets.Socket] | None = None
        self._place: SocketDirectory | None = None
        self._mask: signals.Mask = set()
        """The signals that the caller holds."""

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name; the broker's is called ``router``."""
        return {name: process.pid for name, process in self.processes.items()}

    # -- start ---------------------------------------------------------------------------

    def __enter__(self) -> Supervisor:
        """Start everything and wait until every process is there.

        Raises ``TimedOut`` (which names who is missing), ``EmulatorError`` (a process broke) or
        ``UserError`` (there is no place for a socket).
        """
        _start_tracker()
        self._mask = signals.hold()
        try:
            check_room(1 + len(self.plan.nodes))
            self._place = SocketDirectory()
            self.directory = self._place.path
            self._start_processes()
            self._say_hello()
            self._await_ready()
        except BaseException as error:
            self._end("Ctrl-C" if _interrupted(error) else "could not start")
            raise
        return self

    def _start_processes(self) -> None:
        """The router comes last: it lets in whom it knows."""
        context = multiprocess.get_context("forkserver")
        endpoint = router.endpoint(self.directory)
        with _no_main_module():
            _start_forkserver()
            for name in self.plan.nodes:
                arguments = self._node_arguments(name, endpoint)
                self._start_process(context, name, runtime.main, arguments)
            known = (os.getpid(), *self.pids.values())
            arguments = (self.plan, self.directory, self.token, known)
            self._start_process(context, ROUTER, router.main, arguments)

    def _start_process(
        self, context: Any, name: str, main: Any, arguments: tuple[Any, ...]
    ) -> None:
        needed = plugins.Needed(plugin.path for plugin in plugins.loaded())
        given = (needed, main, arguments)
        process = context.Process(target=plugins.start, args=given, name=name, daemon=True)
        _start_tracker()  # it may have been killed
        try:
            process.start()
        except (OSError, EOFError) as error:
            raise EmulatorError(f"{name} could not be started: {error}") from None
        self.processes[name] = process
        with suppress(ProcessLookupError):  # gone already
            self._handles.append(os.pidfd_open(process.pid))

    def _say_hello(self) -> None:
        self._context = zmq.Context()
        self._socket = sockets.dealer(self._context, router.endpoint(self.directory))
        self._send("hello", plan.LAUNCHER, self.token)

    def _node_arguments(self, name: str, endpoint: str) -> tuple[Any, ...]:
        run = self.plan
        journal = str(journal_path(run.directory, name))
        return (name, endpoint, self.token, run.world, run.seed, journal, run.build, run.disk)

    def _await_ready(self) -> None:
        """The router says when all are there, or who is not; the bound here is for the router."""
        bound = limits.READY_SECONDS_MAX + limits.STOP_SECONDS_MAX
        patience = Patience(bound)
        while self._step(limits.SOCKET_SECONDS_MAX) != "ready":
            if self.outcome is not None and self.outcome.status == plan.NOT_READY:
                raise TimedOut(self.outcome.detail, limits.READY_SECONDS_MAX)
            if self.outcome is not None:
                raise EmulatorError(f"{self.outcome.status}: {self.outcome.detail}")
            if patience.over():
                raise TimedOut("the router to say that all are ready", bound)

    # -- while it runs -------------------------------------------------------------------

    def wait(self, seconds: float) -> Outcome | None:
        """How the run ended, or None if it still runs after so many seconds."""
        deadline = time.monotonic() + seconds
        while self.outcome is None:
            left = deadline - time.monotonic()
            self._step(max(0.0, min(left, limits.SOCKET_SECONDS_MAX)))
            if left <= 0:
                break
        return self.outcome

    def stop_feeding(self, why: str = "") -> None:
        """No new operations; those in flight are finished, and then the run ends."""
        self._send("stop", why)

    def heal(self) -> None:
        """No more chaos: everything kept back moves again."""
        self._send("heal")

    def abort(self, why: str = "") -> None:
        """End the run now."""
        self._send("abort", why)

    def _send(self, word: str, *values: str) -> None:
        self._socket.send(wire.control_frame(word, *values), zmq.NOBLOCK)

    def _step(self, seconds: float) -> str:
        """Wait for the router's next word or somebody's death, and see to it; "" if none."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        running = {p.sentinel: n for n, p in self.processes.items() if n not in self._exits}
        for sentinel in running:
            poller.register(sentinel, zmq.POLLIN)
        events = self._poll(poller, int(seconds * 1000))
        word = self._hear()
        for sentinel, name in running.items():
            if sentinel in events:
                self._gone(name)
        return word

    def _poll(self, poller: zmq.Poller, milliseconds: int) -> dict[Any, int]:
        """Here, and nowhere else in a run, the signals that end it are let in."""
        before = signals.hold()
        try:
            signals.restore(self._mask)
            return dict(poller.poll(milliseconds))
        finally:
            signals.restore(before)

    def _hear(self) -> str:
        """Take one message from the router, if there is one."""
        try:
            fields = wire.header(self._socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            return ""
        word = str(fields[0])
        if word == "end":
            self.outcome = msgspec.convert(fields[1], Outcome)
        elif word == "broken":
            self.outcome = self._broken(plan.ROUTER_DIED, str(fields[1]))
        elif word == "kill":
            self._killed.add(str(fields[1]))
            self.processes[str(fields[1])].kill()
        return word

    def _gone(self, name: str) -> None:
        """A process has ended: orderly, or the run ends with it."""
        process = self.processes[name]
        process.join(limits.STOP_SECONDS_MAX)
        self._exits[name] = status = process.exitcode
        if name == ROUTER:
            # What it said last may still be on its way in the socket's own thread.
            patience = LAST_WORD_SECONDS if status == 0 else 0.0
            while self.outcome is None and self._socket.poll(int(patience * 1000)):
                self._hear()
            if self.outcome is None:
                self.outcome = self._broken(plan.ROUTER_DIED, f"{ROUTER} {_how(status)}")
        elif status != 0 and self.outcome is None and name not in self._killed:
            self._send("died", name, _how(status))

    def _broken(self, status: str, detail: str) -> Outcome:
        """The end of a run whose router cannot tell any more."""
        ending = Ending(last_number(self.plan.directory), 0, False, ())
        return Outcome(status, ending, Counts().as_dict(), detail=detail)

    # -- the end -------------------------------------------------------------------------

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the run if it still runs; then everything is gone."""
        self._end("Ctrl-C" if _interrupted(error) else "left early")

    def _end(self, why: str) -> None:
        mask, self._mask = self._mask, signals.hold()
        try:
            self._clear_away(why)
        finally:
            signals.restore(mask)

    def _clear_away(self, why: str) -> None:
        try:
            in_order = self.outcome is not None and self.outcome.sound
            if self._context is not None and self.outcome is None:
                self._abort_within(why)
            self._end_processes(limits.STOP_SECONDS_MAX if in_order else LEAVE_SECONDS)
        finally:
            if self._context is not None:
                sockets.close(self._context, 0.0)
            if self._place is not None:
                self._place.remove()
        if in_order:
            self.unwritten = write_schedule(self.plan.directory)
        if why == "Ctrl-C":
            write_aborted(self.plan.directory, why)

    def _abort_within(self, why: str) -> None:
        self.abort(why)
        self.wait(ABORT_SECONDS)

    def _end_processes(self, seconds: float) -> None:
        """Wait so long for all to go; then do not wait.  To ask is no use: they were told."""
        for handle in _still_there(self._handles, seconds):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        _still_there(self._handles, limits.STOP_SECONDS_MAX)  # a killed one goes when it can
        for process in self.processes.values():
            process.join(limits.STOP_SECONDS_MAX)
        for handle in self._handles:
            os.close(handle)
        self._handles.clear()


def _interrupted(error: BaseException | None) -> bool:
    return isinstance(error, KeyboardInterrupt)


def _still_there(handles: list[int], seconds: float) -> set[int]:
    """The processes that are there after so many seconds."""
    patience, poller, there = Patience(seconds), select.poll(), set(handles)
    for handle in there:
        poller.register(handle, select.POLLIN)
    while there:
        left = min(patience.left(), limits.SOCKET_SECONDS_MAX)
        for handle, _ in poller.poll(left * 1000):
            poller.unregister(handle)
            there.discard(handle)
        if left == 0.0:
            break
    return there


def _how(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"ended with status {status}"
    return f"was killed by {signal.Signals(-status).name}"


def _check_run(run: Plan) -> None:
    """Raises ``UserError`` for what would fail later and less clearly."""
    for name in plan.impossible_names(run.nodes):
        raise UserError("nodes", f"a node cannot be called {name!r}", plan.NODE_NAME.pattern)
    if len(set(run.nodes)) != len(run.nodes) or not 0 < len(run.nodes) <= limits.NODES_MAX:
        raise UserError(
            "nodes", f"{len(run.nodes)} names", f"1 to {limits.NODES_MAX}, no two equal"
        )
    for program in run.programs:
        if program.node not in run.nodes:
            where = f"program {program.name}"
            raise UserError(where, f"is for {program.node!r}", f"one of {', '.join(run.nodes)}")
    if not run.directory.is_dir():
        raise UserError(str(run.directory), "is not a directory", "a new, empty one")
    for name in (BROKER, *run.nodes):
        if journal_path(run.directory, name).exists():
            raise UserError(str(run.directory), "a run is recorded here already", "a new directory")


_STARTING = threading.Lock()


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Spawned processes would run the caller's script again; ours need nothing from it."""
    with _STARTING:
        caller = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = caller


def _start_tracker() -> None:
    """The process that ``multiprocess`` starts once, now: its start lets signals in at its end.

    It ignores two of them, and with the third held it is deaf to all.  That it was killed is no
    news: there is nothing that it could lose.
    """
    before = signals.hold()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "resource_tracker: process died")
            resource_tracker.ensure_running()
    finally:
        signals.restore(before)


def _start_forkserver() -> None:
    """The server that forks off processes, once; it holds all signals that end a run.

    It imports what we do from where we do, and its socket lies where it is swept if we are killed.
    """
    config = multiprocess.process.current_process()._config
    if "tempdir" not in config:
        place = SocketDirectory()
        atexit.register(place.remove)
        config["tempdir"] = place.path
    forkserver.set_forkserver_preload(PRELOADED)
    before = os.environ.copy()
    os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, sys.path))
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        forkserver.ensure_running()
    finally:
        for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
            del os.environ[name]
            if name in before:
                os.environ[name] = before[name]
