"""Whose invalidation windows an adversary was inside, by operation and kind of cache.

The window of an operation on a page is where a copy can go stale: from the moment at which the
holder begins to lose its entry, or the entry of the page table is taken away, whichever comes
first, until the holder has lost it.  A shadow MMU loses its entries first, everybody else last:

    invalidate_range_start     window of a shadow MMU, and of what is filled from its table
      zap                        opens
    entry taken away             decides       opens: window of who walks the table itself
    flush of the CPUs and of who walks                                        closes

Somebody else was inside if, between these, it

- accessed the page through its old entry, or ran a guest with it (all but shadow entries: nobody
  accesses through these),
- installed, or threw away, what a load from before had seen,
- or, where the old entry is gone before the page table's, loaded that once more, and installed it
  or was refused.

"Between" is happens-before: after the opening, or not known there to be over.  On a right kernel
whoever took the entry away waits for all of this, so it does not depend on the linearisation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from mmurace.nodes.secondary import Part, caches, of
from mmurace.nodes.world import World
from mmurace.oracle.state.kinds import kinds
from mmurace.oracle.state.live import Cached, Change, Op, Page, Read, State
from mmurace.oracle.state.order import Row
from mmurace.protocol.envelope import operation_of
from mmurace.protocol.limits import ORACLE_ACCESSES_KEPT
from mmurace.protocol.records import FaultRetry

Cell = tuple[str, str]
"""(kind of operation, kind of cache)."""

TAKES_AWAY: Final = frozenset({
    "Mmap", "Mremap", "Fork", "Execve", "Exit", "Truncate", "Writeback", "Munmap", "Brk",
    "Mprotect", "MadviseDontneed", "MadviseFree", "Kswapd", "MigratePages", "ClearRefs", "Touch",
})  # fmt: skip
"""Operations that are there to take entries away, and ``Touch`` as it copies on write.

