"""Who took away what a translation grants, and who owes its end with them."""

from __future__ import annotations

from collections.abc import Iterator

from mmurace.protocol.ranges import covers
from tests.second_opinion.trace import Change, Operation, Trace, Translation

REVOKING = frozenset(
    {"Munmap", "Mmap", "Brk", "Mremap", "MadviseDontneed", "Truncate", "Exit", "Execve",
     "Mprotect", "ClearRefs", "Fork"}
)  # fmt: skip
"""Operations that promise, when they return, that what they took is not used any more."""
LOOKING = frozenset({"Munmap", "Mmap", "Mremap", "MadviseDontneed", "Mprotect"})
"""Those of them that go through the entries of their range, whatever is there, for one mm."""


def taking(trace: Trace, x: Translation) -> Iterator[Change]:
    """Changes that take away what ``x`` grants: later than its load, and it has their old frame."""
    for change in trace.changes:
        if change.place == x.place and change.at > x.read and change.takes_away:
            if x.revoked_by(change.new) and change.old >> 12 == x.frame:
                yield change


def given_back(trace: Trace, x: Translation, change: Change, until: int) -> bool:
    """Whether the operation itself has put an entry there that grants all that ``x`` does."""
    return any(
        later.op == change.op and later.place == change.place
        and change.at < later.at <= until and not x.revoked_by(later.new)
        for later in trace.changes
    )  # fmt: skip


def taken_by(trace: Trace, x: Translation) -> Iterator[str]:
    """Operations that took something of it away, and left it so."""
    for change in taking(trace, x):
        if not given_back(trace, x, change, trace.returned(change.op)):
            yield change.op


def inherited(trace: Trace, x: Translation) -> Iterator[str]:
    """Operations that found the entry cleared by another, and ``x`` still there, when they began.

    They return as if they had cleared it themselves (``mm_tlb_flush_nested``,
    ``flush_tlb_batched_pending``).
    """
    for operation in trace.operations.values():
        if looks_at(operation, x) and any(
            change.at < operation.begin and change.op != operation.name
            and not given_back(trace, x, change, operation.begin)
            for change in taking(trace, x)
        ) and x.usable_after(operation.begin):  # fmt: skip
            yield operation.name


def looks_at(operation: Operation, x: Translation) -> bool:
    """Whether it goes through the entry that ``x`` was made from."""
    mm, address = x.place
    here = operation.mm == mm and covers(operation.start, operation.end_address, address)
    return operation.kind in LOOKING and operation.result >= 0 and here
