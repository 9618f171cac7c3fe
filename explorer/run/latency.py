"""How long an invalidation takes, in deliveries: from its request being sent to its completion.

The end is the delivery of the reply to whoever asked, so what chaos does to either message counts,
and so does the wait for accesses in flight.  Flushes of a processor's own TLB are no messages and
are not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mmurace.protocol.envelope import BROKER, REPLY_MARK, reply_id
from mmurace.protocol.records import InvalidateBegin
from mmurace.protocol.trace import TraceStep

EXACT_BELOW: Final = 1000
"""Longer ones are kept with three digits, so that memory is bounded."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Of one kind of cache: how many invalidations were measured, and deliveries that they took."""

    count: int
    p50: int
    p99: int
    max: int
    counts: tuple[tuple[int, int], ...] = ()
    """(deliveries, how many took so long), shortest first; rounded where there are many."""


class Latencies:
    """Measures the invalidations of a trace."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str, int]] = {}
        """Reply that completes it -> (cache, delivery whose handling asked for it)."""
        self._found: dict[str, dict[int, int]] = {}
        """Cache -> latency -> how often."""

    def began(self, step: TraceStep, record: InvalidateBegin) -> None:
        """A cache began to drop entries in this step."""
        # The reply to an operation ends at the broker: it is no step.
        if not step.id.endswith(REPLY_MARK) and step.src != BROKER and step.causes:
            self._open.setdefault(reply_id(step.id), (record.cache, step.causes[-1]))

    def step(self, step: TraceStep) -> None:
        """Any step: it may be the completion of one."""
        asked = self._open.pop(step.id, None) if self._open else None
        if asked is not None:
            cache, since = asked
            counts = self._found.setdefault(cache, {})
            took = _rounded(step.n - since)
            counts[took] = counts.get(took, 0) + 1

    def result(self) -> dict[str, Latency]:
        """By cache (``tlb``, and those of secondaries)."""
        return {cache: _latency(counts) for cache, counts in sorted(self._found.items())}


def _rounded(number: int) -> int:
    step: int = 10 ** max(0, len(str(number)) - 3)
    return number if number < EXACT_BELOW else number // step * step


def _latency(counts: dict[int, int]) -> Latency:
    total = sum(counts.values())
    half, nearly_all = (_rank(counts, total, percent) for percent in (50, 99))
    return Latency(total, half, nearly_all, max(counts), tuple(sorted(counts.items())))


def _rank(counts: dict[int, int], total: int, percent: int) -> int:
    """The smallest value that so many percent do not exceed (nearest rank)."""
    seen = 0
    for value, count in sorted(counts.items()):
        seen += count
        if seen * 100 >= total * percent:
            return value
    raise AssertionError("no counts")
