"""What the records imply: entries and their changes, frames, operations, what caches hold.

Memory is bounded by what is live.  What is kept beyond that, and for how long:

- a *read* until its operation ends: only that operation can fill from it;
- a closed *fill* until memory has heard of the closing (whatever changes later happens after
  it), no operation in flight changed its page since the read and before that, no access through
  it is out, and, for one from whose copies others are filled, every operation of that moment has
  ended (it may have loaded it);
- a *change* until its operation has ended and no older fill or read is left that it concerns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from mmurace.oracle.state.kinds import kinds
from mmurace.oracle.state.order import Row
from mmurace.oracle.violation import Event
from mmurace.protocol.limits import ORACLE_PAGE_HISTORY, ORACLE_SWEEP_MIN
from mmurace.protocol.pte import SPECIAL, frame_of, takes_away, usable
from mmurace.protocol.ranges import covers
from mmurace.protocol.records import Fill, InvalidateDone


class Op:
    """An operation in flight."""

    __slots__ = (
        "began", "caches", "changes", "end", "ended", "id", "index", "kind", "marks", "node",
        "orphan", "reads", "serial", "start", "tag", "unlocked", "uses",
    )  # fmt: skip

    def __init__(self, op_id: str, serial: int) -> None:
        self.id, self.serial = op_id, serial
        self.kind, self.tag, self.node = "", "", ""
        self.start = self.end = self.began = self.index = 0
        self.ended = False
        self.orphan = False
        """Its initiator is dead: what others still do for it has no end that is recorded."""
        self.unlocked = 0
        """Memory's delivery that last released an mmap_lock, or a VMA, for it."""
        self.changes: list[Change] = []
        self.reads: list[Read] = []
        self.uses: dict[str, Cached] = {}
        """Accesses on their way: message id -> the translation that they go through."""
        self.caches: set[str] = set()
        """Cache kinds that held a translation of what this operation invalidated."""
        self.marks: dict[int, Row] = {}
        """Windows that it opened (``sometimes``)."""

    def text(self) -> str:
        """``Munmap main/3 on cpu0``."""
        return f"{self.kind or 'operation'} {self.id}" + (f" on {self.node}" if self.node else "")


class Page:
    """One page of an mm: its leaf entry and whoever holds or may come to hold a copy."""

    __slots__ = ("address", "changes", "fills", "granted", "history", "mm", "reads")

    def __init__(self, mm: str, address: int, n: int, pte: int) -> None:
        self.mm, self.address = mm, address
        self.history: deque[tuple[int, int]] = deque(((n, pte),), maxlen=ORACLE_PAGE_HISTORY)
        """The last values of the entry: (delivery, entry)."""
        self.granted: tuple[int, Op] | None = None
        """The last change that added a right: (delivery, whose)."""
        self.fills: list[Cached] = []
        self.changes: list[Change] = []
        """Those that took something away, oldest first."""
        self.reads: dict[Read, None] = {}

    @property
    def pte(self) -> int:
        """The entry now."""
        return self.history[-1][1]

    def pte_at(self, n: int) -> tuple[int, int] | None:
        """(since which delivery, entry) after delivery ``n`` of memory; None: too long ago."""
        return next((kept for kept in reversed(self.history) if kept[0] <= n), None)

    def left_alone(self, memory: int) -> bool:
        """Whether whoever added the last right is done with it, as far as ``memory`` can know.

        Until it has released mmap_lock, or its VMA, it may still notify, however often somebody
        faults.
        """
        if self.granted is None:
            return True
        n, op = self.granted
        return n <= memory and n < op.unlocked <= memory

    def flush_owed(self, memory: int) -> bool:
        """Whether somebody has taken the entry away and may not have flushed yet, as far as known.

        Until then what is cached of it may deny what the page table permits by now:

        cpu0 (zap, reclaim)             device (no refetch)         cpu1
        clears the entry                holds it, RO
                                                                    maps the page anew, RW
                                        fault, fault, ...
        flush                           [Required: not before this that the page is granted]

        Who holds mmap_lock or a VMA flushes before it is released, others before they are done.
        """
        for change in self.changes:
            op = change.op
            if change.n <= memory and not op.ended:
                unlocked = change.n < op.unlocked
                if not unlocked or op.unlocked > memory:
                    return True
        return False


