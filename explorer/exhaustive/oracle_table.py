"""The oracle as a table: what it says next depends on its state and on the records alone.

A stateful search tries every order, so it needs no vector clocks: a completion that does not happen
before a deadline comes after it in some order, and that order is among those tried.  Here the
oracle is therefore given a total order, in which every earlier delivery is known, and its state
shrinks to what can still be judged: open translations, reads that may become translations, changes
that one of these is older than, and the deadlines of these changes.

Not part of it: what only tells or counts (statistics, *sometimes* conditions, held locks), and
rules that are not in ``RULES``, which are judged on whole executions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Final, NamedTuple

from mmurace.explorer.exhaustive.node_tables import Move, Sent
from mmurace.nodes.secondary import secondaries
from mmurace.nodes.world import World
from mmurace.oracle.oracle import Oracle
from mmurace.oracle.rules.l6_denials import UNLOCKS
from mmurace.oracle.rules.o_inherited import PTL_LOCK, Inherited
from mmurace.oracle.rules.o_s2_moves import PTL_UNLOCK, Moves
from mmurace.oracle.rules.o_s8_page_tables import Tables
from mmurace.oracle.state.live import Cached, Change, Op, Page, State
from mmurace.oracle.state.order import Order, Row
from mmurace.oracle.violation import Violation
from mmurace.protocol.pte import frame_of
from mmurace.protocol.trace import TraceStep

Frozen = Hashable

RULES: Final = ("O", "S1", "S2", "S3", "S4", "S6", "S10", "S13", "L3", "L6")
"""Rules whose whole memory is part of a state (L3 needs none), so that they are judged in all."""
_SEEN_WITHOUT_RECORDS: Final = frozenset({PTL_LOCK, PTL_UNLOCK}) | UNLOCKS


class TotalOrder(Order):
    """Every delivery happens after all that have a lower number."""

    def __init__(self, nodes: Sequence[str]) -> None:
        super().__init__(nodes)
        self._row = [0] * len(nodes)

    def deliver(self, n: int, index: int, causes: Sequence[int]) -> Row:  # noqa: ARG002 - see Order
        """The last number at each node."""
        self._row[index] = n
        row = tuple(self._row)
        self._rows = {n: row}
        self.last = [row] * len(row)
        return row


class OracleTable:
    """States of the oracle by number, and what it says in them."""

    def __init__(self, make: Callable[[], Oracle]) -> None:
        self._make = make
        self.frozen: list[Frozen] = []
        """The states by number."""
        self._numbers: dict[Frozen, int] = {}
        self._origin: list[tuple[int, Sent, Move] | None] = []
        self._next: dict[tuple[int, int, Move], tuple[int, tuple[Violation, ...]]] = {}
        self._live: dict[int, tuple[Oracle, int]] = {}
        first = self.oracle()
        self.world = first.world
        """The world that is judged."""
        self._kept = _kept(first.world)
        self._arrive(first, 0, None)

    def __len__(self) -> int:
        return len(self._origin)

    def step(self, state: int, message: Sent, move: Move) -> tuple[int, tuple[Violation, ...]]:
        """The state after a delivery, and what that broke."""
        if not move.records and message.kind not in _SEEN_WITHOUT_RECORDS:
            return state, ()
        key = (state, message.uid, move)
        found = self._next.get(key)
        if found is None:
            found = self._next[key] = self._run(state, message, move)
        return found

    def oracle(self) -> Oracle:
        """One that has read nothing, and takes all deliveries to be in one order."""
        oracle = self._make()
        oracle.order = TotalOrder(oracle.world.nodes())
        return oracle

    def _run(self, state: int, message: Sent, move: Move) -> tuple[int, tuple[Violation, ...]]:
        oracle, n = self._live.pop(state) if state in self._live else self._again(state)
        found = tuple(see(oracle, n + 1, message, move))
        return self._arrive(oracle, n + 1, (state, message, move)), found

    def _again(self, state: int) -> tuple[Oracle, int]:
        """An oracle brought to a state by what first led there."""
        steps = []
        while (origin := self._origin[state]) is not None:
            state = origin[0]
            steps.append(origin)
        oracle = self.oracle()
        for n, (_, message, move) in enumerate(reversed(steps), 1):
            see(oracle, n, message, move)
        return oracle, len(steps)

    def freeze(self, oracle: Oracle) -> Frozen:
        """The state that it is in."""
        return _freeze(oracle, self._kept)

    def _arrive(self, oracle: Oracle, n: int, origin: tuple[int, Sent, Move] | None) -> int:
        frozen = self.freeze(oracle)
        number = self._numbers.get(frozen)
        if number is None:
            number = self._numbers[frozen] = len(self._origin)
            self._origin.append(origin)
            self.frozen.append(frozen)
        self._live[number] = (oracle, n)
        if len(self._live) > LIVE_MAX:
            del self._live[next(iter(self._live))]
        return number


LIVE_MAX = 2048
"""Live oracles kept in case the search comes back to their states."""


def see(oracle: Oracle, n: int, message: Sent, move: Move) -> list[Violation]:
    """Tell an oracle of delivery ``n``; what that broke."""
    step = TraceStep(n, message.id, message.src, message.dst, message.kind, (), move.records)
    return oracle.step(step)


# ---- what can still be judged --------------------------------------------------------------------


def _freeze(oracle: Oracle, kept: _Kept) -> Frozen:
    state = oracle.state
    return (
        frozenset(_op(op) for op in state.ops.values()),
        frozenset(_page(page, state, kept) for page in state.pages.values()),
        frozenset(
            (node, b.begins - b.ends, b.in_progress, b.seq)
            for node, b in oracle.brackets.of.items()
        ),
        frozenset(
            (number, tuple(_place(c) for c in frame.changes if _alive(c, kept)))
            for number, frame in state.frames.items()
            if frame.changes
        ),
        _moved(oracle.moves),
        _inherited(oracle.inherited, state, kept),
        frozenset(i for i in oracle.denied.count.items() if i[0] in state.fills),
        frozenset(oracle.memory_rules.private.anon),
        frozenset(oracle.memory_rules.private.slots.items()),
        frozenset(oracle.identity.tags),
        frozenset(oracle.told_of.items()),
        oracle.lifetimes.to_come(),
        _tables(oracle.tables, state),
    )


def _tables(tables: Tables, state: State) -> Frozen:
    """Upper entries that walkers keep, and loads of such entries that they may come to keep."""
    kept = [
        (name, k.agent, k.record.table, _same(k.generation, k.record.table, state),
         "O" in k.reported, k.dropped)
        for name, k in tables.kept.items() if not k.closed
    ]  # fmt: skip
    reads = [
        (load, table, _same(generation, table, state))
        for loads in tables.reads.values() for load, (_, table, generation) in loads.items()
    ]  # fmt: skip
    return frozenset(kept), frozenset(reads)


def _same(generation: int, frame: int, state: State) -> bool:
    """Whether the frame has not been freed since."""
    return state.frame(frame).generation == generation


class _Kept(NamedTuple):
    """What has to be kept beyond what every world needs."""

    sources: frozenset[str]
    """Caches whose translations others are made from, maybe when they are gone already: a device
    keeps what its unit answered, whatever has become of the unit's own copy meanwhile."""
    denials: bool
    """Whether anybody faults on an entry that is too weak, instead of walking again."""


