"""Where the threads of a node stand: the kernel functions that wait, innermost first."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mmurace.nodes.driver import Driver, Task
from mmurace.protocol.envelope import Envelope, operation_of

MACHINERY: Final = ("nodes/driver.py", "nodes/node.py", "nodes/plugin_driver.py")
"""What brings a message on its way is nobody's function."""


@dataclass(frozen=True, slots=True)
class StackFrame:
    """One function that has not returned."""

    function: str
    file: str
    line: int
    stands_for: str
    """The kernel's file (``mm/migrate.c``); empty: hardware, or what runs kernel code here."""
    values: tuple[tuple[str, Any], ...]
    """Its locals, as they are."""


@dataclass(frozen=True, slots=True)
class Stack:
    """One thread of a node: the operation that it works for, and what it waits for."""

    operation: str
    waits_for: str
    frames: tuple[StackFrame, ...]


def stacks_of(driver: Driver, on_their_way: Mapping[str, Envelope]) -> list[Stack]:
    """Every thread of a node that has begun and not ended; ``on_their_way``: requests by id."""
    return [
        Stack(operation_of(task.path), text, tuple(frames_of(task)))
        for task, text in _waiting(driver, on_their_way)
    ]


def _waiting(driver: Driver, sent: Mapping[str, Envelope]) -> Iterator[tuple[Task, str]]:
    """Each thread, and what it waits for."""
    for request, task in driver.waiting.items():
        yield task, _request_text(request, sent)
    for on, tasks in driver.parked.items():
        for task in tasks:
            yield task, " ".join(on)
    for task, wanted in driver.settling.items():
        yield task, ", ".join(_request_text(request, sent) for request in wanted)


def _request_text(request: str, sent: Mapping[str, Envelope]) -> str:
    envelope = sent.get(request)
    return request if envelope is None else f"{envelope.kind} at {envelope.dst}"


def frames_of(task: Task) -> list[StackFrame]:
    """The functions of a suspended coroutine, innermost first."""
    frames: list[StackFrame] = []
    awaits: Any = task.coroutine
    while (found := _suspended(awaits)) is not None:
        frame, awaits = found
        if frame is not None and not frame.f_code.co_filename.endswith(MACHINERY):
            frames.append(_frame_of(frame))
    return frames[::-1]


def _suspended(awaits: Any) -> tuple[types.FrameType | None, Any] | None:
    """(the frame of what is awaited, what that awaits); None: it is no coroutine."""
    if isinstance(awaits, types.CoroutineType):
        return awaits.cr_frame, awaits.cr_await
    if isinstance(awaits, types.GeneratorType):
        return awaits.gi_frame, awaits.gi_yieldfrom
    return None


def _frame_of(frame: types.FrameType) -> StackFrame:
    code = frame.f_code
    return StackFrame(
        code.co_name, code.co_filename, frame.f_lineno, kernel_file(frame.f_globals),
        tuple(frame.f_locals.items()),
    )  # fmt: skip


def kernel_file(module: Mapping[str, Any]) -> str:
    """The file of the kernel that a module stands for, as its docstring begins with it."""
    first = (module.get("__doc__") or "").partition(":")[0].split()
    name = first[0].rstrip(",") if first else ""
    return name if name.endswith((".c", ".h")) else ""
