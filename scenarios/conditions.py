"""Conditions that no run can ever meet: refused when the race is loaded, by their key.

A condition says that a race window was entered.  One that cannot be met makes every run of a race
*inconclusive*, however long it is.  So for each kind of condition it is asked what it needs:

- ``cached_when``: the cache, at that agent; the operation; that this one changes entries or, for
  ``began``, that it names the page when it begins;
- ``between``: both operations, and not always one after the other; steps that the second one has on
  each kernel, in that order;
- ``covered``: a point that there is, and what leads to it;
- ``invalidated``: the cache, and so many operations;
- ``frames_reused``: operations that free frames.

What only some schedule or some kernel prevents is not looked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

import msgspec

from mmurace.broker.programs import Program
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondary import secondaries
from mmurace.nodes.world import World
from mmurace.oracle.sometimes import (
    CALLBACK_MARKS,
    INTERVAL_CALLS,
    Between,
    CachedWhen,
    Condition,
    Covered,
    Invalidated,
)
from mmurace.protocol.errors import UserError
from mmurace.protocol.messages import program as ops
from mmurace.protocol.ranges import covers, overlaps, page_of
from mmurace.scenarios.ends import before, steps_by_name


def never_change() -> frozenset[str]:
    """Operations that take no entry away and free no frame."""
    return frozenset().union(*(one.idle for one in secondaries()))


def copying() -> frozenset[str]:
    """Operations that copy frames: migration, and whatever faults (copy on write, swap)."""
    accesses = (kind.__name__ for one in secondaries() for kind in one.accesses)
    copying = (kind for one in secondaries() for kind in one.copying)
    core = ("MigratePages", "Touch", "PinnedAccess")
    return frozenset({*core, *accesses, *copying}) - never_change()


def _through_guest_addresses(cache: str) -> bool:
    """Whether only pages that somebody names by addresses of its own get into it."""
    return any(
        cache in (one.name for one in secondary.caches)
        for secondary in secondaries()
        if any(one.by_guest_address for one in secondary.caches)
    )


POINTS: Final[dict[str, frozenset[str]]] = {
    **dict.fromkeys(
        ("batched_pending_flushed", "direct_reclaim", "file_page_kept", "file_page_reclaimed",
         "filemap_fault_truncated", "flush_deferred", "gather_batch_full", "nested_gather",
         "swap_cache_hit", "write_upgrade"),
        frozenset(),
    ),
    "anon_exclusive_pinned": frozenset({"MigratePages", "Kswapd"}),
    "fork_copied_pinned": frozenset({"Fork"}),
    "folio_mkclean": frozenset({"Writeback"}),
    "lazyfree_discarded": frozenset({"MadviseFree"}),
    "lazyfree_kept": frozenset({"MadviseFree"}),
    "migrate_busy": frozenset({"MigratePages"}),
    "migration_entry_wait": frozenset({"MigratePages"}),
    "ksm_merged": frozenset({"KsmScan"}),
    "ksm_undone": frozenset({"KsmScan"}),
    "numa_hint_fault": frozenset({"ChangeProtNuma"}),
    "start_refused": frozenset({"OomReap"}),
    "table_moved": frozenset({"Mremap"}),
}  # fmt: skip
"""Coverage points that nodes emit, each with the operation without which it is never passed."""


def points() -> dict[str, frozenset[str]]:
    """The core's coverage points, and those of the secondaries."""
    found = dict(POINTS)
    for name, by in (point for one in secondaries() for point in one.points.items()):
        found[name] = found.get(name, frozenset()) | by
    return found


ORDERED_STEPS_MAX: Final = 500
"""In longer programs it is not asked whether two operations can meet."""


class _Step(msgspec.Struct, frozen=True):
    """An operation of a program: its id, kind and node, and what it concerns."""

    name: str
    kind: str
    node: str
    tag: str
    start: int
    end: int


