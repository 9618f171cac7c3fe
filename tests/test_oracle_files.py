"""Rules S9, S16 and Q3 for pages of files: what each takes for lost, and what it does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmurace.oracle.violation import Violation
from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from tests.oracle_story import PAGE, RW, Story, change, dropped, entry, play, shuffled
from tests.test_oracle_content import store

FILE = "data"
DIRTY = RW | ptes.DIRTY


def found(story: Story, rule: str) -> list[Violation]:
    """What a story breaks of a rule; the same in any order of what is independent."""
    violations = [v for v in play(story.steps).violations if v.rule == rule]
    for seed in range(5):
        again = play(shuffled(story.steps, seed)).violations
        assert len([v for v in again if v.rule == rule]) == len(violations)
    return violations


def reclaiming(flags: int, *order: str) -> Story:
    """A device may store to page 0 of a file, in frame 3, which kswapd takes away."""
    steps: dict[str, Callable[[], object]] = {
        "store": lambda: store(s, "d/1"),
        "flush": lambda: s.call("k/0", "iommu0", *dropped("iotlb", "f")),
        "mark": lambda: s.call("k/0", "memory", r.FilePageDirtied(3)),
        "write": lambda: s.call("k/0", "memory", r.FilePageWritten(3, FILE, 0)),
        "drop": lambda: s.call("k/0", "memory", r.FilePageDropped(3, FILE, 0)),
        "free": lambda: s.call("k/0", "memory", r.FrameFreed(3)),
        "empty": lambda: s.call("u/0", "memory", r.FileSized(FILE, 0)),
        "longer": lambda: s.call("u/0", "memory", r.FileSized(FILE, 1 << 12)),
    }
    s = Story()
    s.begin("n/0", "cpu0", "Touch")
    s.call("n/0", "memory", r.FrameAllocated(3, "file"), r.FilePageRead(3, FILE, 0))
    s.map("t/0", entry(3, flags))
    s.begin("d/0", "dev0", "Dma")
    s.go("d/0", "iommu0")
    read = s.call("d/0", "memory", r.PteRead("mm0", PAGE, entry(3, flags)))
    s.also(r.Fill("iotlb", "mm0", PAGE, entry(3, flags), "f", read))
    s.end("d/0", "dev0", "Dma")
    s.begin("u/0", "cpu1", "Truncate")
    s.begin("k/0", "cpu0", "Kswapd")
    s.call("k/0", "memory", change(entry(3, flags), 0))
    for what in order:
        steps[what]()
    return s


@pytest.mark.parametrize(
    "order",
    [
        ("store", "drop"),
        ("write", "store", "flush", "drop", "free"),
        ("write", "drop", "store", "free"),
        ("empty", "longer", "store", "drop"),
    ],
)
def test_a_store_that_the_disk_does_not_have_is_lost(order: tuple[str, ...]) -> None:
    (violation,) = found(reclaiming(DIRTY, *order), "S9")
    assert (violation.agent, violation.cache, violation.frame) == ("iommu0", "iotlb", 3)
    assert FILE in violation.detail


@pytest.mark.parametrize(
    "order",
    [
        ("store", "flush", "write", "drop", "free"),
        ("write", "store", "flush", "write", "drop", "free"),  # written again
        ("write", "store"),  # it stays
        ("store", "empty", "drop"),  # nobody asks for it
        ("empty", "drop", "store"),
        ("write", "drop", "free", "store"),  # that is S1
    ],
)
def test_one_that_it_has_or_that_nobody_asks_for_is_not(order: tuple[str, ...]) -> None:
    assert found(reclaiming(DIRTY, *order), "S9") == []


@pytest.mark.parametrize("order", [("drop",), ("mark", "drop"), ("flush", "drop", "write")])
def test_a_page_whose_entry_was_dirty_must_be_written_first(order: tuple[str, ...]) -> None:
    (violation,) = found(reclaiming(DIRTY, *order), "S16")
    assert (violation.agent, violation.address, violation.frame) == ("cpu0", PAGE, 3)


@pytest.mark.parametrize(
    ("flags", "order"),
    [(DIRTY, ("write", "drop")), (RW, ("drop",)), (DIRTY, ("empty", "drop")), (DIRTY, ("mark",))],
)
def test_one_that_was_written_or_clean_or_cut_off_need_not(
    flags: int, order: tuple[str, ...]
) -> None:
    assert found(reclaiming(flags, *order), "S16") == []


@pytest.mark.parametrize(("dirty", "marked"), [(0, False), (0, True), (ptes.DIRTY, False)])
def test_a_page_that_is_put_back_clean_must_say_itself_that_it_is_dirty(
    dirty: int, marked: bool
) -> None:
    s = reclaiming(DIRTY, *(["mark"] if marked else []))
    s.call("k/0", "memory", change(0, entry(3, RW | dirty)))
    assert bool(found(s, "S16")) == (not marked and not dirty)


@pytest.mark.parametrize(("cut", "value"), [((), 7), (("empty", "longer"), 0)])
def test_what_is_read_again_is_what_was_written(cut: tuple[str, ...], value: int) -> None:
    for seen in (0, 7, 8):
        s = reclaiming(DIRTY, "store", "write", "drop", "free", *cut)
        read = r.FilePageRead(4, FILE, 0)
        s.call("n/0", "memory", r.FrameAllocated(4, "file"), read, r.Access(4, 0, False, seen))
        assert bool(found(s, "Q3")) == (seen != value)


def test_who_may_still_store_when_it_is_written_is_too_late() -> None:
    assert found(reclaiming(DIRTY, "write", "flush"), "O")
    assert not found(reclaiming(DIRTY, "flush", "write"), "O")
