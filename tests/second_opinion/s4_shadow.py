"""S4: a shadow table holds nothing across an invalidation that covers it.

A subscriber with a table of its own that was told of a range (``invalidate_range_start``) has, when
the bracket ends and later, nothing that was read before a change of an entry in the bracket and
that the entry of the moment does not grant.  A latched value counts while its guest runs.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from mmurace.protocol.ranges import covers
from tests.second_opinion.obligations import given_back, taking
from tests.second_opinion.trace import NEVER, SHADOW, Event, Finding, Trace, Translation


def judge(trace: Trace) -> Iterator[Finding]:
    """Every translation of a shadow table that outlives a bracket."""
    ends = [e for e in trace.of[r.NotifierCall] if _is_end(e)]
    for x in trace.translations:
        if x.cache in SHADOW and any(outlives(trace, x, end) for end in ends):
            yield Finding("S4", x.holder, x.cache, x.place, x.frame)


def _is_end(event: Event) -> bool:
    call = event.record
    assert isinstance(call, r.NotifierCall)
    return call.callback == "invalidate_range_end" and call.phase == "begin"


def outlives(trace: Trace, x: Translation, end: Event) -> bool:
    """Whether it is older than a change that this bracket is about, and usable at its end."""
    call = end.record
    assert isinstance(call, r.NotifierCall)
    if call.subscriber != x.tag or call.mm != x.place[0]:
        return False
    if not covers(call.start, call.end, x.place[1]):
        return False
    older = any(
        c.at < end.at and not given_back(trace, x, c, end.at) for c in taking(trace, x)
    )  # fmt: skip
    return older and any(
        not trace.before(last, end.at) and stale(trace, x, max(begun, end.at))
        for begun, last in x.usable
    )


def stale(trace: Trace, x: Translation, moment: int) -> bool:
    """Whether it grants what the entry does not: more, or a frame that was freed meanwhile."""
    if moment == NEVER:
        return False
    freed = trace.freed(x.frame, x.read) < moment
    return freed or ptes.takes_away(x.rights, trace.entry(x.place, moment))
