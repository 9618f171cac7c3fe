"""Rules O, S6 and S9 where frames are used again: whose place a slot takes, whom a write binds."""

from __future__ import annotations

import pytest

from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from tests.oracle_story import OTHER, PAGE, RO, RW, Story, broken, change, dropped, entry

DIRTY = RW | ptes.DIRTY
SLOT = ptes.make(1, ptes.SWAP)


def child(old: int, new: int) -> r.PteChange:
    """A change of the same page's entry in another process."""
    return r.PteChange("mm1", PAGE, 0, 5, 0, old, new)


# ---- S6: whose place a swap entry takes ----------------------------------------------------------


def shared(frame: int) -> Story:
    """An anonymous page that parent and child map, read-only."""
    s = Story()
    s.begin("t/0", "cpu1", "Touch")
    s.call("t/0", "memory", r.FrameAllocated(frame, "anon"))
    s.call("t/0", "memory", change(0, entry(frame, RO)))
    s.call("t/0", "memory", child(0, entry(frame, RO)))
    s.end("t/0", "cpu1", "Touch")
    return s


def swap_out(s: Story, op: str, frame: int, address: int) -> None:
    """Reclaim puts the slot in the place of a mapping."""
    s.begin(op, "cpu0", "Kswapd")
    s.call(op, "memory", change(entry(frame, RO), 0, address))
    s.call(op, "memory", change(0, SLOT, address))


def child_writes(s: Story, frame: int) -> None:
    """The child's entry becomes writable."""
    s.begin("c/0", "cpu1", "Touch")
    s.call("c/0", "memory", child(entry(frame, RO), entry(frame)))
    s.end("c/0", "cpu1", "Touch")


def test_a_page_is_reused_whose_other_entry_is_its_slot() -> None:
    s = shared(3)
    swap_out(s, "k/0", 3, PAGE)
    child_writes(s, 3)
    s.end("k/0", "cpu0", "Kswapd")
    assert ("S6", "cpu1", "") in broken(s)


def test_a_slot_that_is_moved_takes_the_place_of_nothing_that_was_unmapped_there() -> None:
    """``mremap`` unmaps a page of frame 3 and moves to its place a slot with the content of 4."""
    s = shared(3)
    s.begin("t/1", "cpu1", "Touch")
    s.call("t/1", "memory", r.FrameAllocated(4, "anon"))
    s.call("t/1", "memory", change(0, entry(4, RO), OTHER))
    s.end("t/1", "cpu1", "Touch")
    swap_out(s, "k/0", 4, OTHER)
    s.call("k/0", "memory", r.FrameFreed(4))
    s.end("k/0", "cpu0", "Kswapd")
    s.begin("m/0", "cpu0", "Mremap")
    s.call("m/0", "memory", change(entry(3, RO), 0))
    s.call("m/0", "memory", change(SLOT, 0, OTHER))
    s.call("m/0", "memory", change(0, SLOT))
    s.end("m/0", "cpu0", "Mremap")
    child_writes(s, 3)
    assert "S6" not in {rule for rule, _, _ in broken(s)}


# ---- O: whom a page that is written binds --------------------------------------------------------


def written(s: Story, old: int, frame: int) -> None:
    """Reclaim takes the entry away and writes the page, before it flushes anything."""
    s.begin("k/1", "cpu0", "Kswapd")
    s.call("k/1", "memory", change(old, 0))
    s.call("k/1", "memory", r.PageWritten(frame, 1))


def freed(s: Story, frame: int, flush: bool) -> Story:
    """It flushes, or does not, and frees the page."""
    if flush:
        s.call("k/1", "iommu0", *dropped("iotlb", "f"))
    s.call("k/1", "memory", r.FrameFreed(frame))
    s.end("k/1", "cpu0", "Kswapd")
    return s


@pytest.mark.parametrize(("held", "rules"), [(DIRTY, ["O"]), (RW, []), (RO, [])])
def test_only_who_can_store_must_have_lost_a_page_that_is_written(
    held: int, rules: list[str]
) -> None:
    """A copy that is writable and clean is not enough: the entry is looked for first.

    The entry itself is read-only by then, as in the middle of a fork.
    """
    s = Story()
    s.map("t/0", entry(3, held))
    s.dma("d/0", entry(3, held), "f", write=False)
    s.begin("m/0", "cpu1", "Fork")
    if held != RO:
        s.call("m/0", "memory", change(entry(3, held), entry(3, held & ~ptes.WRITE)))
    written(s, entry(3, held & ~ptes.WRITE), 3)
    assert [rule for rule, _, _ in broken(freed(s, 3, flush=True))] == rules


@pytest.mark.parametrize("flush", [True, False])
def test_a_page_that_is_written_says_nothing_of_one_that_was_there_before(flush: bool) -> None:
    """The copy is of frame 3, whose flush somebody else owes; frame 4 is written and freed."""
    s = Story()
    s.map("t/0", entry(3, DIRTY))
    s.dma("d/0", entry(3, DIRTY), "f")
    s.begin("k/0", "cpu1", "Kswapd")
    s.call("k/0", "memory", change(entry(3, DIRTY), 0))
    s.map("t/1", entry(4, RO))
    written(s, entry(4, RO), 4)
    freed(s, 4, flush=False)
    if flush:
        s.call("k/0", "iommu0", *dropped("iotlb", "f"))
    s.call("k/0", "memory", r.FrameFreed(3))
    s.end("k/0", "cpu1", "Kswapd")
    found = [rule for rule, _, _ in broken(s)]
    assert found == ([] if flush else ["O"])


# ---- S9: a copy that was thrown away -------------------------------------------------------------


@pytest.mark.parametrize(("thrown_away", "rules"), [(True, []), (False, ["S9"])])
def test_a_copy_that_was_thrown_away_takes_nobodys_place(
    thrown_away: bool, rules: list[str]
) -> None:
    """The page is stored to and swapped out; its frame of later was once to be a copy of it."""
    s = Story()
    s.map("t/0", entry(3, DIRTY))
    s.dma("d/0", entry(3, DIRTY), "f")
    s.begin("w/0", "cpu1", "Touch")
    s.call("w/0", "memory", r.FrameAllocated(4, "anon"))
    s.call("w/0", "memory", r.FrameCopied(3, 4))
    s.begin("d/1", "dev0", "Dma")
    s.go("d/1", "iommu0")
    s.use("d/1", "iommu0", "f", 3)
    s.end("d/1", "dev0", "Dma")
    if thrown_away:
        s.call("w/0", "memory", r.FrameFreed(4))
        s.call("w/0", "memory", r.FrameAllocated(4, "anon"))
    s.begin("k/0", "cpu0", "Munmap")
    s.call("k/0", "memory", change(entry(3, DIRTY), 0))
    s.call("k/0", "iommu0", *dropped("iotlb", "f"))
    s.call("w/0", "memory", change(0, entry(4, DIRTY)))
    s.end("w/0", "cpu1", "Touch")
    assert [rule for rule, _, _ in broken(s)] == rules
