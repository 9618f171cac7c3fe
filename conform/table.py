"""Tables of what a real kernel did: rows of operations, and the order of calls within each.

A table is a text of columns between tabs, after a header of lines that begin with ``#``: what backs
the memory, the operations (``NAME:PAGE``), maybe the faults of each guest access, and for each
operation, between bars, the tokens of what ran in it.  The header names release and machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mmurace.protocol.errors import UserError

RELEASE: Final = re.compile(r"\bLinux v?(\d+\.\d+(?:\.\d+)?)")
PAGES: Final = re.compile(r"memslot of (\d+) pages")
PAGES_USUAL: Final = 3
OPERATION: Final = re.compile(r"([a-z_]+):(\d+)(?:\+(\d+))?")


@dataclass(frozen=True, slots=True)
class Called:
    """One operation of a row."""

    name: str
    page: int
    pages: int = 1
    """From that one on."""


@dataclass(frozen=True, slots=True)
class Row:
    """A sequence of operations, one after the other, and what was seen."""

    line: int
    """In the file, from 1."""
    memory: str
    """What backs the memory: ``anon``, ``swap``, ``shmem``, ``fshared``, ``fprivate``."""
    operations: tuple[Called, ...]
    faults: tuple[str, ...] | None
    """Of each guest access: how many, or the error; None: the table does not say."""
    order: tuple[tuple[str, ...], ...]
    """Of each operation: its tokens."""


@dataclass(frozen=True, slots=True)
class Table:
    """A file of rows."""

    path: Path
    release: str
    """As its header names it, such as ``v6.1.192``."""
    machine: str
    """``x86`` or ``arm64``."""
    pages: int
    """Pages of the memory that the operations act on."""
    rows: tuple[Row, ...]


def read_table(path: Path) -> Table:
    """Read one.  Raises ``UserError`` by file and line for what is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(str(path), f"cannot be read: {error}", "a table of measured rows") from None
    header = "\n".join(line for line in lines if line.startswith("#"))
    release = RELEASE.search(header)
    if release is None:
        raise UserError(str(path), "names no release in its header", "# ... Linux 6.1.192 ...")
    machine = "arm64" if re.search(r"arm64|aarch64", header, re.IGNORECASE) else "x86"
    rows = tuple(_rows(path, lines))
    if not rows:
        raise UserError(str(path), "has no rows", "a table of measured rows")
    return Table(path, f"v{release[1]}", machine, _pages(header, rows), rows)


def _pages(header: str, rows: Iterable[Row]) -> int:
    """As many as the header says, or some row uses."""
    said = PAGES.search(header)
    used = (called.page + called.pages for row in rows for called in row.operations)
    return max(int(said[1]) if said else PAGES_USUAL, *used)


def _rows(path: Path, lines: list[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            yield _row(f"{path}:{number}", number, line.split("\t"))


def _row(where: str, number: int, columns: list[str]) -> Row:
    if len(columns) not in (3, 4):
        raise UserError(where, f"has {len(columns)} columns", "3 or 4, between tabs")
    memory, operations, *faults, order = columns
    called = tuple(_called(where, word) for word in operations.split())
    parts = tuple(tuple(part.split()) for part in order.split(" | "))
    if len(parts) != len(called):
        raise UserError(where, f"has {len(parts)} parts for {len(called)} operations", "one each")
    seen = tuple(filter(None, faults[0].split(","))) if faults else None
    return Row(number, memory, called, seen, parts)


def _called(where: str, word: str) -> Called:
    match = OPERATION.fullmatch(word)
    if match is None:
        raise UserError(where, f"{word!r} is no operation", "NAME:PAGE or NAME:PAGE+PAGES")
    return Called(match[1], int(match[2]), int(match[3] or 1))