class Read:
    """A load of a leaf entry that may become a translation."""

    __slots__ = ("generation", "id", "n", "page", "pte")

    def __init__(self, n: int, read_id: str, page: Page, pte: int, generation: int) -> None:
        self.n, self.id, self.page, self.pte, self.generation = n, read_id, page, pte, generation

    def event(self) -> Event:
        """For reports."""
        return Event("entry read", self.n, "memory", self.id)


class Cached:
    """A cached translation: one fill."""

    __slots__ = (
        "address", "agent", "cache", "closed", "gone", "granted", "id", "index", "n", "name", "pte",
        "read", "reported", "retired", "tag", "usable", "uses",
    )  # fmt: skip

    def __init__(self, record: Fill, agent: str, index: int, read: Read, pte: int) -> None:
        self.name, self.cache, self.agent, self.index = record.fill, record.cache, agent, index
        self.tag, self.address = record.tag, record.address
        """What the agent knows it by; the page's mm and address may be called otherwise."""
        self.read, self.pte = read, pte
        self.granted = pte
        """What its holder may do unheard: more than ``pte`` says for who stores through a table of
        its own, as nothing is noted in the entry then."""
        self.n, self.id = 0, ""
        self.usable = True
        self.closed = 0
        """The delivery at the agent that ended its use; 0 while it can be used."""
        self.gone = False
        """It can never be used again."""
        self.retired = self.uses = 0
        self.reported: set[str] = set()

    @property
    def frame(self) -> int:
        """The frame that it leads to."""
        return frame_of(self.pte)

    def closed_before(self, row: Row) -> bool:
        """Whether its closing happens before the delivery of ``row``."""
        return 0 < self.closed <= row[self.index]

    def event(self) -> Event:
        """For reports."""
        return Event(f"{self.cache} filled", self.n, self.agent, self.id)


class Deadline:
    """A moment by which older copies must be gone; ``new`` is what the entry grants then.

    ``agents``: whose copies; ``frame``: those of which frame (none: of any); ``stores``: those
    through which somebody may store without another look at the entry.
    """

    __slots__ = ("agents", "event", "frame", "index", "n", "new", "rule", "stores")

    def __init__(
        self, rule: str, event: Event, row: Row, new: int,
        agents: frozenset[str] | None = None, frame: int | None = None, stores: bool = False,
    ) -> None:  # fmt: skip
        self.rule, self.event, self.n, self.new, self.agents = rule, event, event.n, new, agents
        self.frame, self.stores = frame, stores
        self.index = row.index(event.n)  # no other delivery has this number


class Change:
    """A change of a leaf entry that took something away."""

    __slots__ = (
        "deadlines", "deferred", "dropped", "id", "n", "new", "old", "op", "page", "reported",
        "row",
    )  # fmt: skip

    def __init__(
        self, change_id: str, page: Page, old: int, new: int, op: Op, n: int, row: Row
    ) -> None:
        self.id, self.page, self.old, self.new, self.op = change_id, page, old, new, op
        self.n, self.row = n, row
        self.deadlines: list[Deadline] = []
        self.reported: set[tuple[str, str, str]] = set()
        self.dropped = False
        self.deferred = False
        """Its flush was left for later, under no lock that others could wait for."""

    def event(self) -> Event:
        """For reports."""
        return Event("entry changed", self.n, "memory", self.id)


class Frame:
    """A frame: how often it was freed, and the changes that took it out of an entry since."""

    __slots__ = ("changes", "freed", "generation", "held", "held_before")

    def __init__(self) -> None:
        self.generation = 0
        self.freed: Event | None = None
        self.changes: list[Change] = []
        self.held = self.held_before = False


