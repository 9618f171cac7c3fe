"""S3: once an operation that takes rights away has returned, no access goes through what it took.

Those operations are ``obligations.REVOKING``; reclaim, migration and faults promise nothing to
whoever sees them return, and are judged by S1 and S9.  One took an access if it changed the entry
after the translation was read, and left an entry that does not permit it; or inherited that from
another.  An access that the entry of the moment permits all the same is nobody's harm.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmurace.protocol import pte as ptes
from tests.second_opinion.obligations import REVOKING, inherited, left, taking
from tests.second_opinion.trace import DataAccess, Finding, Trace


def judge(trace: Trace) -> Iterator[Finding]:
    """Every access that an operation took which returned before it."""
    for access in trace.accesses:
        used = access.through
        if not permits(trace.entry(used.place, access.at), access) and any(
            trace.before(trace.returned(op), access.at) for op in took(trace, access)
        ):
            yield Finding("S3", used.holder, used.cache, used.place, used.frame)


def took(trace: Trace, access: DataAccess) -> Iterator[str]:
    """Operations that took it."""
    for change in taking(trace, access.through):
        if trace.kind(change.op) in REVOKING and not permits(left(trace, change), access):
            yield change.op
    yield from inherited(trace, access.through)


def permits(entry: int, access: DataAccess) -> bool:
    """Whether an entry lets anybody do the same."""
    return ptes.permits(entry, access.write) and ptes.frame_of(entry) == access.frame
