"""The stepper by the Debug Adapter Protocol, as an editor drives it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmurace.nodes.secondaries.kvm import vmx
from mmurace.protocol.errors import UserError
from mmurace.report.commands.step import opened
from mmurace.report.stepping.adapter import Adapter
from mmurace.report.stepping.places import place_at
from mmurace.report.stepping.wire import BODY_BYTES_MAX, read_message, write_message
from tests.stepping import schedule_file

ROOT = Path(__file__).parent.parent
RELOAD = "kvm_vcpu_reload_apic_access_page"


class Debugger:
    """What an editor does: one request, its answer, and the events that come after it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self.to, self.of = process, process.stdin, process.stdout
        self.number = 0
        self.stopped: dict[str, Any] = {}

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The body of the answer.  The test fails if it is refused."""
        self.number += 1
        request = {"seq": self.number, "type": "request", "command": command}
        write_message(self.to, request | {"arguments": arguments})
        answer = self._read()
        assert (answer["type"], answer["request_seq"]) == ("response", self.number), answer
        assert answer["success"], answer
        body: dict[str, Any] = answer["body"]
        return body

    def move(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The ``stopped`` event that follows."""
        self.ask(command, **arguments)
        self.stopped = self.event("stopped")
        return self.stopped

    def event(self, name: str) -> dict[str, Any]:
        """The next message, which is that event."""
        message = self._read()
        assert (message["type"], message["event"]) == ("event", name)
        body: dict[str, Any] = message["body"]
        return body

    def _read(self) -> dict[str, Any]:
        message = read_message(self.of)
        assert message is not None, "it has left"
        return message

    def threads(self) -> dict[str, int]:
        """Node -> number of its thread."""
        return {one["name"]: one["id"] for one in self.ask("threads")["threads"]}

    def stack(self, node: str) -> list[dict[str, Any]]:
        """The frames of a node's threads."""
        frames: list[dict[str, Any]] = self.ask("stackTrace", threadId=self.threads()[node])[
            "stackFrames"
        ]
        return frames

    def scope(self, frame: int, name: str) -> dict[str, str]:
        """The variables of a scope."""
        for scope in self.ask("scopes", frameId=frame)["scopes"]:
            if scope["name"] == name:
                found = self.ask("variables", variablesReference=scope["variablesReference"])
                return {one["name"]: one["value"] for one in found["variables"]}
        raise AssertionError(name)