def _kept(world: World) -> _Kept:
    there = [
        cache
        for one in secondaries()
        for part in one.parts(world)
        for cache in one.caches
        if cache.name in part.holders()
    ]
    walkers = any(cache.table == "shared" for cache in there)
    return _Kept(
        frozenset(cache.source for cache in there if cache.source),
        walkers and not world.kernel.arch.refetch_on_perm_fault,
    )


def _moved(moves: Moves) -> Frozen:
    """What is under locks that are still held."""
    return tuple(
        frozenset((op, tuple(_place(change) for change in changes)) for op, changes in kept.items())
        for kept in (moves.taken, moves.moved)
    )


def _inherited(inherited: Inherited, state: State, kept: _Kept) -> Frozen:
    """Which changes an operation in flight may have found done."""
    changes = [c for page in state.pages.values() for c in page.changes if _alive(c, kept)]
    return frozenset(
        (op, frozenset(_place(c) for c in changes if c.n <= first))
        for op, first in inherited.first.items()
    )


def _place(change: Change) -> Frozen:
    return (change.page.mm, change.page.address, change.id)


def _op(op: Op) -> Frozen:
    uses = frozenset((access, fill.name) for access, fill in op.uses.items())
    return (op.id, op.kind, op.tag, op.start, op.end, op.node, uses)


def _page(page: Page, state: State, kept: _Kept) -> Frozen:
    changes = [change for change in page.changes if _alive(change, kept)]
    fills = [_fill(fill, changes, state) for fill in page.fills if _open(fill, kept)]
    reads = [
        (read.id, read.pte, _current(read.generation, read.pte, state), _newer(read.n, changes))
        for read in page.reads
    ]
    return (
        page.mm, page.address, page.pte, _granting(page) if kept.denials else "",
        frozenset(fills), frozenset(reads), tuple(_change(change, kept) for change in changes),
        page.changes[-1].id if page.changes else "",
    )  # fmt: skip


def _granting(page: Page) -> str:
    """Who may still have to invalidate a right that was added: whose unlock it is that counts."""
    if page.granted is None:
        return ""
    n, op = page.granted
    return op.id if op.unlocked <= n else ""


def _open(fill: Cached, kept: _Kept) -> bool:
    """Whether it can still be used, is being used, or may be the source of another."""
    return not fill.closed or not fill.gone or fill.uses > 0 or fill.cache in kept.sources


def _fill(fill: Cached, changes: list[Change], state: State) -> Frozen:
    draining = fill.name in state.draining.get((fill.agent, fill.cache), ())
    return (
        fill.name, fill.cache, fill.agent, fill.pte, fill.usable, bool(fill.closed), fill.gone,
        draining, fill.uses, _current(fill.read.generation, fill.read.pte, state),
        _newer(fill.read.n, changes), frozenset(fill.reported),
    )  # fmt: skip


def _alive(change: Change, kept: _Kept) -> bool:
    """Whether a deadline may still come, or something older than it may still be used."""
    page = change.page
    return (
        not change.op.ended
        or any(read.n < change.n for read in page.reads)
        or any(fill.read.n < change.n and _open(fill, kept) for fill in page.fills)
    )


def _change(change: Change, kept: _Kept) -> Frozen:
    deadlines = frozenset(
        (d.rule, d.new, d.agents, d.frame, d.event.what) for d in change.deadlines
    )
    op = "" if change.op.ended else change.op.id
    unlocked = op and kept.denials and change.n < change.op.unlocked
    return (
        change.id, change.old, change.new, op, unlocked, change.deferred, deadlines,
        frozenset(change.reported),
    )  # fmt: skip


def _newer(n: int, changes: list[Change]) -> tuple[str, ...]:
    return tuple(change.id for change in changes if change.n > n)


def _current(generation: int, pte: int, state: State) -> bool:
    """Whether the frame that an entry named has not been freed since."""
    return _same(generation, frame_of(pte), state)
