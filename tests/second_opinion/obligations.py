"""Who took away what a translation grants, and who owes its end with them."""

from __future__ import annotations

from collections.abc import Iterator

from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from mmurace.protocol.ranges import covers
from tests.second_opinion.trace import NEVER, Change, Operation, Trace, Translation, first

REVOKING = frozenset(
    {"Munmap", "Mmap", "Brk", "Mremap", "MadviseDontneed", "MadviseFree", "Truncate", "Exit",
     "Execve", "Mprotect", "ClearRefs", "Fork"}
)  # fmt: skip
"""Operations that promise, when they return, that what they took is not used any more."""
GATHERING = frozenset({"Munmap", "MadviseDontneed", "MadviseFree", "Brk"})
"""Operations whose gather flushes what other gathers have left (``mm_tlb_flush_nested``)."""
GATHERED = GATHERING | {"Truncate", "Mmap"}
"""Operations whose gather leaves something."""
LOOKING = GATHERING | {"Mprotect", "Mremap"}
"""Operations that ask before they look at entries whether reclaim has left something
(``flush_tlb_batched_pending``)."""


def taking(trace: Trace, x: Translation) -> Iterator[Change]:
    """Changes that take away what ``x`` grants: later than its load, and it has their old frame."""
    for change in trace.changes:
        if change.place != x.place or change.at < x.read or not change.takes_away:
            continue
        if x.revoked_by(change.new) and ptes.frame_of(change.old) == x.frame:
            yield change


def given_back(trace: Trace, x: Translation, change: Change, until: int) -> bool:
    """Whether the operation itself has put an entry there that grants all that ``x`` does."""
    return any(
        later.op == change.op and later.place == change.place
        and change.at < later.at <= until and not x.revoked_by(later.new)
        for later in trace.changes
    )  # fmt: skip


def left(trace: Trace, change: Change) -> int:
    """The entry that the operation leaves at the place of a change: that of its last one."""
    return [c.new for c in trace.changes if c.op == change.op and c.place == change.place][-1]


def inherited(trace: Trace, x: Translation) -> Iterator[str]:
    """Operations that looked at the entry when another had cleared it, and not yet flushed.

    They return as if they had cleared it themselves (``mm_tlb_flush_nested``,
    ``flush_tlb_batched_pending``).  Once the other has returned no mark says that anything is left.
    """
    for operation in trace.operations.values():
        looked = looks(trace, operation)
        if looked < NEVER and is_in(operation, x) and any(
            change.at < looked and change.op != operation.name
            and trace.returned(change.op) > operation.end
            and leaves(trace, change, operation)
            and not given_back(trace, x, change, looked)
            for change in taking(trace, x)
        ):  # fmt: skip
            yield operation.name


def leaves(trace: Trace, change: Change, to: Operation) -> bool:
    """Whether an entry that is cleared so is left for others to flush.

    Reclaim's batch for whoever looks at entries; a gather's for other gathers.
    """
    if to.kind in LOOKING and any(
        isinstance(e.record, r.FlushDeferred) and e.op == change.op
        and (e.record.mm, e.record.address) == change.place
        for e in trace.of[r.FlushDeferred]
    ):  # fmt: skip
        return True
    return to.kind in GATHERING and trace.kind(change.op) in GATHERED


def looks(trace: Trace, operation: Operation) -> int:
    """When it gets its first page-table lock; ``NEVER`` if it gets none."""
    return first(
        trace.deliveries[e.step.causes[-1]]
        for e in trace.of[type(None)]
        if e.step.kind == "PtlLock~" and e.op == operation.name and e.step.causes
    )


def is_in(operation: Operation, x: Translation) -> bool:
    """Whether the entry that ``x`` was made from is in its range."""
    mm, address = x.place
    return operation.mm == mm and covers(operation.start, operation.end_address, address)