@pytest.fixture
def debugger(tmp_path: Path) -> Iterator[Debugger]:
    """One that has launched the race of the README, stopped before the first delivery."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), "step", "--dap"], cwd=tmp_path,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    one = Debugger(process)
    try:
        assert one.ask("initialize", adapterID="mmurace")["supportsStepBack"]
        one.ask("launch", program=str(schedule_file(tmp_path)))
        one.event("initialized")
        yield one
        one.ask("disconnect")
        one.event("terminated")
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


def test_the_session_of_the_race_of_the_readme(debugger: Debugger) -> None:
    """A breakpoint at the reload of the APIC page, on to the violation, back over the change of the
    entry, and the VMCS names the frame all the time."""
    asked = debugger.ask("setFunctionBreakpoints", breakpoints=[{"name": RELOAD}, {"name": "x"}])
    assert [one["verified"] for one in asked["breakpoints"]] == [True, False]
    debugger.ask("setExceptionBreakpoints", filters=["violation"])
    assert debugger.move("configurationDone")["reason"] == "entry"
    assert set(debugger.threads()) == {"memory", "cpu0", "kvm0", "vcpu0"}

    assert debugger.move("continue", threadId=1)["reason"] == "breakpoint"
    assert debugger.move("continue", threadId=1)["reason"] == "breakpoint"
    assert debugger.stopped["threadId"] == debugger.threads()["vcpu0"]
    frames = debugger.stack("vcpu0")
    reload = next(frame for frame in frames if frame["name"] == RELOAD)
    assert reload["source"]["name"] == "arch/x86/kvm/vmx/vmx.c"
    source = Path(reload["source"]["path"]).read_text().splitlines()
    assert "await" in source[reload["line"] - 1]
    assert debugger.scope(reload["id"], "Locals")["gfn"].startswith("0xfee00")

    assert debugger.move("continue", threadId=1)["reason"] == "exception"
    assert debugger.stopped["text"].startswith("BROKEN: S4 by vcpu0 (vmcs) at mm0:0x8000")
    assert debugger.stopped["threadId"] == debugger.threads()["cpu0"]  # who did it, and waits
    assert "source" in debugger.stack("cpu0")[0]
    assert debugger.ask("exceptionInfo", threadId=1)["description"] == debugger.stopped["text"]

    cpu0 = debugger.threads()["cpu0"]
    entries = []
    for _ in range(40):
        debugger.move("stepBack", threadId=cpu0)
        label = debugger.stack("vcpu0")[-1]["id"]
        memory = debugger.scope(debugger.stack("memory")[-1]["id"], "memory")
        entries.append(memory.get("pte mm0:0x8000", "none"))
        own = debugger.scope(label, "vcpu0")
        assert own["VMCS.APIC_ACCESS_ADDR"] == "frame 0x3"
        if entries[-1] == "frame 0x3 RW AD":
            break
    assert list(dict.fromkeys(entries)) == ["migration of 0x3", "none", "frame 0x3 RW AD"]
    debugger.move("next", threadId=cpu0)
    changed = debugger.scope(debugger.stack("cpu0")[-1]["id"], "Changed by the last delivery")
    assert changed["memory: pte mm0:0x8000"] == "frame 0x3 RW AD -> gone"
    name = "VMCS.APIC_ACCESS_ADDR"
    assert debugger.ask("evaluate", expression=name, context="hover")["result"] == "frame 0x3"


def test_a_breakpoint_on_a_line_and_back_to_it(debugger: Debugger) -> None:
    file = Path(vmx.__file__)
    lines = file.read_text().splitlines()
    line = next(at for at, text in enumerate(lines, 1) if "await hva_to_pfn" in text)
    set_ = debugger.ask(
        "setBreakpoints", source={"path": str(file)},
        breakpoints=[{"line": line}, {"line": 1}],
    )["breakpoints"]  # fmt: skip
    assert (set_[0], set_[1]["verified"]) == ({"verified": True, "line": line}, False)
    debugger.move("configurationDone")
    assert debugger.move("continue")["reason"] == "breakpoint"
    stands = [(f["source"]["path"], f["line"]) for f in debugger.stack("vcpu0") if "source" in f]
    assert (str(file.resolve()), line) in stands
    first = debugger.stopped["description"]
    debugger.move("stepOut", threadId=debugger.threads()["vcpu0"])
    assert debugger.stopped["description"] != first
    assert debugger.move("reverseContinue")["description"] == first
    assert debugger.move("reverseContinue")["reason"] == "entry"


def test_the_console_takes_the_commands_of_the_terminal(debugger: Debugger) -> None:
    debugger.move("configurationDone")
    debugger.ask("evaluate", expression="decide", context="repl")
    at = debugger.event("stopped")["description"]
    told = debugger.ask("evaluate", expression="what-if cpu0/1.PteGetAndClear", context="repl")
    assert "nothing is broken" in told["result"]
    assert debugger.event("stopped")["description"] != at
    where = debugger.ask("evaluate", expression="where cpu0", context="repl")["result"]
    assert where.startswith("cpu0, for cpu0/1: waits for ")


# ---- what goes wrong ---------------------------------------------------------------------------


def answers(*requests: dict[str, Any], source: Path | None = None) -> list[dict[str, Any]]:
    """What an adapter sends for these requests."""
    sent: list[dict[str, Any]] = []
    adapter = Adapter(sent.append, source, opened)
    for request in requests:
        adapter.take(request)
    return sent


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"command": "threads"}, "is not launched"),
        ({"command": "launch", "arguments": {"program": "gone"}}, "is no run"),
        ({"command": "launch"}, "names nothing"),
        ({"command": "dance"}, "is not supported"),
        ({}, "is not supported"),
        ({"command": "stackTrace", "arguments": 7}, "is not launched"),
    ],
)
def test_a_request_that_cannot_be_is_answered(request_: dict[str, Any], said: str) -> None:
    (answer,) = answers({"seq": 9, "type": "request"} | request_)
    assert (answer["success"], answer["request_seq"]) == (False, 9)
    assert said in answer["message"]


def test_arguments_that_mean_nothing_are_answered(tmp_path: Path) -> None:
    file = schedule_file(tmp_path)
    requests = [
        ("stackTrace", {"threadId": 99}), ("stackTrace", {"threadId": "a"}),
        ("scopes", {"frameId": "a"}), ("scopes", {}), ("variables", {"variablesReference": "x"}),
        ("setBreakpoints", {"source": {"path": "x"}, "breakpoints": [{}]}),
        ("evaluate", {"expression": "nothing", "context": "hover"}),
    ]  # fmt: skip
    launched, _, *sent = answers(
        {"command": "launch"}, *({"command": c, "arguments": a} for c, a in requests), source=file
    )
    assert launched["success"]
    assert [answer["success"] for answer in sent] == [False] * len(requests)


@pytest.mark.parametrize(
    "text",
    [
        b"hello\r\n\r\n", b"Content-Length: x\r\n\r\n", b"Content-Length: -1\r\n\r\n",
        b"Content-Length: %d\r\n\r\n" % (BODY_BYTES_MAX + 1), b"Content-Length: 2\r\n\r\n[]",
        b"Content-Length: 3\r\n\r\nabc",
    ],
)  # fmt: skip
def test_what_is_not_the_protocol_is_refused(text: bytes) -> None:
    with pytest.raises(UserError):
        read_message(io.BytesIO(text))


@pytest.mark.parametrize("cut", [0, 5, 17, 25])
def test_a_stream_that_ends_ends(cut: int) -> None:
    stream = io.BytesIO()
    write_message(stream, {"seq": 1, "command": "ä"})
    whole = stream.getvalue()
    assert read_message(io.BytesIO(whole)) == {"seq": 1, "command": "ä"}
    assert read_message(io.BytesIO(whole[:cut])) is None


def test_stdout_has_nothing_but_messages(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    command = [sys.executable, str(ROOT / "launch.py")]
    race = ["repro", "E08", "--on", "simulator", "--seed", "1", "--out", str(run)]
    subprocess.run([*command, *race], capture_output=True, timeout=60, check=False)
    said = io.BytesIO()
    for seq, name in enumerate(("initialize", "launch", "configurationDone", "disconnect"), 1):
        write_message(said, {"seq": seq, "type": "request", "command": name})
    done = subprocess.run(
        [*command, "step", "--dap", str(run)], input=said.getvalue(), capture_output=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    stream, messages = io.BytesIO(done.stdout), []
    while (message := read_message(stream)) is not None:
        messages.append(message.get("event") or message["command"])
    assert messages == [
        "initialize", "launch", "initialized", "configurationDone", "stopped", "disconnect",
        "terminated",
    ]  # fmt: skip
    assert json.dumps(messages)


def test_a_line_of_a_function_is_its_next_wait_and_of_its_head_the_function() -> None:
    file = Path(vmx.__file__)
    text = file.read_text().splitlines()
    head = next(at for at, line in enumerate(text, 1) if f"def {RELOAD}" in line)
    place = place_at(file, head)
    assert place is not None
    assert (place.line, place.function) == (head, RELOAD)
    below = place_at(file, head + 2)
    assert below is not None
    assert "await" in text[below.line - 1]
    assert place_at(file, 1) is None
    assert place_at(Path(__file__), 30) is None
