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
"""

from __future__ import annotations

import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import msgspec
import multiprocess
import zmq

from mmurace.broker import plan, router
from mmurace.broker.counts import Counts
from mmurace.broker.plan import ROUTER, Outcome, Plan
from mmurace.broker.recorder import last_number, write_schedule
from mmurace.nodes import plugins, runtime, sockets
from mmurace.nodes.journal import journal_path
from mmurace.protocol import limits, wire
from mmurace.protocol.envelope import BROKER
from mmurace.protocol.errors import EmulatorError, TimedOut, UserError
from mmurace.protocol.trace import Ending

PRELOADED = ["mmurace.broker.router", "mmurace.nodes.build", "mmurace.nodes.runtime"]
"""What the server of a campaign has imported; it has no socket and no thread."""
ABORT_SECONDS = 0.4
"""How long an aborted run may take to write its end; then its processes are killed."""
TERMINATE_SECONDS = 0.4
"""From SIGTERM to SIGKILL."""
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
        """Where the socket is, once started."""
        self._exits: dict[str, int] = {}
        self._killed: set[str] = set()
        """Nodes that the router had killed: their deaths are no news."""
        self._context: zmq.Context[sockets.Socket] | None = None

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name; the broker's is called ``router``."""
        return {name: process.pid for name, process in self.processes.items()}

    # -- start ---------------------------------------------------------------------------

    def __enter__(self) -> Supervisor:
        """Start everything and wait until every process is there.

        Raises ``TimedOut`` (which names who is missing) or ``EmulatorError`` (a process broke).
        """
        try:
            self._start()
        except BaseException:
            self._clear_away("could not start")
            raise
        return self

    def _start(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="mmu-")  # 0700; the path is short
        endpoint = router.endpoint(self.directory)
        context = multiprocess.get_context("forkserver" if self.plan.campaign else "spawn")
        if self.plan.campaign:
            context.set_forkserver_preload(PRELOADED)
        targets: dict[str, tuple[Any, tuple[Any, ...]]] = {
            ROUTER: (router.main, (self.plan, self.directory, self.token))
        }
        for name in self.plan.nodes:
            targets[name] = (runtime.main, self._node_arguments(name, endpoint))
        needed = plugins.Needed(plugin.path for plugin in plugins.loaded())
        with _interrupts_held(), _no_main_module():
            for name, (target, arguments) in targets.items():
                given = (needed, target, arguments)
                process = context.Process(target=plugins.start, args=given, name=name, daemon=True)
                process.start()
                self.processes[name] = process
        self._context = zmq.Context()
        self._socket = sockets.dealer(self._context, endpoint)
        self._send("hello", plan.LAUNCHER, self.token)
        self._await_ready()

    def _node_arguments(self, name: str, endpoint: str) -> tuple[Any, ...]:
        run = self.plan
        journal = str(journal_path(run.directory, name))
        return (name, endpoint, self.token, run.world, run.seed, journal, run.build)

    def _await_ready(self) -> None:
        """The router says when all are there, or who is not; the bound here is for the router."""
        bound = limits.READY_SECONDS_MAX + limits.STOP_SECONDS_MAX
        deadline = time.monotonic() + bound
        while self._step(limits.SOCKET_SECONDS_MAX) != "ready":
            if self.outcome is not None and self.outcome.status == plan.NOT_READY:
                raise TimedOut(self.outcome.detail, limits.READY_SECONDS_MAX)
            if self.outcome is not None:
                raise EmulatorError(f"{self.outcome.status}: {self.outcome.detail}")
            if time.monotonic() > deadline:
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
        events = dict(poller.poll(int(seconds * 1000)))
        word = self._hear()
        for sentinel, name in running.items():
            if sentinel in events:
                self._gone(name)
        return word

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
        self._clear_away("interrupted" if kind is KeyboardInterrupt else "left early")

    def _clear_away(self, why: str) -> None:
        with _interrupts_held():
            try:
                in_order = self.outcome is not None and self.outcome.sound
                if self._context is not None and self.outcome is None:
                    self._abort_within(why)
                self._end_processes(limits.STOP_SECONDS_MAX if in_order else ABORT_SECONDS)
            finally:
                if self._context is not None:
                    sockets.close(self._context, 0.0)
                if self.directory:
                    shutil.rmtree(self.directory, ignore_errors=True)
            if in_order:
                write_schedule(self.plan.directory)

    def _abort_within(self, why: str) -> None:
        self.abort(why)
        self.wait(ABORT_SECONDS)

    def _end_processes(self, seconds: float) -> None:
        """Wait so long for all to go; then ask them; then do not ask."""
        processes = list(self.processes.values())
        _join_all(processes, seconds)
        for end in ("terminate", "kill"):
            for process in processes:
                if process.is_alive():
                    getattr(process, end)()
            _join_all(processes, TERMINATE_SECONDS)
        _join_all(processes, limits.STOP_SECONDS_MAX)  # a killed process goes when it can


def _join_all(processes: list[Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))


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


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the end of the block; children inherit that and then ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
