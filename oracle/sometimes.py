"""Conditions that show that a race window was entered; without them green is not green.

They are judged on every kernel, so they speak of what can happen on good ones too: an entry that
could go stale was cached, and the adversary was under way at the decisive step.  Like the rules,
they ask for happens-before and not for numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import msgspec

from mmurace.nodes.secondary import by_node_order, caches
from mmurace.nodes.world import World
from mmurace.oracle.state.kinds import kinds
from mmurace.oracle.state.live import Cached, Change, Op, Page, State
from mmurace.oracle.state.order import Row
from mmurace.oracle.state.statistics import Statistics
from mmurace.oracle.windows import Windows, cells_of, of_guests
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import ORACLE_OPERATIONS_KEPT
from mmurace.protocol.messages.program import operation_kinds
from mmurace.protocol.ranges import covers, overlaps, page_of

Mark = Literal[
    "op_begin", "range_start", "pte_change", "flush", "frame_freed", "frame_copied", "range_end",
    "op_end",
]  # fmt: skip
"""A step of an operation: its begin, ``invalidate_range_start`` called, an entry taken away, a
secondary flushed (``invalidate_page``, ``invalidate_range``, ``arch_invalidate_secondary_tlbs``), a
frame freed or copied, ``invalidate_range_end`` called, its end."""


def known_caches() -> tuple[str, ...]:
    """Everything that may hold translations: the processors' TLBs, and what secondaries have."""
    return ("tlb", *(name for name, cache in caches().items() if not cache.upper))


def known_operations() -> tuple[str, ...]:
    """Everything that a program can be asked for."""
    return tuple(kind.__name__ for kind in operation_kinds())


CALLBACK_MARKS: dict[str, Mark] = {
    "invalidate_range_start": "range_start",
    "invalidate": "range_start",
    "invalidate_page": "flush",
    "invalidate_range": "flush",
    "arch_invalidate_secondary_tlbs": "flush",
    "invalidate_range_end": "range_end",
    "mn_itree_inv_end": "range_end",
}
"""What a subscriber's callback is a step of; that of an interval notifier is the start of a
bracket, and its end calls nobody."""
INTERVAL_CALLS = ("invalidate", "mn_itree_inv_end")
"""Those of interval notifiers."""


class _Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """Base: what was looked for."""


class CachedWhen(_Condition, frozen=True, tag="cached_when"):
    """``cache`` held a translation when an operation ``op`` took it away (``at = "changed"``),
    or when it first reached memory (``at = "began"``; for caches that are zapped before that).
    """

    cache: str
    op: str
    at: Literal["changed", "began"] = "changed"
    agent: str = ""
    """Empty: any."""
    address: int = -1
    """A host virtual address; -1: any."""

    def wants(self, fill: Cached, page: Page) -> bool:
        """Whether it is about this translation."""
        return (
            fill.cache == self.cache
            and (not self.agent or fill.agent == self.agent)
            and (self.address < 0 or page_of(self.address) == page.address)
        )


class Between(_Condition, frozen=True, tag="between", rename={"from_": "from"}):
    """An operation ``op`` at ``node`` was under way between two steps of an operation ``of``; with
    ``began`` it began after the first of them, with ``overlapping`` both are of the same mm and
    have a page in common.
    """

    node: str
    op: str
    of: str
    from_: Mark
    to: Mark
    began: bool = False
    overlapping: bool = False


class Covered(_Condition, frozen=True, tag="covered"):
    """A coverage point was passed at least so often."""

    point: str
    at_least: int = 1


class Invalidated(_Condition, frozen=True, tag="invalidated"):
    """So many operations invalidated a range of which ``cache`` held a live entry."""

    cache: str
    at_least: int = 1


class FramesReused(_Condition, frozen=True, tag="frames_reused"):
    """So many frames that some cache had held were freed and used again."""

    at_least: int = 1


class Entered(_Condition, frozen=True, tag="entered"):
    """In so many windows of operations ``op`` somebody with a ``cache`` was inside (the page on the
    model says what that is).  0: it is counted, and not demanded.
    """

    op: str
    cache: str
    at_least: int = 1


Condition = CachedWhen | Between | Covered | Invalidated | FramesReused | Entered


