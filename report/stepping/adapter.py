"""The stepper as a debug adapter: threads are nodes, frames the kernel functions that wait.

A delivery is a step.  *Next* goes to the next delivery of the thread's node, *step in* to the next
one of anybody, *step out* to where the function has returned; the same backwards.  What is typed
into the debugger's console are the commands of the terminal (``what-if``, ``page``, ``diff``, ...).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from mmurace.explorer.run import outcome as codes
from mmurace.explorer.step.events import of_party, party_of
from mmurace.explorer.step.stepper import Stepper
from mmurace.protocol.errors import EmulatorError, PeerError, ReplayDivergence, UserError
from mmurace.report.stepping import places, words
from mmurace.report.stepping.session import Session
from mmurace.report.stepping.variables import Variables, label_of
from mmurace.report.stepping.wire import read_message, write_message

VIOLATION: Final = "violation"
CAPABILITIES: Final = {
    "supportsConfigurationDoneRequest": True,
    "supportsFunctionBreakpoints": True,
    "supportsStepBack": True,
    "supportsExceptionInfoRequest": True,
    "supportsEvaluateForHovers": True,
    "supportsSteppingGranularity": True,
    "supportTerminateDebuggee": False,
    "supportsTerminateRequest": True,
    "exceptionBreakpointFilters": [
        {"filter": VIOLATION, "label": "A rule is broken", "default": True}
    ],
}
Body = dict[str, Any]
Open = Callable[[Path], Stepper]


def serve(incoming: IO[bytes], outgoing: IO[bytes], source: Path | None, opened: Open) -> int:
    """Answer a debugger until it leaves; 0.  Raises ``UserError`` for what is not the protocol."""
    adapter = Adapter(lambda message: write_message(outgoing, message), source, opened)
    while not adapter.ended and (message := read_message(incoming)) is not None:
        adapter.take(message)
    return codes.HELD


class Adapter:
    """Takes requests one by one; answers and events go to ``send``."""

    def __init__(
        self, send: Callable[[dict[str, Any]], object], source: Path | None, opened: Open
    ) -> None:
        self._send, self._source, self._open = send, source, opened
        self._number = 0
        self.ended = False
        self._session: Session | None = None
        self._entry = True
        """Stop before the first delivery."""
        self._thread = 1
        self._shown: Variables | None = None
        self._lines: dict[str, set[tuple[str, int]]] = {}
        self._in_lines: dict[str, set[str]] = {}
        """Functions in which a breakpoint on a line stands for the whole of it, by file."""
        self._named: set[str] = set()

    # -- messages ----------------------------------------------------------------------------

    def take(self, request: dict[str, Any]) -> None:
        """Answer one request.  What goes wrong is an answer, too."""
        command = str(request.get("command", ""))
        given = request.get("arguments")
        does = getattr(self, f"do_{command}", None)
        answer = {"type": "response", "request_seq": request.get("seq", 0), "command": command}
        then: list[tuple[str, Body]] = []
        try:
            if does is None:
                raise UserError(command, "is not supported", "another request")
            body = does(given if isinstance(given, dict) else {}, then)
            self._out(answer | {"success": True, "body": body or {}})
        except (UserError, ReplayDivergence, PeerError, EmulatorError) as error:
            self._out(answer | {"success": False, "message": str(error)})
        for event, body in then:
            self._out({"type": "event", "event": event, "body": body})

    def _out(self, message: dict[str, Any]) -> None:
        self._number += 1
        self._send({"seq": self._number} | message)

    @property
    def session(self) -> Session:
        """The run that is debugged.  Raises ``UserError`` before there is one."""
        if self._session is None:
            raise UserError("program", "is not launched", "a run, or a schedule file")
        return self._session

    # -- begin and end -----------------------------------------------------------------------

    def do_initialize(self, _: Body, __: Any) -> Body:
        """What this adapter can."""
        return CAPABILITIES

    def do_launch(self, given: Body, then: list[tuple[str, Body]]) -> None:
        """Open the run: ``program`` is a schedule file or a run; ``stopOnEntry`` as usual."""
        program = given.get("program")
        source = Path(program) if isinstance(program, str) and program else self._source
        if source is None:
            raise UserError("program", "names nothing", "a run, or a schedule file")
        self._session = Session(self._open(source))
        self._entry = given.get("stopOnEntry") is not False
        then.append(("initialized", {}))

    do_attach = do_launch

    def do_configurationDone(self, _: Body, then: list[tuple[str, Body]]) -> None:  # noqa: N802
        """Breakpoints are set: stop at the beginning, or run."""
        then.append(self._stopped("entry") if self._entry else self._stopped(self.session.run()))

    def do_disconnect(self, _: Body, then: list[tuple[str, Body]]) -> None:
        """The debugger leaves."""
        self.ended = True
        then.append(("terminated", {}))

    do_terminate = do_disconnect

    # -- breakpoints -------------------------------------------------------------------------

    def do_setBreakpoints(self, given: Body, _: Any) -> Body:  # noqa: N802
        """Breakpoints of one file, instead of those that it had."""
        path = Path(str(_table(given.get("source")).get("path", "")))
        file, lines, functions = str(path.resolve()), set[tuple[str, int]](), set[str]()
        answers: list[Body] = []
        for wanted in _tables(given, "breakpoints"):
            place = places.place_at(path, _integer(wanted, "line"))
            if place is None:
                answers.append({"verified": False, "message": places.ELSEWHERE})
                continue
            if place.function:
                functions.add(place.function)
            else:
                lines.add((file, place.line))
            answers.append({"verified": True, "line": place.line})
        self._lines[file], self._in_lines[file] = lines, functions
        self._set_breakpoints()
        return {"breakpoints": answers}

    def do_setFunctionBreakpoints(self, given: Body, _: Any) -> Body:  # noqa: N802
        """Breakpoints on functions, instead of all such."""
        wanted = [str(one.get("name")) for one in _tables(given, "breakpoints")]
        called = {function for one in self.session.calls() for function in one.functions}
        self._named = set(wanted)
        self._set_breakpoints()
        never = "never called in this run"
        return {
            "breakpoints": [
                {"verified": True} if name in called else {"verified": False, "message": never}
                for name in wanted
            ]
        }

    def do_setExceptionBreakpoints(self, given: Body, _: Any) -> None:  # noqa: N802
        """Whether to stop where a rule is broken."""
        filters = given.get("filters")
        self.session.stops_on_violations = isinstance(filters, list) and VIOLATION in filters

    def _set_breakpoints(self) -> None:
        session = self.session
        session.functions = self._named.union(*self._in_lines.values())
        session.lines = set().union(*self._lines.values())

    # -- moving ------------------------------------------------------------------------------

    def do_continue(self, _: Body, then: list[tuple[str, Body]]) -> Body:
        """On to a breakpoint, a violation or the end."""
        then.append(self._stopped(self.session.run()))
        return {"allThreadsContinued": True}

    def do_reverseContinue(self, _: Body, then: list[tuple[str, Body]]) -> None:  # noqa: N802
        """Back to a breakpoint or the beginning."""
        then.append(self._stopped(self.session.run(back=True)))

    def do_next(self, given: Body, then: list[tuple[str, Body]]) -> None:
        """To the next delivery of a thread's node, or to the next one at all."""
        self._step(given, back=False)
        then.append(self._stopped("step"))

    def do_stepBack(self, given: Body, then: list[tuple[str, Body]]) -> None:  # noqa: N802
        """The same backwards."""
        self._step(given, back=True)
        then.append(self._stopped("step"))

    def _step(self, given: Body, back: bool) -> None:
        session, node = self.session, self._node(given)
        alone = given.get("granularity") == "instruction"
        if alone or not session.seek(of_party(node), back):
            session.stepper.go(session.stepper.at + (-1 if back else 1))

    def do_stepIn(self, given: Body, then: list[tuple[str, Body]]) -> None:  # noqa: N802
        """The next delivery, whoever it is for."""
        self._node(given)
        self.session.stepper.go(self.session.stepper.at + 1)
        then.append(self._stopped("step"))

    def do_stepOut(self, given: Body, then: list[tuple[str, Body]]) -> None:  # noqa: N802
        """To where the innermost function of the thread has returned."""
        node, stepper = self._node(given), self.session.stepper
        depth = self._depth(node)
        while stepper.next is not None:
            stepper.go(stepper.at + 1)
            if self._depth(node) < depth:
                break
        then.append(self._stopped("step"))

    def _depth(self, node: str) -> int:
        return max((len(stack.frames) for stack in self.session.stepper.stacks(node)), default=0)

    def do_pause(self, _: Body, then: list[tuple[str, Body]]) -> None:
        """It is always at rest between two requests."""
        then.append(self._stopped("pause"))

    def _stopped(self, why: str) -> tuple[str, Body]:
        """The event that says where we are now.

        The thread is who acted last, which then waits; at a breakpoint the node that met it.
        """
        session = self.session
        self._shown = None
        stepper, broken = session.stepper, session.broken_here()
        if stepper.last is not None:
            last = stepper.last
            acting = last.envelope.dst if why == "breakpoint" else party_of(last)
            self._thread = list(stepper.drivers).index(acting) + 1
        reasons = {VIOLATION: "exception", "end": "pause", "start": "entry"}
        reason = "exception" if broken else reasons.get(why, why)
        body: Body = {
            "reason": reason, "threadId": self._thread, "allThreadsStopped": True,
            "description": words.place_line(stepper),
        }  # fmt: skip
        if broken:
            body["text"] = words.broken_line(broken[0])
        return "stopped", body

    # -- looking -----------------------------------------------------------------------------

    def _node(self, given: Body) -> str:
        nodes = list(self.session.stepper.drivers)
        number = given.get("threadId", self._thread)
        if not isinstance(number, int) or not 0 < number <= len(nodes):
            raise UserError("threadId", f"is {number!r}", f"1 to {len(nodes)}")
        return nodes[number - 1]

    @property
    def _variables(self) -> Variables:
        if self._shown is None:
            session = self.session
            self._shown = Variables(session.stepper.state(), session.changes())
        return self._shown

    def do_threads(self, _: Body, __: Any) -> Body:
        """Nodes."""
        nodes = enumerate(self.session.stepper.drivers, 1)
        return {"threads": [{"id": number, "name": name} for number, name in nodes]}

    def do_stackTrace(self, given: Body, _: Any) -> Body:  # noqa: N802
        """The functions that have not returned, innermost first; below each thread what it is."""
        node, frames = self._node(given), list[Body]()
        for stack in self.session.stepper.stacks(node):
            for frame in stack.frames:
                path = Path(frame.file).resolve()
                source = {"name": frame.stands_for or path.name, "path": str(path)}
                number = self._variables.frame(node, frame)
                frames.append({"id": number, "name": frame.function, "source": source,
                               "line": frame.line, "column": 1})  # fmt: skip
            frames.append(self._label(node, label_of(stack)))
        if not frames:
            frames.append(self._label(node, "no thread of it waits"))
        first = _integer(given, "startFrame", 0)
        levels = _integer(given, "levels", 0) or len(frames)
        return {"stackFrames": frames[first : first + levels], "totalFrames": len(frames)}

    def _label(self, node: str, text: str) -> Body:
        number = self._variables.frame(node, None)
        return {"id": number, "name": text, "line": 0, "column": 0, "presentationHint": "label"}

    def do_scopes(self, given: Body, _: Any) -> Body:
        """The node of a frame, its locals, what changed, all nodes."""
        return {"scopes": self._variables.scopes(_integer(given, "frameId"))}

    def do_variables(self, given: Body, _: Any) -> Body:
        """What a scope holds."""
        return {"variables": self._variables.variables(_integer(given, "variablesReference"))}

    def do_exceptionInfo(self, _: Body, __: Any) -> Body:  # noqa: N802
        """What has been broken here."""
        lines = [words.broken_line(violation) for violation in self.session.broken_here()]
        return {"exceptionId": VIOLATION, "description": "\n".join(lines), "breakMode": "always"}

    def do_evaluate(self, given: Body, then: list[tuple[str, Body]]) -> Body:
        """A field by its name; in the console also the commands of the terminal."""
        expression = str(given.get("expression", "")).strip()
        value = self._variables.value_of(expression, _integer(given, "frameId", 0))
        if value is not None:
            return {"result": value, "variablesReference": 0}
        if given.get("context") not in (None, "repl"):
            raise UserError(expression, "is not known here", "a field of a node")
        at, case = self.session.stepper.at, self.session.stepper.case
        lines = self.session.do(expression)
        self._named |= self.session.functions.difference(*self._in_lines.values())
        if (at, case) != (self.session.stepper.at, self.session.stepper.case):
            then.append(self._stopped("step"))
        return {"result": "\n".join(lines), "variablesReference": 0}


def _integer(given: Body, key: str, otherwise: int | None = None) -> int:
    """An argument that is a number.  Raises ``UserError``."""
    value = given.get(key, otherwise)
    if not isinstance(value, int):
        raise UserError(key, f"is {value!r}", "a number")
    return value


def _table(value: Any) -> Body:
    return value if isinstance(value, dict) else {}


def _tables(given: Body, key: str) -> list[Body]:
    """An argument that is a list of objects; of what is none there are none."""
    values = given.get(key)
    return list(map(_table, values)) if isinstance(values, list) else []
