"""S4: a shadow table holds nothing across an invalidation that covers it.

A subscriber with a table of its own that was told of a range (``invalidate_range_start``) can use
nothing, when the bracket ends and later, that was read before a change in the range which the
operation has not given back by then.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmurace.protocol import records as r
from mmurace.protocol.ranges import covers
from tests.second_opinion.obligations import given_back, taking
from tests.second_opinion.trace import SHADOW, Event, Finding, Trace, Translation


def judge(trace: Trace) -> Iterator[Finding]:
    """Every translation of a shadow table that outlives a bracket."""
    ends = [*filter(_is_end, trace.of[r.NotifierCall]), *trace.of[r.IntervalClosed]]
    for x in trace.translations:
        if x.cache in SHADOW and any(outlives(trace, x, end) for end in ends):
            yield Finding("S4", x.holder, x.cache, x.place, x.frame)


def _is_end(event: Event) -> bool:
    call = event.record
    assert isinstance(call, r.NotifierCall)
    return call.callback == "invalidate_range_end" and call.phase == "begin"


def outlives(trace: Trace, x: Translation, end: Event) -> bool:
    """Whether it is older than a change that this bracket is about, and usable at its end."""
    bracket = end.record
    assert isinstance(bracket, (r.NotifierCall, r.IntervalClosed))
    if bracket.subscriber not in (x.tag, x.holder) or bracket.mm != x.place[0]:
        return False
    if not covers(bracket.start, bracket.end, x.place[1]):
        return False
    older = any(
        c.at < end.at and not given_back(trace, x, c, end.at) for c in taking(trace, x)
    )  # fmt: skip
    return older and trace.outlives(x, end.at)
