"""Who may acknowledge what when two invalidations overlap (docs/model.md), cache by cache.

A wide invalidation drops an entry and waits for an access to another page.  A narrow one of the
entry's page finds nothing left to drop, and whoever asked for it may free the page.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmurace.nodes.build import build
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import (
    AtsTranslate,
    Dma,
    DmaAccess,
    InvalidateRequest,
    IotlbInvalidate,
    Translation,
)
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.ocxl.messages import (
    AfuTouch,
    SpaLoad,
)
from mmurace.nodes.secondaries.ocxl.part import Link
from mmurace.nodes.world import World
from mmurace.protocol import records as r
from mmurace.protocol.limits import ULONG_MAX
from mmurace.protocol.messages.base import Message
from mmurace.protocol.messages.book3s64 import MmName, ProcessTableLoad, Tlbie
from mmurace.protocol.messages.memory import (
    Count,
    FrameRead,
    PteLoad,
    PteValue,
    PteWalk,
    TableWalk,
    Word,
)
from mmurace.protocol.messages.processor import FlushTlbIpi, Tlbi
from mmurace.protocol.messages.program import (
    Touch,
)
from tests.oracle_story import PAGE, Story, broken, change, entry, identities, play, shuffled
from tests.test_nodes import LEAF, TABLE, Hand, replies
from tests.worlds import MM, page, small_world

WIDE, NARROW, OTHER = (0, ULONG_MAX), (PAGE, PAGE + 4096), (PAGE + 4096, PAGE + 8192)
CACHES = [("tlb", "cpu1", "mm0"), ("iotlb", "iommu0", "mm0"), ("atc", "dev0", "mm0")]


# ---- what agents do ------------------------------------------------------------------------------


def cpu(arch: str) -> Hand:
    """Reads page 1, and is told by memory where it is."""
    hand = Hand(build("cpu0", small_world(arch=arch), 0))
    hand.driver.node.active_mms.append(MM)  # type: ignore[attr-defined]  # in the cpumask already
    hand.request(Touch(MM, page(1), False), "c/0")
    hand.answer(PteLoad, PteValue(TABLE))
    hand.answer(PteWalk, PteValue(LEAF))
    return hand


def iommu(arch: str) -> Hand:
    """The same for a device."""
    hand = Hand(build("iommu0", small_world(arch=arch), 0))
    hand.request(DmaAccess(MM, page(1), False, 0), "d/0.0")
    hand.answer(PteLoad, PteValue(TABLE))
    hand.answer(PteWalk, PteValue(LEAF))
    return hand


def device(arch: str) -> Hand:
    """A device with an ATC of its own."""
    world = World(
        preset("v6.6.5", arch), parts=(Unit("iommu0", ("device0",), (MM,), "cpu1", ats=True),)
    )
    hand = Hand(build("device0", world, 0))
    hand.request(Dma(MM, page(1), False), "d/0")
    hand.answer(AtsTranslate, Translation(LEAF, "iotlb:x"))
    return hand


def link(_: str) -> Hand:
    """An OpenCAPI link that works for a process."""
    world = World(preset("v6.6.5", "ppc"), parts=(Link("link0", (MM,), "cpu1"),))
    hand = Hand(build("link0", world, 0))
    hand.request(AfuTouch(MM, page(1), False), "a/0")
    hand.answer(SpaLoad, Count(1))
    hand.answer(ProcessTableLoad, MmName(MM))
    hand.answer(PteLoad, PteValue(TABLE))
    hand.answer(PteWalk, PteValue(LEAF))
    return hand


AGENTS: list[tuple[Callable[[str], Hand], Callable[[int, int], Message]]] = [
    (cpu, lambda start, end: FlushTlbIpi(MM, start, end)),
    (cpu, lambda start, end: Tlbi(MM, start, end)),
    (iommu, lambda start, end: IotlbInvalidate(MM, start, end)),
    (iommu, lambda start, end: Tlbi(MM, start, end)),
    (device, lambda start, end: InvalidateRequest(MM, start, end)),
    (link, lambda start, end: Tlbie(1, start, end)),
]


@pytest.mark.parametrize("arch", ["x86", "arm64"])
@pytest.mark.parametrize(("agent", "invalidation"), AGENTS)
def test_each_is_acknowledged_by_itself(
    agent: Callable[[str], Hand], invalidation: Callable[[int, int], Message], arch: str
) -> None:
    """What is in use holds up whoever asks for it, dropped or not, and nobody else."""
    hand = agent(arch)
    assert replies(hand.request(invalidation(*WIDE), "w/0.0")) == []
    assert replies(hand.request(invalidation(page(1), page(2)), "n/0.0")) == []
    assert replies(hand.request(invalidation(page(2), page(3)), "n/1.0")) == ["n/1.0~"]
    assert {"w/0.0~", "n/0.0~"} <= set(replies(hand.answer(FrameRead, Word(0))))


def walking(arch: str) -> Hand:
    """An IOMMU on its way through a table that it has kept: the leaf is not answered yet."""
    unit = Unit("iommu0", ("device0",), (MM,), "cpu1", pwc=True)
    hand = Hand(build("iommu0", World(preset("v6.6.5", arch), parts=(unit,)), 0))
    hand.request(DmaAccess(MM, page(1), False, 0), "d/0.0")
    hand.answer(TableWalk, PteValue(TABLE))
    return hand


@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_a_table_that_is_dropped_holds_up_whoever_may_free_it(arch: str) -> None:
    """The walk is of another page than the invalidation, and goes through the table it drops."""
    hand = walking(arch)
    assert replies(hand.request(IotlbInvalidate(MM, *WIDE), "w/0.0")) == []
    assert replies(hand.request(IotlbInvalidate(MM, page(3), page(4)), "n/0.0")) == []
    other = IotlbInvalidate(MM, page(8), page(9))
    assert replies(hand.request(other, "n/1.0")) == ["n/1.0~"]
    assert {"w/0.0~", "n/0.0~"} <= set(replies(hand.answer(PteWalk, PteValue(LEAF))))
    assert hand.seen(r.Fill) == []


def test_an_invalidation_of_leaves_waits_for_no_walk_of_another_page() -> None:
    command = IotlbInvalidate(MM, page(3), page(4), leaf=True)
    assert replies(walking("arm64").request(command, "n/0.0")) == ["n/0.0~"]


# ---- what the oracle makes of it -----------------------------------------------------------------


def invalidated(cache: str, agent: str, tag: str, narrow: tuple[int, int]) -> Story:
    """One that is wide drops ``f`` and is not done when a narrow one is; then the frame is free."""
    s = Story()
    s.map("t/0", entry(3))
    if cache == "iotlb":
        s.dma("d/0", entry(3), "f")
    else:
        s.begin("d/0", agent, "Touch")
        read = s.call("d/0", "memory", r.PteRead("mm0", PAGE, entry(3)))
        s.also(r.Fill(cache, tag, PAGE, entry(3), "f", read))
        s.end("d/0", agent, "Touch")
    s.begin("m/0", "cpu0", "MadviseDontneed")
    s.call("m/0", "memory", change(entry(3), 0))
    s.begin("w/0", "cpu1", "Fork")
    s.go("w/0", agent, r.InvalidateBegin(cache, tag, *WIDE, ("f",)))
    none: tuple[str, ...] = ()
    begin, done = r.InvalidateBegin(cache, tag, *narrow, none), r.InvalidateDone
    s.call("m/0", agent, begin, done(cache, tag, *narrow, none))
    s.call("m/0", "memory", r.FrameFreed(3))
    s.go("w/0", agent, done(cache, tag, *WIDE, ("f",)))
    return s


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("cache", "agent", "tag"), CACHES)
def test_whoever_dropped_it_the_first_acknowledgement_counts(
    cache: str, agent: str, tag: str, seed: int
) -> None:
    story = invalidated(cache, agent, tag, NARROW)
    assert broken(story) == []
    again = play(shuffled(story.steps, seed)).violations
    assert [v for v in again if v.rule == "O"] == []


@pytest.mark.parametrize(("cache", "agent", "tag"), CACHES)
def test_one_of_another_page_says_nothing_of_it(cache: str, agent: str, tag: str) -> None:
    assert ("O", agent, cache) in broken(invalidated(cache, agent, tag, OTHER))


def test_nor_does_one_of_another_mm() -> None:
    story = invalidated("iotlb", "iommu0", "mm0", NARROW)
    steps = [
        type(s)(s.n, s.id, s.src, s.dst, s.kind, s.causes, tuple(map(_of_another_mm, s.records)))
        if s.id.startswith("m/0") else s
        for s in story.steps
    ]  # fmt: skip
    found = [v for v in play(steps).violations if v.rule == "O"]
    assert identities(found) != []


def _of_another_mm(record: r.Record) -> r.Record:
    if isinstance(record, r.InvalidateBegin | r.InvalidateDone):
        return type(record)(record.cache, "mm1", record.start, record.end, record.fills)
    return record


def table_freed(narrow: tuple[int, int]) -> Story:
    """The same for a table that a paging-structure cache leads to."""
    s = Story()
    s.begin("d/0", "dev0", "Dma")
    s.go("d/0", "iommu0")
    load = s.call("d/0", "memory", r.TableRead(7))
    s.also(r.TableCached("mm0", PAGE, 0, 7, "p", load))
    s.end("d/0", "dev0", "Dma")
    s.begin("m/0", "cpu0", "Munmap")
    s.begin("w/0", "cpu1", "Fork")
    s.go("w/0", "iommu0", r.InvalidateBegin("pwc", "mm0", *WIDE, ("p",)))
    s.call("m/0", "iommu0", r.InvalidateDone("pwc", "mm0", *narrow, ()))
    s.call("m/0", "memory", r.FrameFreed(7))
    s.go("w/0", "iommu0", r.InvalidateDone("pwc", "mm0", *WIDE, ("p",)))
    return s


def test_the_same_of_tables() -> None:
    assert broken(table_freed(NARROW)) == []
    assert broken(table_freed((0x18000, 0x19000))) == [("O", "iommu0", "pwc")]
