"""S3: once an operation that takes rights away has returned, no access goes through what it took.

Those operations are ``obligations.REVOKING``; reclaim, migration and faults promise nothing to whoever
sees them return, and are judged by S1 and S9.  What one took: the rights of a translation that was read before the operation changed the entry, and
that the entry which the operation left does not grant.  An access that the entry of the moment
permits all the same is nobody's harm.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmurace.protocol import pte as ptes
from tests.second_opinion.obligations import inherited, taken_by
from tests.second_opinion.trace import DataAccess, Finding, Trace


def judge(trace: Trace) -> Iterator[Finding]:
    """Every access through a translation whose rights an operation that has returned took."""
    for access in trace.accesses:
        used = access.through
        if not permitted(trace, access) and any(
            trace.before(trace.returned(op), access.at)
            for op in (*taken_by(trace, used), *inherited(trace, used))
        ):
            yield Finding("S3", used.holder, used.cache, used.place, used.frame)


def permitted(trace: Trace, access: DataAccess) -> bool:
    """Whether the entry as it is lets anybody do the same."""
    entry = trace.entry(access.through.place, access.at)
    return ptes.permits(entry, access.write) and ptes.frame_of(entry) == access.frame
