"""What a driver with an interval notifier has to change, in words: the step that it has not.

    seq = mmu_interval_read_begin
    hmm_range_fault
    the driver's lock
    mmu_interval_read_retry(seq)        [Required: under that lock, before anything is installed]
    install; unlock

and its callback calls ``mmu_interval_set_seq`` under the same lock, and waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable

from mmurace.explorer.explain.interleaving import Row
from mmurace.explorer.explain.why import Explanation
from mmurace.nodes.secondary import secondaries
from mmurace.oracle.violation import Violation
from mmurace.protocol.envelope import operation_of
from mmurace.protocol.messages.intervals import IntervalSeqLoad, IntervalSetSeq


def to_change(explanation: Explanation) -> str:
    """A clause that says what is missing; empty if no interval notifier is concerned."""
    violation = explanation.violation
    if violation.cache not in _caches() or violation.filled is None or violation.changed is None:
        return ""
    rows = explanation.rows
    if not any(row.kind == IntervalSetSeq.__name__ for row in rows):
        return "its callback has to call mmu_interval_set_seq, under the driver's lock"
    if violation.filled.n < violation.changed.n and not explanation.missed.before_fill:
        return "its callback has to wait until the device has dropped the entry and is done with it"
    if _asked_after_read(rows, violation):
        return "mmu_interval_read_retry has to be asked when the driver's lock is held, not before"
    return "mmu_interval_read_retry has to be asked before it is installed, under the driver's lock"


def _caches() -> frozenset[str]:
    """Those that drivers with interval notifiers fill."""
    told = (one for one in secondaries() if one.interval is not None)
    return frozenset(cache.name for one in told for cache in one.caches)


def _asked_after_read(rows: Iterable[Row], violation: Violation) -> bool:
    """Whether whoever installed it asked for the sequence behind its load of the entry."""
    filled, read = violation.filled, violation.read
    if filled is None or read is None:
        return False
    op = operation_of(filled.id)
    return any(
        row.kind == IntervalSeqLoad.__name__ and row.operation == op and read.n < row.n < filled.n
        for row in rows
    )
