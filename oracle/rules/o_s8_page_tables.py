"""Rules O and S8 for page-table pages: nobody walks through a table that was freed.

A walker may keep upper entries.  One that leads to a table must be gone when the table is freed
(rule O), and no load may go through it afterwards (rule S8):

    memory              walker                  whoever unmaps
    upper entry read    kept (x)
                                                clears the upper entry
                        x dropped (c)
    table freed (d)                             [Required: c happens before d]
    load through x                              [Required: not after d]

Rule S8 of translations that were read before is judged where they are cached (``s8_walks``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mmurace.nodes.world import World
from mmurace.oracle.state.live import State
from mmurace.oracle.state.order import Row
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.envelope import operation_of
from mmurace.protocol.ranges import overlaps
from mmurace.protocol.records import InvalidateDone, TableCached, TableRead, TableUse

PWC = "pwc"


class KeptTable:
    """A cached upper entry, and which generation of the table it was read for."""

    __slots__ = (
        "agent",
        "closed",
        "dropped",
        "event",
        "generation",
        "index",
        "read",
        "record",
        "reported",
    )

    def __init__(
        self, record: TableCached, event: Event, index: int, read: Event, generation: int
    ) -> None:
        self.record, self.event, self.agent, self.index = record, event, event.node, index
        self.read, self.generation = read, generation
        self.dropped = False
        """An invalidation has dropped it; walks through it may be on their way."""
        self.closed = 0
        self.reported: set[str] = set()


class Tables:
    """What walkers keep of the upper levels, and the tables that it leads to."""

    def __init__(self, world: World, state: State, found: list[Violation]) -> None:
        self.world, self.state, self.found = world, state, found
        self.uses: dict[str, KeptTable] = {}
        """Loads on their way: message id -> the kept entry that they go through."""
        self.kept: dict[str, KeptTable] = {}
        """By name."""
        self.reads: Final[dict[str, dict[str, tuple[Event, int, int]]]] = {}
        """Operation in flight -> load -> when it was, the table, and its generation then."""

    def read(self, record: TableRead, event: Event) -> None:
        """Memory answered a load of an upper entry."""
        generation = self.state.frame(record.table).generation
        loads = self.reads.setdefault(operation_of(event.id), {})
        loads[event.id] = (event, record.table, generation)

    def cached(self, record: TableCached, event: Event, index: int) -> None:
        """A walker keeps what a load found."""
        found = self.reads.get(operation_of(record.source), {}).get(record.source)
        if found is None:
            return
        read, _, generation = found
        kept = self.kept[record.fill] = KeptTable(record, event, index, read, generation)
        frame = self.state.frame(record.table)
        if frame.generation != kept.generation and frame.freed is not None:
            self._report("O", kept, frame.freed, "installed after its table was freed")

    def used(self, record: TableUse) -> None:
        """A load goes out through a kept entry."""
        kept = self.kept.get(record.fill)
        if kept is not None:
            self.uses[record.access] = kept

    def reached(self, event: Event) -> None:
        """That load is answered by memory."""
        kept = self.uses.pop(event.id)
        frame = self.state.frame(kept.record.table)
        if frame.generation != kept.generation:
            self._report(
                "S8", kept, frame.freed, "a walk went through a table that was freed", event
            )

    def closed(self, fill: str, n: int) -> None:
        """The walker dropped it in delivery ``n``."""
        kept = self.kept.get(fill)
        if kept is not None and not kept.closed:
            kept.closed = n

    def drop(self, fills: Iterable[str]) -> None:
        """An invalidation has dropped these."""
        for name in fills:
            kept = self.kept.get(name)
            if kept is not None:
                kept.dropped = True

    def drained(self, record: InvalidateDone, agent: str, n: int) -> None:
        """An invalidation is acknowledged: no walk uses a table of its range, whoever dropped it.

        That is one that maps any page of the range.
        """
        if record.cache == PWC:
            for name, kept in self.kept.items():
                if kept.dropped and kept.agent == agent and self._maps(kept.record, record):
                    self.closed(name, n)

    def _maps(self, table: TableCached, done: InvalidateDone) -> bool:
        end = table.address + (1 << self.world.shift(table.level + 1))
        return table.tag == done.tag and overlaps(table.address, end, done.start, done.end)

    def freed(self, frame: int, event: Event, row: Row) -> None:
        """A frame was freed; ``row`` knows which closings came before."""
        for name, kept in list(self.kept.items()):
            if 0 < kept.closed <= row[kept.index]:
                del self.kept[name]
            elif (
                kept.record.table == frame and kept.generation < self.state.frame(frame).generation
            ):
                self._report("O", kept, event, "still held when its table was freed")

    def _report(
        self, rule: str, kept: KeptTable, freed: Event | None, why: str, use: Event | None = None
    ) -> None:
        if rule in kept.reported:
            return
        kept.reported.add(rule)
        record = kept.record
        racing = tuple(event for event in (freed, use or kept.event) if event is not None)
        self.found.append(
            Violation(
                rule=rule, agent=kept.agent, cache=PWC, mm=record.tag, address=record.address,
                frame=record.table, filled=kept.event, read=kept.read, deadline=freed,
                pte=f"table at level {record.level} in frame {record.table:#x}",
                racing=racing, detail=why,
            )
        )  # fmt: skip
