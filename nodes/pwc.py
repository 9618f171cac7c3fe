"""A paging-structure cache: where the tables of a walk are, so that it need not start at the top.

Such a cache holds *upper* entries.  Whoever frees a page-table page must have it flushed even if
no leaf of that table was ever cached, and even if every leaf was flushed when it was cleared:

    walker                              cpu (munmap)
                                        clear the leaves; flush them, and the table's entry
    walk: keeps the upper entry;
    the leaf is none: a fault
                                        clear the upper entry
                                        flush      [Required: the kept entry goes, too]
                                        free the table
"""

from __future__ import annotations

import msgspec

from mmurace.nodes.driver import Port
from mmurace.nodes.world import World
from mmurace.protocol.limits import ULONG_MAX
from mmurace.protocol.ranges import covers, overlaps
from mmurace.protocol.records import Coverage, Evict, TableCached, TableUse

PWC = "pwc"


class TableEntry(msgspec.Struct, frozen=True, gc=False):
    """A cached upper entry: the table at ``level`` that maps the span from ``address``."""

    tag: str
    level: int
    address: int
    table: int
    fill: str


class PagingStructureCache:
    """The upper entries that one walker keeps."""

    def __init__(self, world: World, port: Port) -> None:
        self.world, self.port = world, port
        self.evicts = world.tlb_entries < _tables(world)
        """Whether it may ever drop an entry of its own accord: the oldest one."""
        self.entries: dict[tuple[str, int, int], TableEntry] = {}

    def _touch(self, tag: str) -> None:
        """Say that entries changed; which is the oldest, and how many there are, may matter."""
        self.port.touch((PWC,) if self.evicts else (PWC, tag))

    def _base(self, level: int, address: int) -> int:
        """The first address that a table at ``level`` maps."""
        span = self.world.shift(level + 1)
        return address >> span << span

    def lookup(self, tag: str, address: int) -> TableEntry | None:
        """The entry nearest to the leaf."""
        self.port.touch((PWC, tag), "read")
        for level in range(self.world.levels - 1):
            found = self.entries.get((tag, level, self._base(level, address)))
            if found is not None:
                return found
        return None

    def use(self, entry: TableEntry | None) -> None:
        """The next load goes through ``entry``."""
        if entry is not None:
            self.port.emit(TableUse(entry.fill, self.port.upcoming))

    def fill(self, tag: str, address: int, level: int, table: int, source: str) -> TableEntry:
        """Keep what the load ``source`` found: the table at ``level``."""
        self._touch(tag)
        base = self._base(level, address)
        replaced = self.entries.pop((tag, level, base), None)
        if replaced is not None:
            self.port.emit(Evict(PWC, replaced.fill))
        entry = TableEntry(tag, level, base, table, f"{PWC}:{source}")
        self.entries[tag, level, base] = entry
        self.port.emit(Coverage("upper_entry_kept"))
        self.port.emit(TableCached(tag, base, level, table, entry.fill, source))
        if len(self.entries) > self.world.tlb_entries:
            oldest = self.entries.pop(next(iter(self.entries)))
            self.port.emit(Evict(PWC, oldest.fill))
        return entry

    def drop(self, tag: str, start: int, end: int) -> tuple[str, ...]:
        """Drop entries of tables that map any of [start, end); their names."""
        self._touch(tag)
        hit = [key for key in self.entries if key[0] == tag and self._in(key, start, end)]
        return tuple(self.entries.pop(key).fill for key in hit)

    def _span(self, level: int) -> int:
        """How many bytes a table at ``level`` maps."""
        return 1 << self.world.shift(level + 1)

    def _in(self, key: tuple[str, int, int], start: int, end: int) -> bool:
        _, level, base = key
        return overlaps(base, base + self._span(level), start, end) or covers(start, end, base)


def mapped_by_tables(world: World, start: int, end: int) -> tuple[int, int]:
    """What is mapped by the tables below the top one that map any of [start, end)."""
    if world.levels < 2 or start >= end:
        return start, end
    span = world.shift(world.levels - 1)
    last = end if end == ULONG_MAX else ((end - 1 >> span) + 1) << span
    return start >> span << span, last


def _tables(world: World) -> int:
    """How many tables below the top there can be."""
    each: int = sum(world.entries**level for level in range(1, world.levels))
    return len(world.mms) * each
