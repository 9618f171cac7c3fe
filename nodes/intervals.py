"""Interval notifiers of each mm, in the ``memory`` node: the tree, its sequence, who waits for it.

``invalidate_seq`` is odd while an invalidation that met an interval is under way.  The tree does
not change then: what comes or goes is put off to the end of the last invalidation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from mmurace.nodes.driver import Handler, Port
from mmurace.nodes.node import Node
from mmurace.nodes.world import World
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.limits import ULONG_MAX
from mmurace.protocol.messages import intervals as i
from mmurace.protocol.messages.base import Ack, Message
from mmurace.protocol.messages.memory import Count
from mmurace.protocol.records import IntervalClosed, IntervalTouched, Registered

FIRST_SEQ = 2
"""``invalidate_seq`` of new ``mmu_notifier_subscriptions``."""


class IntervalSub(msgspec.Struct):
    """``struct mmu_interval_notifier``: [start, last] of a node's driver."""

    driver: str
    node: str
    start: int
    last: int
    invalidate_seq: int = 0
    in_tree: bool = False

    def meets(self, start: int, end: int) -> bool:
        """Whether it has a byte of [start, end)."""
        return self.start < end and start <= self.last


Deferred = Literal["insert", "remove", "overtaken"]
"""*Overtaken* is a removal whose owner did not wait for it, and has inserted another since."""


class Itree(msgspec.Struct):
    """``struct mmu_notifier_subscriptions``, as far as interval notifiers go."""

    invalidate_seq: int = FIRST_SEQ
    active_invalidate_ranges: int = 0
    subs: dict[str, IntervalSub] = {}
    """By node, oldest first."""
    deferred: list[tuple[str, Deferred]] = []
    """(node, what is put off to the end of what is under way), the newest first."""
    locked: bool = False
    """``subscriptions->lock`` is held beyond one access."""
    lock_waiters: list[tuple[str, Any]] = []
    """(request, message) of those who spin for it."""
    sleepers: list[str] = []
    """Requests on the wait queue."""

    @property
    def invalidating(self) -> bool:
        """``mn_itree_is_invalidating``."""
        return bool(self.invalidate_seq & 1)


