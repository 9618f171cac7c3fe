"""Rules S9, S16 and Q3: what becomes of stores and of dirty bits, each from both sides."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from tests.oracle_story import (
    OTHER,
    PAGE,
    RO,
    RW,
    Story,
    broken,
    change,
    dropped,
    entry,
    identities,
    play,
    shuffled,
)

DIRTY = RW | ptes.DIRTY
SLOT = 5
SWAPPED = ptes.make(SLOT, ptes.SWAP)


def rules(s: Story) -> list[str]:
    return [rule for rule, _, _ in broken(s)]


def store(s: Story, op: str, fill: str = "f", frame: int = 3) -> None:
    """The device stores through a translation that the IOTLB has."""
    s.begin(op, "dev0", "Dma")
    s.go(op, "iommu0")
    s.use(op, "iommu0", fill, frame)
    s.end(op, "dev0", "Dma")


# ---- S9: copies --------------------------------------------------------------------------------


def migrating(*order: str, back_to: int = 4) -> Story:
    """The IOTLB has PAGE as ``f``, frame 3; cpu0 migrates it, and these come in this order."""
    waits = ptes.make(3, ptes.MIGRATION | ptes.WRITE | ptes.ACCESSED)
    steps: dict[str, Callable[[], object]] = {
        "flush": lambda: s.call("m/0", "iommu0", *dropped("iotlb", "f")),
        "copy": lambda: s.call("m/0", "memory", r.FrameCopied(3, 4)),
        "other copy": lambda: s.call("c/0", "memory", r.FrameCopied(3, 5)),
        "map": lambda: s.call("m/0", "memory", change(waits, entry(back_to))),
        "unmap": lambda: s.call("m/0", "memory", change(waits, 0)),
        "store": lambda: store(s, "d/1"),
        "free": lambda: s.call("m/0", "memory", r.FrameFreed(3)),
    }
    s = Story()
    s.map("t/0", entry(3))
    s.dma("d/0", entry(3), "f")
    s.begin("c/0", "cpu1", "Touch")
    s.begin("m/0", "cpu0", "MigratePages")
    s.call("m/0", "memory", change(entry(3), 0))
    s.call("m/0", "memory", change(0, waits))
    for what in order:
        steps[what]()
    return s


@pytest.mark.parametrize(
    "order", [("copy", "store", "flush", "map"), ("copy", "flush", "map", "store")]
)
def test_a_store_into_what_was_copied_is_lost(order: tuple[str, ...]) -> None:
    assert "S9" in rules(migrating(*order))


@pytest.mark.parametrize(
    "order",
    [
        ("store", "flush", "copy", "map"),  # it is copied
        ("flush", "copy", "map"),
        ("copy", "store", "flush", "unmap"),  # the page is gone, whoever stored
        ("other copy", "store", "flush", "copy", "map"),  # a copy for somebody else
    ],
)
def test_a_store_that_is_copied_or_that_nobody_is_owed_is_not(order: tuple[str, ...]) -> None:
    assert "S9" not in rules(migrating(*order))


def test_a_migration_that_gave_up_has_lost_nothing() -> None:
    assert "S9" not in rules(migrating("copy", "store", "map", back_to=3))


def test_a_store_after_the_frame_was_freed_is_another_breach() -> None:
    found = rules(migrating("copy", "map", "free", "store"))
    assert "S1" in found
    assert "S9" not in found


def test_a_store_during_a_copy_on_write_is_lost() -> None:
    """The entry is read-only by then, the device's copy of it is not."""
    s = Story()
    s.map("t/0", entry(3))
    s.dma("d/0", entry(3), "f")
    s.begin("p/0", "cpu0", "Mprotect")
    s.call("p/0", "memory", change(entry(3), entry(3, RO)))
    s.begin("c/0", "cpu1", "Touch")
    s.call("c/0", "memory", r.FrameCopied(3, 4))
    store(s, "d/1")
    s.call("c/0", "memory", change(entry(3, RO), 0))
    s.call("c/0", "memory", change(0, entry(4)))
    assert "S9" in rules(s)


