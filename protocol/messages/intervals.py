"""What ``memory`` answers about interval notifiers: the tree of an mm's subscriptions (v5.5).

``subscriptions->lock`` guards all of it and is held for one access at a time, so these messages
are what happens under it.  Only the end of an invalidation is seen half done, by those who look at
the sequence without the lock: where the tree must be changed, the lock is held from ``ItreeInvEnd``
to ``ItreeDeferred``, and the others wait for it.
"""

from __future__ import annotations

from typing import ClassVar

from mmurace.protocol.messages.base import Ack, Message, Request
from mmurace.protocol.messages.memory import Count
from mmurace.protocol.told import ESSENTIAL, HELPFUL, Told, Values, reply


def _starts(values: Values, _: str) -> str:
    return f"mn_itree_inv_start_range: invalidate_seq = {reply(values, 'seq')}"


def _ends(values: Values, _: str) -> str:
    left = reply(values, "value")
    return f"mn_itree_inv_end{f': {left} deferred, lock held' if left else ''}"


def _changes(_: Values, __: str) -> str:
    return "the deferred list: the tree changes; unlock"


def _removes(values: Values, _: str) -> str:
    seq = reply(values, "value")
    done = f"on the deferred list, to wait while invalidate_seq is {seq}" if seq else "out of it"
    return f"mmu_interval_notifier_remove: {done}"


def _waits(values: Values, _: str) -> str:
    how = "mmu_interval_seq_released" if values["locked"] else "invalidate_seq, without the lock"
    return f"{how}: no longer {values['seq']}"


def _sets(values: Values, _: str) -> str:
    return f"mmu_interval_set_seq({values['seq']})"


def _begins(values: Values, _: str) -> str:
    return f"mmu_interval_read_begin: {reply(values, 'seq')}"


def _reads(values: Values, _: str) -> str:
    return f"mmu_interval_read_retry: the sequence is {reply(values, 'value')}"


class Intervals(Message, frozen=True):
    """The sequence, and whose intervals a range meets: (driver, node)."""

    seq: int
    found: tuple[tuple[str, str], ...]


class IntervalSeq(Message, frozen=True):
    """``interval_sub->invalidate_seq``, and whether it is that of an invalidation under way."""

    seq: int
    invalidating: bool


class ItreeInvStart(Request[Intervals], frozen=True):
    """``mn_itree_inv_start_range``, and the walk behind it: the tree stands still from here on."""

    mm: str
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("itree", "mm")
    MAY_COME_LATER: ClassVar[bool] = True
    TOLD: ClassVar[Told] = Told(
        function="mn_itree_inv_start_range", wording=_starts, weight=ESSENTIAL
    )


class ItreeInvEnd(Request[Count], frozen=True):
    """``mn_itree_inv_end`` of [start, end): how many changes of the tree were put off.

    With any left, ``subscriptions->lock`` stays held.  ``owner``: whose doing it is
    (``range->owner``), if that is said.
    """

    mm: str
    start: int
    end: int
    owner: str = ""
    OBJECT: ClassVar[tuple[str, ...]] = ("itree", "mm")
    MAY_COME_LATER: ClassVar[bool] = True
    TOLD: ClassVar[Told] = Told(function="mn_itree_inv_end", wording=_ends, weight=ESSENTIAL)


class ItreeDeferred(Request[Ack], frozen=True):
    """The rest of ``mn_itree_inv_end``: the changes that were put off, unlock, ``wake_up_all``."""

    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("itree", "mm")
    TOLD: ClassVar[Told] = Told(function="mn_itree_inv_end", wording=_changes, weight=ESSENTIAL)


class IntervalInsert(Request[Ack], frozen=True):
    """``__mmu_interval_notifier_insert`` of [start, last], of a driver for a node."""

    mm: str
    driver: str
    node: str
    start: int
    last: int
    OBJECT: ClassVar[tuple[str, ...]] = ("itree", "mm")
    MAY_COME_LATER: ClassVar[bool] = True
    TOLD: ClassVar[Told] = Told(function="mmu_interval_notifier_insert", weight=HELPFUL)


class IntervalRemove(Request[Count], frozen=True):
    """``mmu_interval_notifier_remove`` up to its wait: for which sequence; 0: none.

    -1: there is nothing to remove.  ``perhaps``: others may have done it, and the driver knows.
    """

    mm: str
    node: str
    perhaps: bool = False
    OBJECT: ClassVar[tuple[str, ...]] = ("itree", "mm")
    MAY_COME_LATER: ClassVar[bool] = True
    TOLD: ClassVar[Told] = Told(
        function="mmu_interval_notifier_remove", wording=_removes, weight=ESSENTIAL
    )


class IntervalWait(Request[Ack], frozen=True):
    """``wait_event(subscriptions->wq, ...)``: answered once the sequence is another one.

    ``locked``: whoever looks at the sequence takes the lock for it (``mmu_interval_seq_released``).
    """

    mm: str
    seq: int
    locked: bool
    OBJECT: ClassVar[tuple[str, ...]] = ("itree", "mm")
    MAY_SLEEP: ClassVar[bool] = True
    TOLD: ClassVar[Told] = Told(
        function="wait_event", called="wait for the invalidation", wording=_waits
    )


class IntervalReadBegin(Request[IntervalSeq], frozen=True):
    """``mmu_interval_read_begin`` up to its wait."""

    mm: str
    node: str
    OBJECT: ClassVar[tuple[str, ...]] = ("itree", "mm")
    MAY_COME_LATER: ClassVar[bool] = True
    TOLD: ClassVar[Told] = Told(function="mmu_interval_read_begin", wording=_begins, weight=HELPFUL)


class IntervalSetSeq(Request[Ack], frozen=True):
    """``mmu_interval_set_seq``: ``interval_sub->invalidate_seq``, under the driver's lock."""

    mm: str
    node: str
    seq: int
    OBJECT: ClassVar[tuple[str, ...]] = ("interval_seq", "mm", "node")
    TOLD: ClassVar[Told] = Told(function="mmu_interval_set_seq", wording=_sets, weight=ESSENTIAL)


class IntervalSeqLoad(Request[Count], frozen=True):
    """What ``mmu_interval_read_retry`` and ``mmu_interval_check_retry`` look at."""

    mm: str
    node: str
    OBJECT: ClassVar[tuple[str, ...]] = ("interval_seq", "mm", "node")
    ACCESS: ClassVar[str] = "read"
    TOLD: ClassVar[Told] = Told(function="mmu_interval_read_retry", wording=_reads, weight=HELPFUL)


SEQUENCE = (
    ItreeInvStart, ItreeInvEnd, IntervalReadBegin, IntervalSetSeq, IntervalSeqLoad,
)  # fmt: skip
"""What moves, stores or looks at a sequence."""