class State:
    """Everything that is live, by name."""

    def __init__(self) -> None:
        self.pages: dict[tuple[str, int], Page] = {}
        self.frames: dict[int, Frame] = {}
        self.ops: dict[str, Op] = {}
        self.reads: dict[str, Read] = {}
        self.fills: dict[str, Cached] = {}
        self.draining: dict[tuple[str, str], dict[str, Cached]] = {}
        """(agent, cache) -> what invalidations have dropped and none has acknowledged, by name."""
        self.latched: dict[str, list[Cached]] = {}
        """Values that count as usable once their agent begins to use them, until replaced."""
        self.kinds = kinds()
        self.serial = 0
        self._strays: dict[str, None] = {}
        """Operations of which something was recorded before they began, or after they ended."""
        self._untidy: dict[Page, None] = {}
        self._kept, self._sweep_at = 0, ORACLE_SWEEP_MIN
        self.sweep_due = False
        """Whether enough was kept that tidying is worth it."""

    # -- by name ---------------------------------------------------------------------------

    def op(self, op_id: str) -> Op:
        """The operation in flight of that id."""
        found = self.ops.get(op_id)
        if found is None:
            found = self._new_op(op_id)
            self._strays[op_id] = None
        return found

    def _new_op(self, op_id: str) -> Op:
        found = self.ops[op_id] = Op(op_id, self.serial)
        self.serial += 1
        return found

    def begin_op(self, op_id: str) -> Op:
        """The operation of that id, which begins."""
        if self._strays:
            self._retire_before(op_id)
        return self.ops.get(op_id) or self._new_op(op_id)

    def _retire_before(self, op_id: str) -> None:
        """Records that came for an operation after its end are forgotten with the next begin."""
        self._strays.pop(op_id, None)
        program, _, index = op_id.rpartition("/")
        previous = f"{program}/{int(index) - 1}" if index.isdigit() else ""
        if previous in self._strays:
            self.end_op(self.ops[previous])

    def page(self, mm: str, address: int, n: int, pte: int) -> Page:
        """The page; ``pte`` is what its entry held at ``n`` if it is new here."""
        found = self.pages.get((mm, address))
        if found is None:
            found = self.pages[mm, address] = Page(mm, address, n, pte)
        return found

    def frame(self, number: int) -> Frame:
        """The frame of that number."""
        found = self.frames.get(number)
        if found is None:
            found = self.frames[number] = Frame()
        return found

    # -- in ----------------------------------------------------------------------------------

    def add_read(self, read: Read, op: Op) -> None:
        """A load that may become a translation."""
        self.reads[read.id] = read
        read.page.reads[read] = None
        op.reads.append(read)

    def add_fill(self, fill: Cached) -> None:
        """A translation that was installed."""
        self.fills[fill.name] = fill
        fill.read.page.fills.append(fill)
        self.frame(fill.frame).held = True
        if fill.cache in self.kinds.latched:
            self.latched.setdefault(fill.agent, []).append(fill)

    def add_change(self, change: Change) -> None:
        """A change that took something away."""
        change.page.changes.append(change)
        change.op.changes.append(change)
        if not change.old & SPECIAL:
            self.frame(frame_of(change.old)).changes.append(change)
        self._keep(change.page)

    def close(self, fill: Cached, n: int, gone: bool) -> None:
        """The agent can no longer use it; ``gone``: and never will."""
        if not fill.closed:
            fill.closed = n
        if gone and not fill.gone:
            fill.gone, fill.retired = True, self.serial
            self.draining.get((fill.agent, fill.cache), {}).pop(fill.name, None)
            self._keep(fill.read.page)
            if fill.cache in self.kinds.latched:
                self.latched[fill.agent].remove(fill)

    def drop(self, names: Iterable[str]) -> None:
        """An invalidation has dropped these; accesses through them may be on their way."""
        for name in names:
            fill = self.fills.get(name)
            if fill is not None:
                self.draining.setdefault((fill.agent, fill.cache), {})[name] = fill

    def drained(self, record: InvalidateDone, agent: str, n: int) -> None:
        """An invalidation is acknowledged: nothing of its range is in use, whoever dropped it."""
        dropped = self.draining.get((agent, record.cache), {})
        for fill in list(dropped.values()):
            if fill.tag == record.tag and covers(record.start, record.end, fill.address):
                self.close(fill, n, gone=True)

    def held(self, page: Page) -> Iterator[Cached]:
        """Translations of the page that can be used."""
        return (fill for fill in page.fills if fill.usable and not fill.closed)

    # -- out -----------------------------------------------------------------------------------

    def end_op(self, op: Op) -> None:
        """Its reads and accesses can no longer matter."""
        op.ended = True
        self.ops.pop(op.id, None)
        if self._strays:
            self._strays.pop(op.id, None)
        for read in op.reads:
            if self.reads.get(read.id) is read:
                del self.reads[read.id]
            read.page.reads.pop(read, None)
        for fill in op.uses.values():
            fill.uses -= 1
        op.reads, op.uses, op.changes = [], {}, []

    def lost(self, node: str) -> None:
        """A node is dead: what it cached and the accesses that it made are gone with it.

        What others do for an operation of it goes on, such as a walk by its unit.
        """
        for fill in list(self.fills.values()):
            if fill.agent == node:
                fill.usable = False
                self.close(fill, 1, gone=True)
        for op in self.ops.values():
            if op.node == node:
                op.orphan = True
                for access, fill in list(op.uses.items()):
                    if fill.agent == node:
                        fill.uses -= 1
                        del op.uses[access]

    def forget_before(self, n: int) -> None:
        """No step to come has a cause below ``n``: a read from before has been answered."""
        for op in self.ops.values():
            if op.orphan:
                for read in op.reads:
                    if read.n < n and self.reads.get(read.id) is read:
                        del self.reads[read.id]
                        read.page.reads.pop(read, None)
                op.reads = [read for read in op.reads if read.n >= n]

    def _keep(self, page: Page) -> None:
        self._untidy[page] = None
        self._kept += 1
        self.sweep_due = self._kept >= self._sweep_at

    def sweep(self, memory_row: Row) -> None:
        """Drop what can no longer matter; amortised constant per closed fill or change."""
        awaited = (op.serial for op in self.ops.values() if not op.orphan)
        oldest = min(awaited, default=self.serial)
        untidy, self._untidy = self._untidy, {}
        self._kept = 0
        for page in untidy:
            self._tidy(page, memory_row, oldest)
        self._sweep_at = max(ORACLE_SWEEP_MIN, 2 * self._kept)
        self.sweep_due = False
        for frame in self.frames.values():
            if frame.changes:
                frame.changes = [c for c in frame.changes if not c.dropped]

    def _tidy(self, page: Page, memory_row: Row, oldest: int) -> None:
        fills = page.fills
        sources = self.kinds.sources
        page.fills = [f for f in fills if _fill_needed(f, page, memory_row, oldest, sources)]
        if len(page.fills) < len(fills):
            for fill in fills:
                if fill not in page.fills and self.fills.get(fill.name) is fill:
                    del self.fills[fill.name]
        for change in page.changes:
            change.dropped = not _change_needed(change, page, sources)
        page.changes = [change for change in page.changes if not change.dropped]
        kept = len(page.changes) + sum(fill.gone for fill in page.fills)
        if kept:
            self._untidy[page] = None
            self._kept += kept
        elif not (page.fills or page.reads or page.pte):
            self.pages.pop((page.mm, page.address), None)


def _fill_needed(
    fill: Cached, page: Page, memory_row: Row, oldest: int, sources: frozenset[str]
) -> bool:
    if not fill.gone or fill.uses or memory_row[fill.index] < fill.closed:
        return True
    if fill.cache in sources and oldest < fill.retired:
        return True
    return any(
        not c.op.ended and c.n > fill.read.n and not fill.closed_before(c.row) for c in page.changes
    )


def _change_needed(change: Change, page: Page, sources: frozenset[str]) -> bool:
    if not change.op.ended or any(read.n < change.n for read in page.reads):
        return True
    return any(
        f.read.n < change.n
        and takes_away(f.granted, change.new)
        and (f.cache in sources or not f.gone or not f.closed_before(change.row))
        for f in page.fills
    )


def usable_read(pte: int) -> bool:
    """Whether a translation can be made from what a load saw."""
    return usable(pte)