class Possible:
    """What a run of these programs in this world can do on each of these kernels."""

    def __init__(
        self, world: World, programs: Sequence[Program], kernels: Sequence[tuple[str, Kernel]]
    ) -> None:
        self.world, self.kernels = world, kernels
        self.named = steps_by_name(programs)
        self.steps = [
            _step(name, node, step.operation, world) for name, (node, step) in self.named.items()
        ]
        self.kinds = {step.kind for step in self.steps}

    def check(self, conditions: Sequence[Condition], where: str) -> None:
        """Raises ``UserError`` for the first one that can never be met."""
        for index, condition in enumerate(conditions):
            for key, problem, expected in self._problems(condition):
                place = f"{where}[{index}]" + (f".{key}" if key else "")
                raise UserError(place, f"this can never be met: {problem}", expected)

    def _problems(self, condition: Condition) -> Iterator[tuple[str, str, str]]:
        """(key, why it cannot be met, what was expected)."""
        for key in ("op", "of"):
            kind = getattr(condition, key, "")
            if kind and kind not in self.kinds:
                yield key, f"no program has a {kind}", _listed(self.kinds)
        if isinstance(condition, CachedWhen):
            yield from self._cached(condition)
        elif isinstance(condition, Between):
            yield from self._between(condition)
        elif isinstance(condition, Covered):
            yield from self._covered(condition)
        elif isinstance(condition, Invalidated):
            yield from self._cache(condition.cache)
            yield from self._enough(condition.at_least)
        elif not self.kinds - never_change():
            yield "", "no operation frees a frame", "operations that do"

    # -- caches ----------------------------------------------------------------------------

    def agents(self, cache: str) -> tuple[str, ...]:
        """The nodes that have a cache of that kind."""
        if cache == "tlb":
            return self.world.processors()
        return tuple(n for part in self.world.parts for n in part.holders().get(cache, ()))

    def _cache(self, cache: str) -> Iterator[tuple[str, str, str]]:
        if not self.agents(cache):
            yield "cache", f"no node of this world has a {cache}", "a cache that there is"

    def _cached(self, condition: CachedWhen) -> Iterator[tuple[str, str, str]]:
        yield from self._cache(condition.cache)
        agents = self.agents(condition.cache)
        if condition.agent and condition.agent not in agents:
            yield "agent", f"{condition.agent} has no {condition.cache}", _listed(agents)
        yield from self._address(condition)
        if condition.at == "changed":
            if condition.op in never_change():
                yield "op", f"{condition.op} takes no entry away", "an operation that does"
        elif not any(_names(step, condition, self.world) for step in self.steps):
            page = "a page" if condition.address < 0 else f"{condition.address:#x}"
            yield "at", f"no {condition.op} names {page} of an mm when it begins", 'at = "changed"'

    def _address(self, condition: CachedWhen) -> Iterator[tuple[str, str, str]]:
        address, world = condition.address, self.world
        if address < 0:
            return
        if address >= world.address_end():
            yield "address", "nothing is mapped there", f"less than {world.address_end():#x}"
        elif _through_guest_addresses(condition.cache) and not self._in_range(condition):
            reachable = "a host virtual address that one can reach"
            yield "address", "is in no range of a secondary", reachable

    def _in_range(self, condition: CachedWhen) -> bool:
        own = (part.ranges() for part in self.world.parts)
        spans = [(host, host + size) for ranges in own for _, _, host, size in ranges]
        given: Iterator[Any] = (step.operation for _, step in self.named.values())
        spans += [(op.address, op.address + op.length) for op in given if op.GIVES_RANGE]
        return any(start <= condition.address < end for start, end in spans)

    # -- windows ---------------------------------------------------------------------------

    def _between(self, condition: Between) -> Iterator[tuple[str, str, str]]:
        mine = [s for s in self.steps if s.kind == condition.op and s.node == condition.node]
        if not mine:
            yield "node", f"no program of {condition.node} has a {condition.op}", "one that has"
        if condition.from_ == "op_end":
            yield "from", "nothing comes after op_end", "an earlier step"
        if condition.to == "op_begin":
            yield "to", "nothing comes before op_begin", "a later step"
        for key, mark in (("from", condition.from_), ("to", condition.to)):
            yield from self._step_of(key, mark, condition.of)
        others = [s for s in self.steps if s.kind == condition.of]
        pairs = [(a, b) for a in mine for b in others if a.name != b.name]
        if condition.overlapping:
            pairs = [(a, b) for a, b in pairs if _same_range(a, b)]
            if not pairs:
                yield "overlapping", "no two of them concern the same pages of an mm", "two that do"
        if not self._can_meet(pairs):
            why = f"each {condition.op} of {condition.node} is over before a {condition.of} begins,"
            yield "", f"{why} or begins after it", "two that nothing puts in order"

    def _step_of(self, key: str, mark: str, of: str) -> Iterator[tuple[str, str, str]]:
        """Whether an operation of that kind has such a step, on every kernel."""
        changes = mark in ("pte_change", "frame_freed", "frame_copied")
        copies = mark != "frame_copied" or of in copying()
        if (changes and of in never_change()) or not copies:
            yield key, f"a {of} has no {mark}", "a step that it has"
        if mark not in CALLBACK_MARKS.values():
            return
        for name, kernel in self.kernels:
            if not self._calls(mark, kernel) or of in never_change():
                why = f"on {name} nobody is called at a {mark} of a {of}"
                yield key, why, "a step that every kernel has here"

    def _calls(self, mark: str, kernel: Kernel) -> bool:
        """Whether some subscriber has a callback that is such a step."""
        world = msgspec.structs.replace(self.world, kernel=kernel)
        there = [one for one in secondaries() if one.parts(world)]
        callbacks = {name for one in there for name in one.ops(kernel)}
        if world.has_itrees():
            callbacks.update(INTERVAL_CALLS)
        return any(CALLBACK_MARKS.get(name) == mark for name in callbacks)

    def _can_meet(self, pairs: Sequence[tuple[_Step, _Step]]) -> bool:
        if not pairs or len(self.steps) > ORDERED_STEPS_MAX:
            return bool(pairs)
        past = {name: before(name, self.named) for name in {s.name for p in pairs for s in p}}
        return any(a.name not in past[b.name] and b.name not in past[a.name] for a, b in pairs)

    # -- counts ----------------------------------------------------------------------------

    def _covered(self, condition: Covered) -> Iterator[tuple[str, str, str]]:
        point = condition.point
        if point not in points():
            yield "point", f"there is no {point!r}", _listed(points())
            return
        needed = points()[point]
        if needed and not needed & self.kinds:
            yield "point", f"it needs a {_listed(needed)}", "a program with one"
        if point == "upper_entry_kept" and not any(
            getattr(part, "pwc", False) for part in self.world.parts
        ):
            yield "point", "no unit has a paging-structure cache", "pwc = true"
        for one in secondaries():
            if point in one.points and not one.parts(self.world):
                yield "point", f"this world has no {one.key}", f"a world with {one.key}"

    def _enough(self, at_least: int) -> Iterator[tuple[str, str, str]]:
        most = sum(step.kind not in never_change() for step in self.steps)
        if at_least > most:
            yield "at_least", f"{most} operations can do it", f"at most {most}"


def _step(name: str, node: str, operation: ops.Operation, world: World) -> _Step:
    """What its begin record will say (``operate`` of its node)."""
    kind = type(operation).__name__
    part = world.part_of(node)
    if part is not None and node in part.processors():
        gpa = getattr(operation, "gpa", 0)
        return _Step(name, kind, node, part.name, gpa, gpa + 1)
    start = getattr(operation, "address", 0)
    length = getattr(operation, "length", 0 if part is None else 1)
    return _Step(name, kind, node, getattr(operation, "mm", ""), start, start + max(length, 1))


def _names(step: _Step, condition: CachedWhen, world: World) -> bool:
    """Whether an operation, when it begins, concerns the condition's page of an mm."""
    if step.kind != condition.op or step.tag not in world.mms:
        return False
    return condition.address < 0 or covers(
        page_of(step.start), step.end, page_of(condition.address)
    )


def _same_range(one: _Step, other: _Step) -> bool:
    return one.tag == other.tag and overlaps(one.start, one.end, page_of(other.start), other.end)


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none"