# ---- S9: swap ----------------------------------------------------------------------------------


def swapping(*order: str) -> Story:
    """The same, and kswapd writes the page to a slot."""
    steps: dict[str, Callable[[], object]] = {
        "flush": lambda: s.call("k/0", "iommu0", *dropped("iotlb", "f")),
        "write": lambda: s.call("k/0", "memory", r.PageWritten(3, SLOT)),
        "free": lambda: s.call("k/0", "memory", r.FrameFreed(3)),
        "unmap": lambda: s.call("u/0", "memory", change(SWAPPED, 0)),
        "store": lambda: store(s, "d/1"),
    }
    s = Story()
    s.map("t/0", entry(3))
    s.dma("d/0", entry(3), "f")
    s.begin("u/0", "cpu1", "Munmap")
    s.begin("k/0", "cpu0", "Kswapd")
    s.call("k/0", "memory", change(entry(3), 0))
    s.call("k/0", "memory", change(0, SWAPPED))
    for what in order:
        steps[what]()
    return s


def test_a_store_after_the_page_was_written_to_swap_is_lost() -> None:
    assert "S9" in rules(swapping("write", "store", "flush", "free"))


@pytest.mark.parametrize(
    "order",
    [
        ("store", "flush", "write", "free"),
        ("write", "store", "flush", "write", "free"),  # written again
        ("write", "store", "unmap", "flush", "free"),
        ("write", "store", "flush"),  # still in the swap cache
    ],
)
def test_a_store_before_that_or_that_is_written_again_is_not(order: tuple[str, ...]) -> None:
    assert "S9" not in rules(swapping(*order))


# ---- S9: pages that are thrown away ------------------------------------------------------------


def given_up(*order: str) -> Story:
    """cpu1 gives PAGE up with ``MADV_FREE``, and cpu0 reclaims."""
    steps: dict[str, Callable[[], object]] = {
        "store": lambda: store(s, "d/1"),
        "hears": lambda: s.go("f/0", "dev0"),
        "discard": lambda: s.go("k/0", "cpu0", r.PageDiscarded(3, "mm0", PAGE)),
        "map": lambda: s.call("n/0", "memory", change(0, entry(4))),
        "given up again": lambda: s.go("g/0", "cpu0", r.PageLazyfree("mm0", PAGE)),
        "over": lambda: s.end("g/0", "cpu0", "MadviseFree"),
        "hears it": lambda: s.go("g/0", "dev0"),
    }
    s = Story()
    s.map("t/0", entry(3, DIRTY))
    s.dma("d/0", entry(3, DIRTY), "f")
    s.begin("n/0", "cpu0", "Touch")
    s.begin("f/0", "cpu1", "MadviseFree")
    s.call("f/0", "memory", change(entry(3, DIRTY), entry(3)))
    if "store" in order and order[0] == "during":
        store(s, "d/1")
        order = tuple(what for what in order if what not in ("during", "store"))
    s.begin("g/0", "cpu0", "MadviseFree")
    s.end("f/0", "cpu1", "MadviseFree")
    s.begin("k/0", "cpu0", "Kswapd")
    s.call("k/0", "memory", change(entry(3), 0))
    for what in order:
        steps[what]()
    return s


@pytest.mark.parametrize(
    "order",
    [
        ("hears", "store", "discard"),
        ("hears", "discard", "store"),
        ("given up again", "over", "hears it", "store", "discard"),
        ("hears", "store", "given up again", "over", "hears it", "store", "discard"),
    ],
)
def test_a_store_after_the_page_was_given_up_is_kept(order: tuple[str, ...]) -> None:
    assert "S9" in rules(given_up(*order))


