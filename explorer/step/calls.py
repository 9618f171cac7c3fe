"""Which functions each delivery of a run calls, and on which lines it leaves its threads.

A breakpoint on a function is met by the delivery whose handling calls it, also where the function
returns at once; one on a line by the delivery after which a thread waits there.
"""

from __future__ import annotations

import dis
import sys
import types
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from mmurace.explorer.shrink.case import Case
from mmurace.explorer.step.stacks import MACHINERY, frames_of
from mmurace.explorer.step.walk import Walk
from mmurace.nodes.driver import Driver

NODES: Final = str(Path(__file__).resolve().parents[2] / "nodes")
Line = tuple[str, int]
"""A file's real path, and a line of it."""


@dataclass(frozen=True, slots=True)
class Called:
    """One delivery."""

    node: str
    functions: tuple[str, ...]
    """Functions of nodes that it called, in order."""
    lines: frozenset[Line]
    """Where threads of the node wait since then."""

    def meets(self, functions: Collection[str], lines: Collection[Line]) -> bool:
        """Whether one of these breakpoints is met."""
        return any(name in functions for name in self.functions) or any(
            line in lines for line in self.lines
        )


def calls_of(case: Case) -> list[Called]:
    """Every delivery of a case, which is played once more for it."""
    walk, made = Walk(case), []
    stood = {name: _lines(driver) for name, driver in walk.drivers.items()}
    seen: list[str] = []
    while _forward(walk, seen):
        node = walk.moments[-1].envelope.dst
        now = _lines(walk.drivers[node])
        made.append(Called(node, tuple(seen), now - stood[node]))
        stood[node] = now
    return made


def _forward(walk: Walk, seen: list[str]) -> bool:
    """The next delivery; ``seen`` is then what it called."""
    seen.clear()

    def note(frame: types.FrameType, event: str, _: Any) -> None:
        if event == "call" and _begins(frame):
            seen.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        return walk.forward()
    finally:
        sys.setprofile(before)


def _begins(frame: types.FrameType) -> bool:
    """Whether a function of a node is called, and not a coroutine that goes on."""
    code = frame.f_code
    return _is_node_code(code) and frame.f_lasti <= _beginning(code)


@cache
def _is_node_code(code: types.CodeType) -> bool:
    file = str(Path(code.co_filename).resolve())
    return file.startswith(NODES) and not file.endswith(MACHINERY)


@cache
def _beginning(code: types.CodeType) -> int:
    """Where in its code a call begins: before that only arguments are put in place."""
    resumes = (i.offset for i in dis.get_instructions(code) if i.opname == "RESUME")
    return next(resumes, 0)


def _lines(driver: Driver) -> frozenset[Line]:
    """Where the threads of a node wait."""
    tasks = [*driver.waiting.values(), *driver.settling]
    tasks += [task for sleeping in driver.parked.values() for task in sleeping]
    frames = (frame for task in tasks for frame in frames_of(task))
    return frozenset((_real(frame.file), frame.line) for frame in frames)


@cache
def _real(file: str) -> str:
    return str(Path(file).resolve())
