"""The coverage of a workload: in whose windows somebody was, by operation and kind of cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from mmurace.oracle.verdict import How
from mmurace.report import formats

HEAD: Final = "entered with a live"
"""What the columns say."""
NEVER: Final = "NEVER"
ENTERED: Final = "entered("
"""The conditions that the table shows."""


def table_lines(windows: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """One line a kind of operation; a cell that cannot be met in the world is blank."""
    caches = list(dict.fromkeys(cache for row in windows.values() for cache in row))
    width = max(len(HEAD), *(len(kind) for kind in windows))
    yield _line(HEAD, caches, width)
    for kind, row in windows.items():
        yield _line(kind, [_cell(row.get(cache)) for cache in caches], width)


def _line(first: str, cells: list[str], width: int) -> str:
    return f"{first:<{width}}" + "".join(f"{cell:>8}" for cell in cells)


def _cell(count: int | None) -> str:
    if count is None:
        return ""
    return formats.number(count) if count else NEVER


def never_entered(how: How) -> str:
    """``3 of 29 windows never entered``; empty if all were, or nobody asked."""
    counts = [count for row in how.windows.values() for count in row.values()]
    never = counts.count(0)
    return f"{never} of {formats.many(len(counts), 'window')} never entered" if never else ""