@pytest.mark.parametrize(
    "order",
    [
        ("during", "store", "discard"),  # given up with the rest
        ("store", "discard"),  # nothing says that it came after
        ("hears", "store"),
        ("hears", "discard", "map", "store"),
        ("hears", "store", "given up again", "discard"),  # by whoever called it beside that
        ("hears", "given up again", "store", "discard"),  # through an entry that is dirty still
        ("hears", "given up again", "store", "over", "hears it", "discard"),
    ],
)
def test_a_store_that_may_be_given_up_as_well_is_not_missed(order: tuple[str, ...]) -> None:
    assert "S9" not in rules(given_up(*order))


# ---- S16 ---------------------------------------------------------------------------------------


def rewriting(*entries: int, kind: str = "Touch", address: int = PAGE) -> Story:
    """One operation sets the entry of PAGE to these, one after the other; the last at address."""
    s = Story()
    s.map("t/0", entries[0])
    s.begin("m/0", "cpu0", kind)
    for old, new in pairwise(entries[:-1]):
        s.call("m/0", "memory", change(old, new))
    last = entries[-2] if address == PAGE else 0
    s.call("m/0", "memory", change(last, entries[-1], address))
    s.end("m/0", "cpu0", kind)
    return s


WAITS = ptes.make(3, ptes.MIGRATION | ptes.WRITE | ptes.ACCESSED)


@pytest.mark.parametrize(
    "entries",
    [
        (entry(3, DIRTY), entry(3)),  # stored over what a walker has set
        (entry(3, DIRTY), 0, entry(3)),
        (entry(3, DIRTY), 0, WAITS),
        (entry(3, DIRTY), WAITS | ptes.DIRTY, entry(3)),
    ],
)
def test_a_dirty_bit_that_disappears(entries: tuple[int, ...]) -> None:
    assert rules(rewriting(*entries)) == ["S16"]


@pytest.mark.parametrize(
    "entries",
    [
        (entry(3), entry(3, DIRTY)),
        (entry(3, DIRTY), 0, entry(3, DIRTY)),
        (entry(3, DIRTY), 0, WAITS | ptes.DIRTY, entry(3, DIRTY)),
        (entry(3, DIRTY), 0, entry(4)),  # another page
        (entry(3, DIRTY), 0, SWAPPED),
        (entry(3), 0, entry(3)),
    ],
)
def test_a_dirty_bit_that_stays_with_its_page(entries: tuple[int, ...]) -> None:
    assert rules(rewriting(*entries)) == []


def test_a_move_takes_the_dirty_bit_along() -> None:
    lost = rewriting(entry(3, DIRTY), 0, entry(3), kind="MadviseDontneed", address=OTHER)
    kept = rewriting(entry(3, DIRTY), 0, entry(3, DIRTY), kind="MadviseDontneed", address=OTHER)
    assert rules(lost) == ["S16"]
    assert rules(kept) == []


@pytest.mark.parametrize(
    ("unmapped", "moved", "put", "lost"),
    [(DIRTY, RO, RO, False), (RO, DIRTY, DIRTY, False), (RO, DIRTY, RO, True)],
)
def test_a_page_of_a_file_that_moves_to_where_it_is_mapped_already(
    unmapped: int, moved: int, put: int, lost: bool
) -> None:
    s = Story()
    s.map("t/0", entry(3, unmapped))
    s.map("t/1", entry(3, moved), OTHER)
    s.begin("m/0", "cpu0", "Mremap")
    s.call("m/0", "memory", change(entry(3, unmapped), 0))
    s.call("m/0", "memory", change(entry(3, moved), 0, OTHER))
    s.call("m/0", "memory", change(0, entry(3, put)))
    s.end("m/0", "cpu0", "Mremap")
    assert rules(s) == (["S16"] if lost else [])


def test_who_gives_the_page_up_may_clean_it() -> None:
    assert rules(rewriting(entry(3, DIRTY), entry(3), kind="MadviseFree")) == []


def test_aging_adds_no_right() -> None:
    cold, cold_and_weak = RW & ~ptes.ACCESSED, RO & ~ptes.ACCESSED
    assert rules(rewriting(entry(3, RO), entry(3, cold))) == ["S16"]
    assert rules(rewriting(entry(3, RO), entry(3, cold_and_weak))) == []
    assert rules(rewriting(entry(3), entry(3, cold))) == []


