"""What an importer knows of an address space: areas with a value, and sets of pages.

Ranges are half-open, in bytes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from mmurace.protocol.limits import PAGE_SIZE

V = TypeVar("V")

ADDRESS_END: Final = 1 << 48
"""The end of every address space here."""


class AreaMap(Generic[V]):
    """Disjoint areas, each with a value; a later ``put`` replaces what it overlaps."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._areas: list[tuple[int, int, V]] = []

    def _span(self, start: int, end: int) -> tuple[int, int]:
        """Indexes [first, last) of the areas that overlap [start, end)."""
        first = bisect_right(self._starts, start)
        if first and self._areas[first - 1][1] > start:
            first -= 1
        return first, bisect_left(self._starts, end)

    def _replace(self, start: int, end: int, new: list[tuple[int, int, V]]) -> None:
        first, last = self._span(start, end)
        kept = []
        for area_start, area_end, value in self._areas[first:last]:
            if area_start < start:
                kept.append((area_start, start, value))
            if area_end > end:
                kept.append((end, area_end, value))
        merged = sorted([*kept, *new], key=lambda area: area[0])
        self._areas[first:last] = merged
        self._starts[first:last] = [area[0] for area in merged]

    def put(self, start: int, end: int, value: V) -> None:
        """[start, end) has ``value`` from now on."""
        self._replace(start, end, [(start, end, value)])

    def remove(self, start: int, end: int) -> None:
        """Nothing is in [start, end) any more."""
        self._replace(start, end, [])

    def overlapping(self, start: int, end: int) -> Iterator[tuple[int, int, V]]:
        """The parts of areas inside [start, end), in order."""
        first, last = self._span(start, end)
        for area_start, area_end, value in self._areas[first:last]:
            yield max(area_start, start), min(area_end, end), value

    def at(self, address: int) -> V | None:
        """The value at an address."""
        return next((value for _, _, value in self.overlapping(address, address + 1)), None)

    def holes(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) that no area covers."""
        found, at = [], start
        for area_start, area_end, _ in self.overlapping(start, end):
            if area_start > at:
                found.append((at, area_start))
            at = area_end
        return [*found, (at, end)] if at < end else found

    def __len__(self) -> int:
        return len(self._areas)


class PageSet:
    """Addresses of pages, sorted, so that ranges are found and removed quickly."""

    def __init__(self) -> None:
        self._pages: list[int] = []

    def add(self, address: int) -> None:
        """Add the page at ``address`` (page-aligned)."""
        index = bisect_left(self._pages, address)
        if index == len(self._pages) or self._pages[index] != address:
            insort(self._pages, address)

    def remove(self, start: int, end: int) -> None:
        """Forget the pages in [start, end)."""
        del self._pages[bisect_left(self._pages, start) : bisect_left(self._pages, end)]

    def inside(self, start: int, end: int) -> list[int]:
        """The pages in [start, end)."""
        return self._pages[bisect_left(self._pages, start) : bisect_left(self._pages, end)]

    def pick(self, number: int) -> int | None:
        """One of all pages, by a drawn number; None if there is none."""
        return self._pages[number % len(self._pages)] if self._pages else None

    def __len__(self) -> int:
        return len(self._pages)


def nth_page(start: int, end: int, number: int) -> int:
    """One page of a range, by a drawn number."""
    return start + number % ((end - start) // PAGE_SIZE) * PAGE_SIZE
