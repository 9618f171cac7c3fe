"""Rules S14, P4 and L2: what a driver was told, and what it told its unit.

S14: when a callback that flushes a shared-table secondary returns, the unit has been told of every
page in the callback's range that the operation has changed, as the driver *decoded* that range.
Commands of the operation since the change count, by whatever callback.  A unit that hears the
CPUs' broadcasts need not be told.
P4: a callback, which may run under a spinlock, queues a bounded number of commands.
L2: it comes back: what the end of the run has cut off is no more than a callback may do.

    cpu (takes something away)          driver                      unit
    entry changed (e)
    callback [start, end) of the mm     decodes it to [s, t), ...
                                                                    told of [s, t)
    callback returns                    [Required: [s, t) of some command since e holds e's page]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mmurace.nodes.secondary import secondaries
from mmurace.nodes.world import World
from mmurace.oracle.state.kinds import kinds
from mmurace.oracle.state.live import Change, Op
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.limits import CALLBACK_COMMANDS_MAX, CALLBACK_STEPS_MAX
from mmurace.protocol.pte import describe
from mmurace.protocol.ranges import covers
from mmurace.protocol.records import InvalidateBegin, LoopCut, NotifierCall

FLUSHES = frozenset({"invalidate_page", "invalidate_range", "arch_invalidate_secondary_tlbs"})

_Key = tuple[str, str]
"""(operation, unit)."""
_Told = tuple[int, str, int, int]
"""(delivery, mm, start, end) of a command."""


def to_be_told(world: World) -> dict[str, str]:
    """Who hears no broadcast and so must be told, with the cache that it has."""
    walked = kinds().walked
    return {
        part.name: cache.name
        for one in secondaries()
        for cache in one.caches
        if cache.name in walked
        for part in one.parts(world)
        if part.told(world.kernel)
    }


class Targeting:
    """Commands that each operation led to, and what they should have covered."""

    def __init__(
        self, units: Mapping[str, str], found: list[Violation], mm_of: Callable[[str], str]
    ) -> None:
        """``units``: those that must be told, with their cache; ``mm_of``: whose a tag is."""
        self.units, self.found, self.mm_of = units, found, mm_of
        self._walked = kinds().walked
        self._told: dict[_Key, list[_Told]] = {}
        self._before: dict[_Key, int] = {}
        """How many commands there were when the callback in progress began."""
        self._reported: set[tuple[str, ...]] = set()

    def invalidated(self, record: InvalidateBegin, op: Op, event: Event) -> None:
        """A command (or a broadcast) arrived at a unit."""
        if record.cache in self._walked:
            told = self._told.setdefault((op.id, event.node), [])
            told.append((event.n, self.mm_of(record.tag), record.start, record.end))

    def notifier_call(self, record: NotifierCall, op: Op, event: Event) -> None:
        """A callback begins or ends."""
        if record.callback not in FLUSHES or record.subscriber not in self.units:
            return
        told = self._told.get((op.id, record.subscriber), [])
        if record.phase == "begin":
            self._before[op.id, record.subscriber] = len(told)
            return
        queued = len(told) - self._before.pop((op.id, record.subscriber), len(told))
        if queued > CALLBACK_COMMANDS_MAX and self._new("P4", op.id, record.subscriber):
            cache = self.units[record.subscriber]
            self.found.append(_too_many(record, op, cache, queued, event))
        for change in op.changes:
            if not _covered(change, record, told):
                self._missed(change, record, op, event)

    def _missed(self, change: Change, record: NotifierCall, op: Op, event: Event) -> None:
        if self._new("S14", op.id, record.subscriber, change.id):
            cache = self.units[record.subscriber]
            self.found.append(_not_told(change, record, op, cache, event))

    def cut(self, record: LoopCut, op: Op, event: Event) -> None:
        """A callback's loop was cut off."""
        if record.left > CALLBACK_STEPS_MAX and self._new("L2", op.id, record.subscriber):
            cache = self.units.get(record.subscriber, "")
            self.found.append(_endless(record, op, cache, event))

    def _new(self, *what: str) -> bool:
        fresh = what not in self._reported
        self._reported.add(what)
        return fresh

    def ended(self, op_id: str) -> None:
        """The operation is over."""
        for unit in self.units:
            self._told.pop((op_id, unit), None)
            self._before.pop((op_id, unit), None)
        if self._reported:
            self._reported = {what for what in self._reported if what[1] != op_id}


def _covered(change: Change, record: NotifierCall, told: list[_Told]) -> bool:
    page = change.page
    if page.mm != record.mm or not covers(record.start, record.end, page.address):
        return True
    return any(
        n > change.n and mm == page.mm and covers(start, end, page.address)
        for n, mm, start, end in reversed(told)
    )


def _not_told(change: Change, record: NotifierCall, op: Op, cache: str, event: Event) -> Violation:
    page = change.page
    return Violation(
        rule="S14", agent=record.subscriber, cache=cache, mm=page.mm, address=page.address,
        changed=change.event(), change=f"{describe(change.old)} -> {describe(change.new)}",
        owed=op.text(), deadline=event, racing=(change.event(), event),
        detail=f"{record.callback} of [{record.start:#x}, {record.end:#x}) returned, and the "
        "unit was not told of this page",
    )  # fmt: skip


def _endless(record: LoopCut, op: Op, cache: str, event: Event) -> Violation:
    return Violation(
        rule="L2", agent=record.subscriber, cache=cache, mm=record.mm, address=record.start,
        owed=op.text(), racing=(event,),
        detail=f"the callback for [{record.start:#x}, {record.end:#x}) has {record.left} commands "
        f"left to give (at most {CALLBACK_STEPS_MAX})",
    )  # fmt: skip


def _too_many(record: NotifierCall, op: Op, cache: str, queued: int, event: Event) -> Violation:
    return Violation(
        rule="P4", agent=record.subscriber, cache=cache, mm=record.mm, address=record.start,
        owed=op.text(), racing=(event,),
        detail=f"one {record.callback} of [{record.start:#x}, {record.end:#x}) queued {queued} "
        f"commands (at most {CALLBACK_COMMANDS_MAX})",
    )  # fmt: skip
