"""The text of an strace log as calls: ``PID TIME call(args) = result``, as ``strace -f -ttt``.

Halves (``<unfinished ...>`` and ``<... resumed>``) are joined.  A line that is none of what
strace writes is a ``UserError`` that names the file and the line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mmurace.protocol.errors import UserError

_LINE = re.compile(r"^(?P<pid>\d+)\s+(?P<time>\d+\.\d+)\s+(?P<body>\S.*)$")
_CALL = re.compile(
    r"^(?P<name>\w+)\((?P<args>.*)\)\s+= (?P<result>-?\d+|0x[0-9a-f]+|\?)(?P<why>\s.*)?$"
)
_UNFINISHED = re.compile(r"^(?P<name>\w+)\((?P<args>.*?)\s*<unfinished \.\.\.>$")
_RESUMED = re.compile(r"^<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)$")
_SIGNAL = re.compile(r"^--- .* ---$")
_EXIT = re.compile(r"^\+\+\+ .* \+\+\+$")
_FORM: Final = "PID TIME call(args) = result, as strace -f -ttt writes"


@dataclass(frozen=True, slots=True)
class Call:
    """One system call.  ``start`` and ``end`` are line numbers from 1, equal if not split."""

    pid: int
    name: str
    args: tuple[str, ...]
    result: int | None
    """None: it does not return (``exit``), or strace did not see it return."""
    failed: bool
    start: int
    end: int

    @property
    def order(self) -> int:
        """The line at which its effect on the address space is placed.

        Addresses are free once ``munmap`` has begun and taken once ``mmap`` has returned, so a
        mapping that reuses an address is placed after the unmapping that freed it.
        """
        return self.end if self.name in ("mmap", "mremap") else self.start

    @property
    def lines(self) -> int:
        """How many lines of the log it takes."""
        return 1 if self.start == self.end else 2


@dataclass(slots=True)
class Log:
    """A parsed log: calls in the order of their effects, and lines that are no calls."""

    where: str
    lines: int = 0
    calls: list[Call] = field(default_factory=list)
    events: list[tuple[int, str]] = field(default_factory=list)
    """(pid, ``exit`` or ``signal``), one per line."""
    never_returned: list[tuple[int, str]] = field(default_factory=list)
    """(pid, call) that were cut off by the end of their thread or of the log; one line each."""


@dataclass(frozen=True, slots=True)
class _Half:
    name: str
    text: str
    line: int


def read_log(path: Path, name: str = "") -> Log:
    """The log in a file; ``name`` is what errors call it.  Raises ``UserError``."""
    where = name or str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(where, f"cannot be read: {error.strerror}", "an strace log") from None
    except UnicodeDecodeError as error:
        raise UserError(where, f"is not UTF-8 at byte {error.start}", "an strace log") from None
    return parse_log(text, where)


def parse_log(text: str, where: str) -> Log:
    """The same for a text."""
    log = Log(where)
    halves: dict[int, _Half] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        log.lines = number
        match = _LINE.match(line)
        if match is None:
            raise _damaged(where, number, line)
        _take(log, halves, int(match["pid"]), match["body"], number)
    log.never_returned += [(pid, half.name) for pid, half in halves.items()]
    if not log.calls:
        raise UserError(where, "holds no system call", _FORM)
    log.calls.sort(key=lambda call: call.order)
    return log


def _take(log: Log, halves: dict[int, _Half], pid: int, body: str, number: int) -> None:
    """One line of one thread."""
    if _SIGNAL.match(body) or _EXIT.match(body):
        exits = body.startswith("+")
        log.events.append((pid, "exit" if exits else "signal"))
        if exits and pid in halves:
            log.never_returned.append((pid, halves.pop(pid).name))
    elif resumed := _RESUMED.match(body):
        half = halves.pop(pid, None)
        if half is None or half.name != resumed["name"]:
            raise UserError(f"{log.where}:{number}", f"resumes {resumed['name']} of thread {pid}, "
                            "which had not begun", "its unfinished half before it")  # fmt: skip
        log.calls.append(_call(log, pid, half.text + resumed["rest"], half.line, number))
    elif pid in halves:
        raise UserError(f"{log.where}:{number}", f"thread {pid} is inside {halves[pid].name}",
                        "its resumed half first")  # fmt: skip
    elif unfinished := _UNFINISHED.match(body):
        text = f"{unfinished['name']}({unfinished['args']}"
        halves[pid] = _Half(unfinished["name"], text, number)
    else:
        log.calls.append(_call(log, pid, body, number, number))


def _call(log: Log, pid: int, text: str, start: int, end: int) -> Call:
    match = _CALL.match(text)
    if match is None:
        raise _damaged(log.where, end, text)
    result = match["result"]
    try:
        value = None if result == "?" else int(result, 0)
    except ValueError:
        raise _damaged(log.where, end, text) from None
    failed = value == -1 and bool(match["why"])
    args = tuple(part.strip() for part in match["args"].split(","))
    return Call(pid, match["name"], args, value, failed, start, end)


def _damaged(where: str, number: int, text: str) -> UserError:
    shown = text if len(text) <= 60 else text[:57] + "..."
    return UserError(f"{where}:{number}", f"is damaged: {shown!r}", _FORM)


def integer(call: Call, index: int, where: str) -> int:
    """Argument ``index`` as a number.  Raises ``UserError`` naming the line."""
    text = call.args[index] if index < len(call.args) else ""
    if text == "NULL":
        return 0
    try:
        return int(text, 0)
    except ValueError:
        raise UserError(f"{where}:{call.end}", f"argument {index + 1} of {call.name} is {text!r}",
                        "a number") from None  # fmt: skip


def rights(call: Call, index: int, where: str) -> tuple[bool, bool]:
    """Argument ``index`` (``PROT_READ|PROT_WRITE``) as (read, write); exec counts as read."""
    flags = set(call.args[index].split("|")) if index < len(call.args) else {""}
    if not all(flag.startswith("PROT_") for flag in flags):
        raise UserError(f"{where}:{call.end}", f"argument {index + 1} of {call.name} is "
                        f"{'|'.join(sorted(flags))!r}", "PROT_ flags")  # fmt: skip
    write = "PROT_WRITE" in flags
    return write or bool(flags & {"PROT_READ", "PROT_EXEC"}), write
