"""A second opinion on a finished run: six rules, judged naively from their definitions.

What the oracle finds while a run goes on, forgetting what is over, this finds again afterwards by
looking at everything for everything: no state, no forgetting, nothing shared with ``oracle/``.
Slow, and meant to be checked line by line against docs/model.md ("What the oracle checks").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mmurace.protocol.trace import TraceStep
from tests.second_opinion import o_deadlines, s1_freed, s3_revoked, s4_shadow, s9_stores, s16_dirty
from tests.second_opinion.trace import Finding, Trace

RULES: dict[str, Callable[[Trace], Iterator[Finding]]] = {
    "O": o_deadlines.judge,
    "S1": s1_freed.judge,
    "S3": s3_revoked.judge,
    "S4": s4_shadow.judge,
    "S9": s9_stores.judge,
    "S16": s16_dirty.judge,
}


def judge(steps: Sequence[TraceStep]) -> set[Finding]:
    """Every breach of the six rules in a run."""
    trace = Trace(steps)
    return {finding for rule in RULES.values() for finding in rule(trace)}