def conditions_from(values: Any, where: str) -> tuple[Condition, ...]:
    """Builtins (an array of tables) as conditions.  Raises ``UserError`` with the key path."""
    if not isinstance(values, list | tuple):
        raise UserError(where, "is not an array", "an array of tables with a kind each")
    return tuple(_condition(value, f"{where}[{at}]") for at, value in enumerate(values))


def _condition(value: Any, where: str) -> Condition:
    kinds = [str(kind.__struct_config__.tag) for kind in get_args(Condition)]
    if not isinstance(value, dict) or value.get("kind") not in kinds:
        raise UserError(where, "has no known kind", f"kind = one of {', '.join(kinds)}")
    try:
        converted: Condition = msgspec.convert(value, Condition)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        raise UserError(where + path.rstrip("`"), problem) from None
    for key in ("op", "of", "cache"):
        name = getattr(converted, key, None)
        known = known_caches() if key == "cache" else known_operations()
        if name is not None and name not in known:
            raise UserError(f"{where}.{key}", f"unknown: {name!r}", ", ".join(known))
    return converted


def demanded(condition: Condition) -> bool:
    """Whether a verdict needs it: not if it is only counted."""
    return not isinstance(condition, Entered) or condition.at_least > 0


def describe(condition: Condition) -> str:
    """For people: ``cached_when(cache=tlb, op=Munmap)``; defaults are left out."""
    built: dict[str, Any] = msgspec.to_builtins(condition)
    kind = built.pop("kind")
    usual = {f.encode_name: f.default for f in msgspec.structs.fields(condition)}
    if "address" in built:
        built["address"] = f"{built['address']:#x}" if built["address"] >= 0 else -1
    said = ", ".join(f"{key}={value}" for key, value in built.items() if usual[key] != value)
    return f"{kind}({said})"


def workload_conditions(world: World, ranges: int = 100, frames: int = 10) -> tuple[Condition, ...]:
    """What a workload must have done: every secondary class at work, and frames reused."""
    # What is filled from shadow entries is of one class with them; not every row has every cache.
    known = kinds()
    held = [
        Invalidated(cache.name, ranges)
        for one in by_node_order()
        for cache in one.caches
        if cache.name in known.walked | known.zapped
        and any(part.holders().get(cache.name) for part in one.parts(world))
    ]
    return (*held, FramesReused(frames))


def window_conditions(
    kinds: Iterable[str], world: World, asked: frozenset[str] | None = None
) -> tuple[Condition, ...]:
    """Every window of these kinds of operations that somebody can be in, in ``world``.

    With ``asked`` the others, and those of what a guest holds, are counted and not demanded.  Nor
    are those of a device that the workload does not know: it may keep everybody out.  Drivers with
    interval notifiers do: ``mmu_interval_read_begin`` waits while an invalidation is under way, so
    nobody is inside but who has passed it just before (mm/mmu_notifier.c, v5.5).
    """
    keeps_out = (one for one in by_node_order() if one.made or one.interval)
    counted = {cache.name for one in keeps_out for cache in one.caches}
    if asked is not None:
        counted |= of_guests()
    return tuple(
        Entered(kind, cache, int(cache not in counted and (asked is None or kind in asked)))
        for kind, cache in cells_of(kinds, world)
    )


class _Seen:
    """An operation of an adversary: where it began and ended."""

    __slots__ = ("began", "end", "ended", "id", "index", "kind", "start", "tag")

    def __init__(self, op: Op) -> None:
        self.id, self.kind, self.index, self.began = op.id, op.kind, op.index, op.began
        self.tag, self.start, self.end = op.tag, op.start, max(op.end, op.start + 1)
        self.ended = 0


