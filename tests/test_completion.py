"""Rule L4: whatever an agent has begun to drop, it says in the end that it has."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mmurace.oracle.oracle import Oracle
from mmurace.oracle.violation import Violation
from mmurace.protocol import records as r
from mmurace.protocol.trace import Ending
from tests.oracle_story import PAGE, WORLD, Story

COMPLETE = Ending(0, 0, True, ())


def begun(cache: str, end: int = PAGE + 4096) -> r.InvalidateBegin:
    return r.InvalidateBegin(cache, "mm0", PAGE, end, ())


def done(cache: str, end: int = PAGE + 4096) -> r.InvalidateDone:
    return r.InvalidateDone(cache, "mm0", PAGE, end, ())


def told(*records: r.Record, at: str = "iommu0") -> Story:
    """An operation whose invalidation has these records at an agent, one in each delivery."""
    story = Story()
    story.begin("m/0", "cpu0", "Munmap")
    for record in records:
        story.call("m/0", at, record)
    story.end("m/0", "cpu0", "Munmap")
    return story


def judged(story: Story, dead: str = "", quiescent: bool = True) -> list[Violation]:
    """The breaches of L4 by a run that has come to rest."""
    oracle = Oracle(WORLD)
    for step in story.steps:
        oracle.step(step)
    if dead:
        oracle.lost(dead)
    oracle.finish(COMPLETE, quiescent)
    return [v for v in oracle.violations if v.rule == "L4"]


HALVES: list[tuple[str, Sequence[r.Record]]] = [
    ("iommu0", [begun("iotlb")]),
    ("iommu0", [begun("iotlb"), begun("iotlb"), done("iotlb")]),
    ("iommu0", [begun("iotlb"), done("iotlb", PAGE + 8192)]),
    ("iommu0", [begun("iotlb"), done("tlb")]),
    ("iommu0", [done("iotlb"), begun("iotlb")]),
    ("vcpu0", [r.RequestPosted("TLB_FLUSH", False)]),
    ("vcpu0", [r.RequestPosted("TLB_FLUSH", False), r.RequestPosted("APIC_PAGE_RELOAD", True)]),
]
WHOLE: list[tuple[str, Sequence[r.Record]]] = [
    ("iommu0", []),
    ("iommu0", [begun("iotlb"), done("iotlb")]),
    ("iommu0", [begun("iotlb"), begun("iotlb"), done("iotlb"), done("iotlb")]),
    ("iommu0", [begun("iotlb"), begun("tlb"), done("iotlb"), done("tlb")]),
    ("vcpu0", [r.RequestPosted("TLB_FLUSH", False), r.RequestPosted("TLB_FLUSH", True)]),
]


@pytest.mark.parametrize(("agent", "records"), HALVES)
def test_what_is_begun_and_never_completed_is_named(
    agent: str, records: Sequence[r.Record]
) -> None:
    story = told(*records, at=agent)
    (violation,) = judged(story)
    assert violation.agent == agent
    assert violation.cache == ("iotlb" if agent == "iommu0" else "")
    assert judged(story, quiescent=False) == []


@pytest.mark.parametrize(("agent", "records"), WHOLE)
def test_what_is_completed_is_not(agent: str, records: Sequence[r.Record]) -> None:
    assert judged(told(*records, at=agent)) == []


def test_the_dead_owe_nothing() -> None:
    story = told(begun("iotlb"))
    assert judged(story, dead="iommu0") == []
    assert [v.agent for v in judged(story, dead="cpu0")] == ["iommu0"]