def reclaiming(*last: r.Record, left: int, dirty: int = DIRTY) -> Story:
    s = Story()
    s.map("t/0", entry(3, dirty))
    s.begin("k/0", "cpu0", "Kswapd")
    s.call("k/0", "memory", change(entry(3, dirty), 0))
    if left:
        s.call("k/0", "memory", change(0, left))
    for record in last:
        s.call("k/0", "memory", record)
    s.end("k/0", "cpu0", "Kswapd")
    return s


def test_a_dirty_page_is_written_before_it_is_freed() -> None:
    freed, written = r.FrameFreed(3), r.PageWritten(3, SLOT)
    assert rules(reclaiming(freed, left=SWAPPED)) == ["S16"]
    assert rules(reclaiming(written, freed, left=SWAPPED)) == []


def test_only_a_clean_page_is_thrown_away() -> None:
    gone = (r.PageDiscarded(3, "mm0", PAGE), r.FrameFreed(3))
    assert rules(reclaiming(*gone, left=0)) == ["S16"]
    assert rules(reclaiming(*gone, left=0, dirty=RW)) == []


def test_a_page_nobody_asks_for_any_more_need_not_be_written() -> None:
    s = reclaiming(left=SWAPPED)
    s.begin("u/0", "cpu1", "Munmap")
    s.call("u/0", "memory", change(SWAPPED, 0))
    s.call("u/0", "memory", r.FrameFreed(3))
    assert rules(s) == []


# ---- Q3 ----------------------------------------------------------------------------------------


def replaying(*records: r.Record) -> list[str]:
    s = Story()
    s.begin("t/0", "cpu0", "Touch")
    for record in records:
        s.call("t/0", "memory", record)
    s.end("t/0", "cpu0", "Touch")
    return rules(s)


NEW = r.FrameAllocated(3, "anon")
SEVEN = r.Access(3, 0, True, 7)


@pytest.mark.parametrize(
    "records",
    [
        (NEW, r.Access(3, 0, False, 0)),
        (NEW, SEVEN, r.Access(3, 0, False, 7)),
        (NEW, SEVEN, r.Access(3, 1, False, 0)),
        (NEW, SEVEN, r.FrameCopied(3, 4), r.Access(4, 0, False, 7)),
        (NEW, SEVEN, r.PageWritten(3, 5), r.PageRead(4, 5), r.Access(4, 0, False, 7)),
        (NEW, SEVEN, r.FrameFreed(3), NEW, r.Access(3, 0, False, 0)),
        (r.Access(3, 0, False, 9),),  # there before the run
        (NEW, SEVEN, r.FrameFreed(3), r.Access(3, 0, False, 9)),  # anybody's
        (r.FrameAllocated(3, "table"), r.Access(3, 0, False, 9)),
    ],
)
def test_what_is_read_is_what_was_stored(records: tuple[r.Record, ...]) -> None:
    assert replaying(*records) == []


@pytest.mark.parametrize(
    "records",
    [
        (NEW, r.Access(3, 0, False, 7)),
        (NEW, SEVEN, r.Access(3, 0, False, 0)),
        (NEW, SEVEN, r.FrameCopied(3, 4), r.Access(4, 0, False, 0)),
        (NEW, SEVEN, r.PageWritten(3, 5), r.PageRead(4, 5), r.Access(4, 0, False, 8)),
    ],
)
def test_anything_else_was_lost_on_the_way(records: tuple[r.Record, ...]) -> None:
    assert replaying(*records) == ["Q3"]


# ---- order -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_independent_deliveries_does_not_matter(seed: int) -> None:
    for story in (
        migrating("copy", "store", "flush", "map"),
        swapping("write", "store", "flush", "free"),
        given_up("hears", "store", "discard"),
        given_up("store", "discard"),
        rewriting(entry(3, DIRTY), 0, entry(3)),
    ):
        expected = identities(play(story.steps).violations)
        assert identities(play(shuffled(story.steps, seed)).violations) == expected
