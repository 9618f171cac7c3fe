"""Where page-table pages are: which addresses the entries of a table map, as a run goes on."""

from __future__ import annotations

from dataclasses import dataclass

from mmurace.nodes.world import World
from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r


@dataclass(frozen=True, slots=True)
class Span:
    """[start, end) of ``mm``, in bytes, and the level of what maps it (0: leaves)."""

    mm: str
    level: int
    start: int
    end: int

    def values(self) -> dict[str, object]:
        """Fields of a row that is about it."""
        return {"mm": self.mm, "level": self.level, "start": self.start, "end": self.end}


class Tables:
    """The tables that changes of entries have told of; one that is moved is told of again."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._spans: dict[int, Span] = {}

    def see(self, record: r.Record) -> None:
        """A record of memory."""
        if not isinstance(record, r.PteChange):
            return
        shift = self._world.shift(record.level)
        self._put(record.table, record.mm, record.level, record.address - (record.index << shift))
        if record.level and ptes.hw_present(record.new):
            self._put(ptes.frame_of(record.new), record.mm, record.level - 1, record.address)

    def _put(self, table: int, mm: str, level: int, start: int) -> None:
        end = start + (1 << self._world.shift(level + 1))
        self._spans[table] = Span(mm, level, start, end)

    def of(self, table: int) -> Span | None:
        """What a table maps; None: not known."""
        return self._spans.get(table)

    def entry(self, table: int, index: int) -> Span | None:
        """What one entry of a table maps."""
        span = self._spans.get(table)
        if span is None:
            return None
        shift = self._world.shift(span.level)
        start = span.start + (index << shift)
        return Span(span.mm, span.level, start, start + (1 << shift))