class IntervalTrees(Node):
    """The part of the ``memory`` node that answers ``protocol.messages.intervals``."""

    def __init__(self, name: str, world: World, port: Port) -> None:
        super().__init__(name, world, port)
        self.itrees = {mm: Itree() for mm in world.mms} if world.has_itrees() else {}
        for mm, tree in self.itrees.items():
            for driver, node in world.intervals(mm):
                tree.subs[node] = IntervalSub(driver, node, 0, ULONG_MAX, FIRST_SEQ - 1, True)

    def interval_handlers(self) -> Mapping[type[Message], Handler]:
        """By message."""
        return {
            **dict.fromkeys(_UNDER_LOCK, self.itree_locked),
            i.ItreeDeferred: self.itree_deferred, i.IntervalWait: self.interval_wait,
            i.IntervalSetSeq: self.interval_set_seq, i.IntervalSeqLoad: self.interval_seq_load,
        }  # fmt: skip

    # -- under subscriptions->lock -----------------------------------------------------------

    def itree_locked(self, message: Any, envelope: Envelope) -> Message | None:
        """Take the lock for one access, now or in turn."""
        tree = self.itrees[message.mm]
        if tree.locked:
            tree.lock_waiters.append((envelope.id, message))
            return None
        return self._access(tree, message)

    def _access(self, tree: Itree, message: Any) -> Message:
        return _UNDER_LOCK[type(message)](self, tree, message)

    def _inv_start(self, tree: Itree, message: i.ItreeInvStart) -> i.Intervals:
        """``mn_itree_inv_start_range``: the sequence is odd if an interval is met."""
        tree.active_invalidate_ranges += 1
        found = [s for s in tree.subs.values() if s.in_tree and s.meets(message.start, message.end)]
        if found:
            tree.invalidate_seq |= 1
        return i.Intervals(tree.invalidate_seq, tuple((s.driver, s.node) for s in found))

    def _inv_end(self, tree: Itree, message: i.ItreeInvEnd) -> Count:
        """``mn_itree_inv_end``: the last one makes the sequence even.

        Whose own doing it was is told of it and may do nothing: it sees to its entries itself.
        """
        tree.active_invalidate_ranges -= 1
        for sub in tree.subs.values():
            met = sub.in_tree and sub.meets(message.start, message.end)
            if met and sub.node != message.owner:
                self.port.emit(IntervalClosed(sub.node, message.mm, message.start, message.end))
        if tree.active_invalidate_ranges or not tree.invalidating:
            return Count(0)
        tree.invalidate_seq += 1
        if tree.deferred:
            tree.locked = True
        else:
            self._wake_up_all(tree)
        return Count(len(tree.deferred))

    def itree_deferred(self, message: i.ItreeDeferred, _: Envelope) -> Ack:
        """What was put off, unlock, ``wake_up_all``."""
        tree = self.itrees[message.mm]
        for node, what in tree.deferred:
            self.port.emit(IntervalTouched(node, message.mm))
            if what == "insert":
                tree.subs[node].in_tree = True
            elif what == "remove":
                del tree.subs[node]
        tree.deferred, tree.locked = [], False
        waiters, tree.lock_waiters = tree.lock_waiters, []
        for at, (request, waiting) in enumerate(waiters):
            self.port.reply(request, self._access(tree, waiting))
            if tree.locked:
                tree.lock_waiters = waiters[at + 1 :]
                return Ack()
        self._wake_up_all(tree)
        return Ack()

    def _insert(self, tree: Itree, message: i.IntervalInsert) -> Ack:
        """``__mmu_interval_notifier_insert``: to whoever reads, an open invalidation is its own."""
        sub = IntervalSub(message.driver, message.node, message.start, message.last)
        node = message.node
        tree.subs[node] = sub
        old: tuple[str, Deferred] = (node, "remove")
        tree.deferred = [(node, "overtaken") if one == old else one for one in tree.deferred]
        self.port.touch(("interval_seq", message.mm, node))
        if tree.active_invalidate_ranges and tree.invalidating:
            tree.deferred.insert(0, (node, "insert"))
            sub.invalidate_seq = tree.invalidate_seq
        elif tree.active_invalidate_ranges:
            tree.invalidate_seq |= 1
            sub.invalidate_seq, sub.in_tree = tree.invalidate_seq, True
        else:
            sub.invalidate_seq, sub.in_tree = tree.invalidate_seq - 1, True
        self.port.emit(Registered(node, message.mm))
        return Ack()

    def _remove(self, tree: Itree, message: i.IntervalRemove) -> Count:
        """``mmu_interval_notifier_remove``: now, or at the end of what is under way.

        -1: there is none, or somebody removes it already; whose turn it is, a device that is gone
        does not say.
        """
        sub = tree.subs.get(message.node)
        leaves: tuple[str, Deferred] = (message.node, "remove")
        if sub is None or leaves in tree.deferred:
            if not message.perhaps:  # WARN_ON(RB_EMPTY_NODE(...)), and an mmdrop too many
                self.port.emit(IntervalTouched(message.node, message.mm))
            return Count(-1)
        if tree.invalidating and sub.in_tree:
            tree.deferred.insert(0, leaves)
            return Count(tree.invalidate_seq)
        tree.deferred = [one for one in tree.deferred if one != (message.node, "insert")]
        del tree.subs[message.node]
        return Count(0)

    def _read_begin(self, tree: Itree, message: i.IntervalReadBegin) -> i.IntervalSeq:
        """The sequence of the interval, and whether it is that of what is under way.

        -1: the device is gone, and its driver has removed the interval.
        """
        self.port.touch(("interval_seq", message.mm, message.node), "read")
        sub = tree.subs.get(message.node)
        seq = sub.invalidate_seq if sub is not None else -1
        return i.IntervalSeq(seq, seq == tree.invalidate_seq)

    def _seq_released(self, _tree: Itree, _message: i.IntervalWait) -> Ack:
        """``mmu_interval_seq_released``: it was true before, and an end leads to no other value."""
        return Ack()

    # -- without it --------------------------------------------------------------------------

    def interval_wait(self, message: i.IntervalWait, envelope: Envelope) -> Ack | None:
        """Answer once the sequence is another one: at once, or woken."""
        tree = self.itrees[message.mm]
        if tree.invalidate_seq == message.seq:
            tree.sleepers.append(envelope.id)
            return None
        if tree.locked and message.locked:
            tree.lock_waiters.append((envelope.id, message))
            return None
        return Ack()

    def _wake_up_all(self, tree: Itree) -> None:
        """Whoever sleeps finds another sequence."""
        sleepers, tree.sleepers = tree.sleepers, []
        for request in sleepers:
            self.port.reply(request, Ack())

    def interval_set_seq(self, message: i.IntervalSetSeq, _: Envelope) -> Ack:
        """Store the sequence of an interval."""
        sub = self.itrees[message.mm].subs.get(message.node)
        if sub is not None:
            sub.invalidate_seq = message.seq
        return Ack()

    def interval_seq_load(self, message: i.IntervalSeqLoad, _: Envelope) -> Count:
        """Load it."""
        sub = self.itrees[message.mm].subs.get(message.node)
        return Count(sub.invalidate_seq if sub is not None else -1)


_UNDER_LOCK: dict[type[Message], Callable[[Any, Itree, Any], Message]] = {
    i.ItreeInvStart: IntervalTrees._inv_start, i.ItreeInvEnd: IntervalTrees._inv_end,
    i.IntervalInsert: IntervalTrees._insert, i.IntervalRemove: IntervalTrees._remove,
    i.IntervalReadBegin: IntervalTrees._read_begin, i.IntervalWait: IntervalTrees._seq_released,
}  # fmt: skip