class Sometimes:
    """Which conditions were met.  Costs nothing once all are."""

    def __init__(
        self, conditions: Sequence[Condition], state: State, memory: int, world: World
    ) -> None:
        self.conditions = tuple(conditions)
        self.state = state
        self.memory = memory
        cells = [(c.op, c.cache) for c in self.conditions if isinstance(c, Entered)]
        self.windows = Windows(cells, world, state, memory) if cells else None
        """What counts who was inside; None: no condition asks."""
        self.open = set(range(len(self.conditions)))
        """Indexes of those not met yet."""
        self.adversaries: dict[str, deque[_Seen]] = {}
        self.unheard: dict[str, Op] = {}
        """Operations whose begin a condition is about, until memory hears of them."""
        self._sort()

    def _sort(self) -> None:
        unmet = [(at, self.conditions[at]) for at in sorted(self.open)]
        cached = [(at, c) for at, c in unmet if isinstance(c, CachedWhen)]
        self.between = [(at, c) for at, c in unmet if isinstance(c, Between)]
        self.changed = [(at, c) for at, c in cached if c.at == "changed"]
        self.began = [(at, c) for at, c in cached if c.at == "began"]
        self._awaited = {c.op for _, c in self.began}
        self._beside = {(c.node, c.op) for _, c in self.between}
        self._marked = {c.of for _, c in self.between}
        if not self.began:
            self.unheard.clear()

    def _met(self, at: int) -> None:
        self.open.discard(at)
        self._sort()

    # -- what happens -------------------------------------------------------------------------

    def change(self, change: Change, row: Row) -> None:
        """An entry was taken away."""
        for at, condition in self.changed:
            if condition.op == change.op.kind and _holds(condition, change.page, row):
                self._met(at)

    def memory_step(self, op_id: str, row: Row) -> None:
        """Memory handles a message of an operation."""
        op = self.unheard.pop(op_id, None)
        if op is None:
            return
        for at, condition in self.began:
            if condition.op == op.kind and any(
                _holds(condition, page, row) for page in self._pages(op)
            ):
                self._met(at)

    def _pages(self, op: Op) -> Iterable[Page]:
        end = max(op.end, op.start + 1)
        return [
            page
            for (mm, address), page in self.state.pages.items()
            if mm == op.tag and page.fills and covers(page_of(op.start), end, address)
        ]

    def op_began(self, op: Op) -> None:
        """An operation began at its initiator."""
        if op.kind in self._awaited:
            self.unheard[op.id] = op
        if (op.node, op.kind) in self._beside:
            kept = self.adversaries.setdefault(op.node, deque(maxlen=ORACLE_OPERATIONS_KEPT))
            kept.append(_Seen(op))

    def op_ended(self, op: Op, n: int) -> None:
        """An operation ended at its initiator."""
        self.unheard.pop(op.id, None)
        if (op.node, op.kind) in self._beside:
            for seen in self.adversaries.get(op.node, ()):
                if seen.id == op.id:
                    seen.ended = n

    def mark(self, op: Op, mark: Mark, row: Row) -> None:
        """A step of an operation."""
        if op.kind not in self._marked:
            return
        for at, condition in self.between:
            if condition.of != op.kind:
                continue
            if condition.to == mark:
                opened = op.marks.pop(at, None)
                if opened is not None and self._under_way(condition, op, opened, row):
                    self._met(at)
            if condition.from_ == mark:
                op.marks.setdefault(at, row)

    def _under_way(self, condition: Between, op: Op, opened: Row, row: Row) -> bool:
        """Its begin is known here, and its end was not known when the window opened."""
        for seen in self.adversaries.get(condition.node, ()):
            if seen.kind != condition.op or seen.id == op.id or seen.began > row[seen.index]:
                continue
            if seen.ended and seen.ended <= opened[seen.index]:
                continue
            if condition.began and seen.began <= opened[seen.index]:
                continue
            if condition.overlapping and not _same_range(seen, op):
                continue
            return True
        return False

    def finish(self, statistics: Statistics) -> None:
        """Judge what can only be counted."""
        for at in sorted(self.open):
            if _counted(self.conditions[at], statistics, self.windows):
                self.open.discard(at)
        self._sort()


def _holds(condition: CachedWhen, page: Page, row: Row) -> bool:
    """Whether a translation is known to be installed and not known to be closed."""
    return any(
        condition.wants(fill, page) and fill.n <= row[fill.index] and not fill.closed_before(row)
        for fill in page.fills
    )


def _same_range(seen: _Seen, op: Op) -> bool:
    end = max(op.end, op.start + 1)
    return seen.tag == op.tag and overlaps(seen.start, seen.end, page_of(op.start), end)


def _counted(condition: Condition, statistics: Statistics, windows: Windows | None) -> bool:
    if isinstance(condition, Entered) and windows is not None:
        return windows.entered[condition.op, condition.cache] >= condition.at_least
    if isinstance(condition, Covered):
        return statistics.covered.get(condition.point, 0) >= condition.at_least
    if isinstance(condition, Invalidated):
        return statistics.invalidated.get(condition.cache, 0) >= condition.at_least
    if isinstance(condition, FramesReused):
        return statistics.frames_reused >= condition.at_least
    return False