Other accesses do too, when they fault, but nobody else need be beside them in a small world."""
HOLDS_MMAP_LOCK: Final = frozenset({
    "Mmap", "Mremap", "Fork", "Execve", "Exit", "Munmap", "Brk", "Mprotect", "ClearRefs",
})  # fmt: skip
"""Those of them that hold it for write."""
SOFT_DIRTY: Final = frozenset({"x86", "ppc"})
"""Architectures with ``CONFIG_MEM_SOFT_DIRTY``; ``ClearRefs`` changes nothing on others."""
_MOVES_ANY_PAGE: Final = frozenset({"MigratePages", "Kswapd"})
"""Operations that workloads use on a page of which somebody latches the frame."""


def of_guests() -> frozenset[str]:
    """What a guest holds of what a shadow MMU holds."""
    return kinds().by_guest_address


def cells_of(kinds: Iterable[str], world: World) -> tuple[Cell, ...]:
    """The cells that operations of these ``kinds`` can meet in ``world``, in a fixed order."""
    taking = sorted(TAKES_AWAY.intersection(kinds))
    if world.kernel.machine not in SOFT_DIRTY:
        taking = [kind for kind in taking if kind != "ClearRefs"]
    return tuple((kind, cache) for kind in taking for cache in _caches(world, kind))


def _caches(world: World, kind: str) -> Iterable[str]:
    if len(world.cpus) > 1:  # the one that runs the operation runs no user code meanwhile
        yield "tlb"
    latched = kinds().latched
    for name in caches():
        asked = (part for part in world.parts if _may_enter(part, name, kind, world))
        if any(asked) and (name not in latched or kind in _MOVES_ANY_PAGE):
            yield name


def _may_enter(part: Part, cache: str, kind: str, world: World) -> bool:
    """Whether some node of it can be asked for an access, and then gets that far.

    Who takes mmap_lock first comes too late for an operation that holds it for write, or is through
    before that has begun, but for the rarest of schedules.
    """
    asked = any(nodes(part) for nodes in of(part).accesses.values())
    if not asked or not part.holders().get(cache):
        return False
    return kind not in HOLDS_MMAP_LOCK or not part.waits_for_mmap_lock(cache, world.kernel)


class _Zap:
    """A shadow MMU lost what it held of a page; the entry is still there."""

    __slots__ = ("by", "inside", "read", "row")

    def __init__(self, row: Row, by: frozenset[str], read: Read) -> None:
        self.row, self.by = row, by
        self.read = read
        """What the lost entry was made from; and so was what a guest holds of it."""
        self.inside = False
        """Whether a guest was seen to use it since."""


_Zaps = dict[tuple[Page, str], _Zap]
"""By page and cache: a shadow table, or a latched value."""


class Windows:
    """Counts operations that had somebody inside, by cell."""

    def __init__(self, cells: Iterable[Cell], world: World, state: State, memory: int) -> None:
        self.entered: dict[Cell, int] = dict.fromkeys(cells, 0)
        """Operations of this kind in whose window somebody with such a cache was."""
        self.state, self.memory, self.kinds = state, memory, kinds()
        self.reasons = {one.refused: one.name for one in caches().values() if one.refused}
        """Why a fault must be repeated -> for which cache it was."""
        self.from_ = {one.source: one.name for one in caches().values() if one.source}
        """Cache -> the one that is filled from its entries."""
        self.shadow: Mapping[str, frozenset[str]] = {
            part.name: frozenset(part.nodes()) - {part.name} or frozenset({part.name})
            for part in world.parts
        }
        self.inside: dict[str, set[str]] = {}
        """Operation in flight -> caches that were counted for it."""
        self.zapped: dict[str, _Zaps] = {}
        """Operation in flight -> what it has made shadow MMUs lose."""
        self.refused: dict[str, str] = {}
        """Operation in flight -> the cache for which a fault was refused what it had loaded."""
        self.refused_at: dict[str, int] = {}
        """And what it then knew of memory."""
        self.loads: dict[str, list[tuple[Op, str, set[str]]]] = {}
        """Operation in flight -> in whose windows it has loaded the entry, and for which cache."""
        self._accessed: dict[str, int] = {}
        """An entry for a guest -> the delivery of the last access through it; the newest."""

    def by_operation(self) -> tuple[dict[str, Any], ...]:
        """What is kept of operations in flight, and can be forgotten with them."""
        return self.inside, self.zapped, self.refused, self.refused_at, self.loads

    def table(self) -> dict[str, dict[str, int]]:
        """Kind of operation -> cache -> in how many windows somebody was; 0: never."""
        found: dict[str, dict[str, int]] = {}
        for (kind, cache), count in self.entered.items():
            found.setdefault(kind, {})[cache] = count
        return found

    def _enter(self, op: Op, cache: str) -> None:
        self._count(op, cache, self.inside.setdefault(op.id, set()))

    def _count(self, op: Op, cache: str, counted: set[str]) -> None:
        """``counted``: the caches that were counted for this operation so far."""
        if cache not in counted and (op.kind, cache) in self.entered:
            counted.add(cache)
            self.entered[op.kind, cache] += 1

    # -- what happens -------------------------------------------------------------------------

    def accessed(self, fill: Cached, op: Op, n: int) -> None:
        """Memory answers an access of ``op`` through ``fill``."""
        if fill.cache in self.kinds.by_guest_address:
            self._last_access(fill.name, n)
        if fill.cache in self.from_.values():
            self._through_zapped(fill)
        if fill.read.page.changes:
            for change in _since(fill.read.page, fill.read.n):
                self._beside(change, fill.cache, op)

    def _through_zapped(self, fill: Cached) -> None:
        """A guest uses an entry whose source is gone: before it was flushed, so inside.

        It need not be in the guest when the request comes: then it flushes before it enters again.
        """
        source = caches()[fill.cache].source
        for zaps in self.zapped.values():
            zap = zaps.get((fill.read.page, source))
            if zap is not None and zap.read is fill.read:
                zap.inside = True

    def _last_access(self, name: str, n: int) -> None:
        self._accessed.pop(name, None)
        self._accessed[name] = n
        if len(self._accessed) > ORACLE_ACCESSES_KEPT:
            del self._accessed[next(iter(self._accessed))]

    def filled(self, fill: Cached, op: Op | None) -> None:
        """``op`` installs what a load from before the page's changes had seen."""
        for change in _since(fill.read.page, fill.read.n):
            self._beside(change, fill.cache, op)

    def walk_discarded(self, cache: str, address: int, op: Op | None, row: Row) -> None:
        """``op`` throws away what it has loaded."""
        for read in op.reads if op is not None else ():
            if read.page.address == address:
                self._thrown_away(read, cache, op, row)

    def _thrown_away(self, read: Read, cache: str, op: Op | None, row: Row) -> None:
        for change in _since(read.page, read.n):
            if change.n <= row[self.memory]:
                self._beside(change, cache, op)

    def _beside(self, change: Change, cache: str, op: Op | None) -> None:
        if not change.op.ended and change.op is not op:
            self._enter(change.op, cache)

    def left_guest(self, latched: Iterable[Cached], n: int) -> None:
        """Guest mode, in which these were used, is left."""
        for fill in latched:
            self._last_access(fill.name, n)
            for change in fill.read.page.changes:
                if change.row[fill.index] < n:
                    self._beside(change, fill.cache, None)

    # -- shadow MMUs ----------------------------------------------------------------------------

    def zap(self, fills: Iterable[str], op: Op, node: str, row: Row) -> None:
        """``op`` makes the shadow table at ``node`` lose these entries."""
        for name in fills:
            fill = self.state.fills.get(name)
            if fill is not None:
                self._opens(op, fill, _Zap(row, self.shadow[node], fill.read))

    def reload(self, latched: Iterable[Cached], op: Op, node: str, row: Row) -> None:
        """``op`` makes ``node`` drop these."""
        for fill in latched:
            self._opens(op, fill, _Zap(row, frozenset((node,)), fill.read))

    def _opens(self, op: Op, lost: Cached, zap: _Zap) -> None:
        key = lost.read.page, lost.cache
        zap = self.zapped.setdefault(op.id, {}).setdefault(key, zap)
        for fill in lost.read.page.fills:
            if fill.read is zap.read and fill.cache in self.from_.values():
                zap.inside |= self._accessed.get(fill.name, 0) > zap.row[self.memory]

    def retried(self, record: FaultRetry, op_id: str, row: Row) -> None:
        """A fault may not install what it has loaded."""
        cache = self.reasons.get(record.why)
        if cache is None:
            return
        self.refused[op_id] = cache
        for changer, wanted, counted in self.loads.pop(op_id, ()):
            if wanted == cache:
                self._count(changer, cache, counted)
        before, self.refused_at[op_id] = self.refused_at.get(op_id, 0), row[self.memory]
        op = self.state.ops.get(op_id)
        for read in op.reads if op is not None else ():
            if read.n > before:  # what it had loaded earlier it has thrown away earlier
                self._thrown_away(read, cache, op, row)

    def taken_away(self, change: Change) -> None:
        """An entry is taken away: the decisive step."""
        for fill in change.page.fills:
            known = change.row[fill.index]
            last = self._accessed.get(fill.name, 0) if fill.cache in self.kinds.latched else fill.n
            if last > known and fill.read.n < change.n:
                self._enter(change.op, fill.cache)
        zaps = self.zapped.get(change.op.id)
        for cache in (*self.kinds.zapped, *self.kinds.latched) if zaps else ():
            zap = zaps.get((change.page, cache)) if zaps else None
            if zap is not None:
                self._after_zap(change, cache, zap)

    def _after_zap(self, change: Change, cache: str, zap: _Zap) -> None:
        if zap.inside and cache in self.from_:
            self._enter(change.op, self.from_[cache])
        for read in change.page.reads:
            op = self.state.ops.get(operation_of(read.id))
            if op is None or op.node not in zap.by or read.n <= zap.row[self.memory]:
                continue
            if self.refused.get(op.id) == cache:
                self._enter(change.op, cache)
            else:
                counted = self.inside.setdefault(change.op.id, set())
                self.loads.setdefault(op.id, []).append((change.op, cache, counted))


def _since(page: Page, n: int) -> Iterator[Change]:
    """The changes of a page that came after delivery ``n`` of memory, newest first."""
    for change in reversed(page.changes):
        if change.n < n:
            return
        yield change
