"""Rules O and S2 for entries that move, and S6 after a fork, each from both sides."""

from __future__ import annotations

import pytest

from mmurace.protocol import records as r
from mmurace.protocol.trace import TraceStep
from tests.oracle_story import (
    OTHER,
    PAGE,
    RO,
    Story,
    broken,
    change,
    dropped,
    entry,
    identities,
    play,
    shuffled,
)

LATE = [("S2", "iommu0", "iotlb"), ("O", "iommu0", "iotlb")]


def moving(*order: str) -> Story:
    """The IOTLB has PAGE as ``f``; cpu0 moves the entry and then does these in this order."""
    s = Story()
    s.map("t/0", entry(3))
    s.dma("d/0", entry(3), "f")
    s.begin("m/0", "cpu0", "Mremap")
    s.call("m/0", "memory", change(entry(3), 0))
    for what in order:
        if what == "put":
            s.call("m/0", "memory", change(0, entry(3), OTHER))
        elif what == "flush":
            s.call("m/0", "iommu0", *dropped("iotlb", "f"))
        else:
            s.go("m/0", "memory", kind="PtlUnlock")
            s.go("m/0", "cpu0")
    s.end("m/0", "cpu0", "Mremap")
    return s


def test_flush_before_the_lock_is_released_is_right() -> None:
    assert broken(moving("put", "flush", "unlock", "unlock")) == []


@pytest.mark.parametrize(
    "order", [("put", "unlock", "flush", "unlock"), ("put", "unlock", "unlock", "flush")]
)
def test_flush_after_a_lock_is_released_is_late(order: tuple[str, ...]) -> None:
    assert broken(moving(*order)) == LATE


def test_an_entry_that_goes_nowhere_may_be_flushed_later() -> None:
    assert broken(moving("unlock", "flush")) == []


def test_an_unlock_that_is_delivered_twice_counts_once() -> None:
    s = moving("unlock", "put", "flush", "unlock")
    again = next(step for step in s.steps if step.kind == "PtlUnlock")
    at = next(i for i, step in enumerate(s.steps) if step.dst == "iommu0" and step.src == "cpu0")
    steps = [*s.steps[:at], again, *s.steps[at:]]
    assert play(_numbered(steps)).violations == []


def _numbered(steps: list[TraceStep]) -> list[TraceStep]:
    """The steps in this order, numbered anew."""
    number: dict[int, int] = {}
    result = []
    for n, s in enumerate(steps, 1):
        causes = tuple(number[c] for c in s.causes)
        number.setdefault(s.n, n)
        result.append(TraceStep(n, s.id, s.src, s.dst, s.kind, causes, s.records))
    return result


def forking(*, flush: bool, child: bool = True) -> Story:
    """The IOTLB has PAGE as ``f``; cpu0 forks, and then the device writes through ``f``."""
    s = Story()
    s.map("t/0", entry(3))
    s.dma("d/0", entry(3), "f")
    s.begin("m/0", "cpu0", "Fork")
    s.call("m/0", "memory", change(entry(3), entry(3, RO)))
    if child:
        copied = r.PteChange("mm1", PAGE, 0, 5, 0, 0, entry(3, RO))
        s.call("m/0", "memory", copied)
    if flush:
        s.call("m/0", "iommu0", *dropped("iotlb", "f"))
    s.end("m/0", "cpu0", "Fork")
    if not flush:
        s.go("m/0", "dev0")  # the device knows that the fork has returned
        s.begin("d/1", "dev0", "Dma")
        s.go("d/1", "iommu0")
        s.use("d/1", "iommu0", "f", 3)
        s.end("d/1", "dev0", "Dma")
    return s


def test_a_fork_that_flushes_is_right() -> None:
    assert broken(forking(flush=True)) == []


def test_a_write_after_fork_is_seen_by_the_child() -> None:
    rules = [rule for rule, _, _ in broken(forking(flush=False))]
    assert rules == ["O", "S3", "S6"]


def test_nobody_sees_it_where_no_child_maps_the_page() -> None:
    rules = [rule for rule, _, _ in broken(forking(flush=False, child=False))]
    assert rules == ["O", "S3"]


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_independent_deliveries_does_not_matter(seed: int) -> None:
    for story in (moving("put", "unlock", "flush", "unlock"), forking(flush=False)):
        expected = identities(play(story.steps).violations)
        assert identities(play(shuffled(story.steps, seed)).violations) == expected
