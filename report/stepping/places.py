"""Where a breakpoint in a source file can be: at what waits, or at a whole function."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from mmurace.explorer.step.calls import NODES

Function = ast.FunctionDef | ast.AsyncFunctionDef
ELSEWHERE: Final = "no code that nodes run is there"


@dataclass(frozen=True, slots=True)
class Place:
    """What a line stands for: a line at which a thread waits, or the function that it is in."""

    line: int
    function: str = ""
    """Empty: the line itself."""


def place_at(file: Path, line: int) -> Place | None:
    """The place for a line: the next ``await`` of its function from there, else the function.

    A line of its head or docstring is the function.  None: in no function of a node.
    """
    real = file.resolve()
    if not str(real).startswith(NODES) or not real.is_file():
        return None
    around = [f for f in _functions(real) if f.lineno <= line <= (f.end_lineno or f.lineno)]
    if not around:
        return None
    function = max(around, key=lambda f: f.lineno)
    waits = sorted(w for w in _awaits(function) if w >= line)
    if line < _begins(function) or not waits:
        return Place(function.lineno, function.name)
    return Place(waits[0])


def _begins(function: Function) -> int:
    """The first line after head and docstring."""
    body = function.body[1:] if ast.get_docstring(function) and function.body[1:] else function.body
    return body[0].lineno


@cache
def _functions(file: Path) -> tuple[Function, ...]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return tuple(node for node in ast.walk(tree) if isinstance(node, Function))


def _awaits(function: Function) -> Iterator[int]:
    return (node.lineno for node in ast.walk(function) if isinstance(node, ast.Await))
