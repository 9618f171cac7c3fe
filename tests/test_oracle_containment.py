"""Rules S5 and Q2: what is cached grants no more than the page table, each from both sides."""

from __future__ import annotations

import pytest

from mmurace.protocol import records as r
from mmurace.protocol.trace import Ending
from tests.oracle_story import (
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

S5 = ("S5", "iommu0", "iotlb")


def filling(read: int, filled: int) -> Story:
    """The IOTLB is filled with one thing from an entry that said another."""
    s = Story()
    s.map("t/0", read)
    s.begin("d/0", "dev0", "Dma")
    s.go("d/0", "iommu0")
    load = s.call("d/0", "memory", r.PteRead("mm0", PAGE, read))
    s.also(r.Fill("iotlb", "mm0", PAGE, filled, "f", load))
    s.end("d/0", "dev0", "Dma")
    return s


@pytest.mark.parametrize(
    ("read", "filled"), [(entry(3, RO), entry(3)), (entry(3), entry(4)), (entry(3, RO), entry(4))]
)
def test_a_copy_grants_no_more_than_its_source(read: int, filled: int) -> None:
    assert broken(filling(read, filled)) == [S5]


@pytest.mark.parametrize(
    ("read", "filled"), [(entry(3), entry(3)), (entry(3), entry(3, RO)), (entry(3, RO),) * 2]
)
def test_it_may_grant_less(read: int, filled: int) -> None:
    assert broken(filling(read, filled)) == []


@pytest.mark.parametrize(("granted", "breach"), [(entry(3), True), (entry(3, RO), False)])
def test_a_copy_of_a_copy_grants_no_more_than_that(granted: int, breach: bool) -> None:
    """The entry is writable, the unit's copy of it is not, so neither is the device's."""
    s = Story()
    s.map("t/0", entry(3))
    s.begin("d/0", "dev0", "Dma")
    s.go("d/0", "iommu0")
    load = s.call("d/0", "memory", r.PteRead("mm0", PAGE, entry(3)))
    s.also(r.Fill("iotlb", "mm0", PAGE, entry(3, RO), "f", load))
    s.go("d/0", "dev0", r.Fill("atc", "mm0", PAGE, granted, "a", "f"))
    s.end("d/0", "dev0", "Dma")
    assert broken(s) == ([("S5", "dev0", "atc")] if breach else [])


def using(*order: str) -> Story:
    """The IOTLB gets ``f``; then cpu0 takes the entry out and these come in this order."""
    s = Story()
    s.map("t/0", entry(3))
    s.dma("d/0", entry(3), "f")
    s.begin("m/0", "cpu0", "Munmap")
    s.call("m/0", "memory", change(entry(3), 0))
    for what in order:
        if what == "drop":
            s.call("m/0", "iommu0", *dropped("iotlb", "f"))
        elif what == "evict":
            s.call("m/0", "iommu0", r.Evict("iotlb", "f"))
        else:
            s.begin("d/1", "dev0", "Dma")
            s.go("d/1", "iommu0")
            s.use("d/1", "iommu0", "f", 3)
            s.end("d/1", "dev0", "Dma")
    s.end("m/0", "cpu0", "Munmap")
    return s


@pytest.mark.parametrize("drop", ["drop", "evict"])
def test_what_was_dropped_is_not_used_again(drop: str) -> None:
    assert broken(using(drop, "use")) == [S5]
    assert broken(using("use", drop)) == []


def test_it_may_be_evicted_by_its_own_fill() -> None:
    """A cache that is full evicts, maybe what it has just filled, and the walk still uses that."""
    s = Story()
    s.map("t/0", entry(3))
    s.dma("d/0", entry(3), "f")
    fill = next(
        i for i, step in enumerate(s.steps) if any(isinstance(x, r.Use) for x in step.records)
    )
    at = s.steps[fill]
    records = (*at.records[:-1], r.Evict("iotlb", "f"), at.records[-1])
    s.steps[fill] = type(at)(at.n, at.id, at.src, at.dst, at.kind, at.causes, records)
    assert broken(s) == []


def owing(*order: str, kind: str = "Kswapd", new: int = 0) -> Story:
    """An operation without a deadline of its own takes something away."""
    s = Story()
    s.map("t/0", entry(3))
    s.dma("d/0", entry(3), "f")
    s.begin("m/0", "cpu0", kind)
    s.call("m/0", "memory", change(entry(3), new))
    for what in order:
        if what == "drop":
            s.call("m/0", "iommu0", *dropped("iotlb", "f"))
        elif what == "back":
            s.call("m/0", "memory", change(new, entry(3)))
        else:
            s.end("m/0", "cpu0", kind)
    return s


@pytest.mark.parametrize("kind", ["Kswapd", "MigratePages", "Touch", "Dma"])
def test_an_operation_that_has_returned_owes_nothing(kind: str) -> None:
    assert broken(owing("end", "drop", kind=kind)) == [S5]
    assert broken(owing("drop", "end", kind=kind)) == []
    assert broken(owing("drop", kind=kind)) == []


def test_what_was_put_back_may_be_cached() -> None:
    assert broken(owing("back", "end", kind="MigratePages")) == []


def test_fewer_rights_are_owed_as_well() -> None:
    assert broken(owing("end", new=entry(3, RO), kind="Touch")) == [S5]


# ---- Q2 ----------------------------------------------------------------------------------------


def at_rest(s: Story, ending: Ending | None = None) -> list[tuple[str, str]]:
    played = play(s.steps) if ending is None else play(s.steps, (), ending)
    return [(v.rule, v.agent) for v in played.violations if v.rule == "Q2"]


def resting(*changes: r.Record, drop: bool = False) -> Story:
    """The IOTLB holds PAGE; nobody that the rules know owes its removal; all is over."""
    s = Story()
    s.map("t/0", entry(3))
    s.dma("d/0", entry(3), "f")
    for number, record in enumerate(changes):
        s.go(f"x/{number}", "memory", record)
    if drop:
        s.go("y/0", "iommu0", *dropped("iotlb", "f"))
    return s


def test_what_is_left_at_the_end_is_right() -> None:
    assert at_rest(resting()) == []
    assert at_rest(resting(change(entry(3), 0))) == [("Q2", "iommu0")]
    assert at_rest(resting(change(entry(3), entry(3, RO)))) == [("Q2", "iommu0")]
    assert at_rest(resting(r.FrameFreed(3))) == [("Q2", "iommu0")]


def test_what_is_gone_or_mapped_again_is_no_breach() -> None:
    assert at_rest(resting(change(entry(3), 0), drop=True)) == []
    assert at_rest(resting(change(entry(3), 0), change(0, entry(3)))) == []


def test_a_weaker_copy_is_no_breach() -> None:
    s = filling(entry(3, RO), entry(3, RO))
    s.go("x/0", "memory", change(entry(3, RO), entry(3)))
    assert at_rest(s) == []


def test_nothing_is_said_of_a_run_that_was_cut_short() -> None:
    assert at_rest(resting(change(entry(3), 0)), Ending(0, 0, False, ())) == []


def test_what_was_said_before_is_not_said_again() -> None:
    s = owing("end")
    assert at_rest(s) == []
    assert broken(s) == [S5]


@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_independent_deliveries_does_not_matter(seed: int) -> None:
    for story in (
        using("drop", "use"),
        owing("end", "drop"),
        owing("drop", "end"),
        resting(change(entry(3), 0)),
    ):
        expected = identities(play(story.steps).violations)
        assert identities(play(shuffled(story.steps, seed)).violations) == expected
