"""Rule S15: who has a page for itself, and who reaches it before, meanwhile and after."""

from __future__ import annotations

import pytest

from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from tests.oracle_story import PAGE, Story, change, dropped, entry, play, shuffled

ALONE = entry(3, ptes.DEVICE_EXCLUSIVE | ptes.WRITE | ptes.ACCESSED)


def touched(s: Story, op: str, fill: str) -> None:
    """A processor walks to the page, and stores to it."""
    load = s.call(op, "memory", r.PteRead("mm0", PAGE, entry(3)))
    s.also(r.Fill("tlb", "mm0", PAGE, entry(3), fill, load))
    s.use(op, "cpu0", fill, 3)


def story(*, flushed: bool, stopped: bool) -> Story:
    """A page becomes exclusive, and ordinary again; ``flushed``, ``stopped``: and others know."""
    s = Story()
    s.map("t/0", entry(3))
    s.begin("c/0", "cpu0", "Touch")
    touched(s, "c/0", "old")
    s.end("c/0", "cpu0", "Touch")
    s.begin("d/0", "dev0", "Dma")
    s.go("d/0", "iommu0")
    if flushed:
        s.call("d/0", "cpu0", *dropped("tlb", "old"))
    made = s.call("d/0", "memory", change(entry(3), ALONE))
    s.also(r.Fill("iotlb", "mm0", PAGE, entry(3), "own", made))
    s.use("d/0", "iommu0", "own", 3)
    s.end("d/0", "dev0", "Dma")
    s.begin("c/1", "cpu0", "Touch")
    if not flushed:
        s.use("c/1", "cpu0", "old", 3)
    if stopped:
        s.call("c/1", "iommu0", *dropped("iotlb", "own"))
    s.call("c/1", "memory", change(ALONE, entry(3)))
    touched(s, "c/1", "new")
    s.end("c/1", "cpu0", "Touch")
    return s


@pytest.mark.parametrize(
    ("flushed", "stopped", "by"),
    [(True, True, []), (True, False, ["iommu0"]), (False, True, ["cpu0"])],
)
@pytest.mark.parametrize("seed", range(5))
def test_nobody_reaches_a_page_that_another_has_for_itself(
    flushed: bool, stopped: bool, by: list[str], seed: int
) -> None:
    """Nor does it matter in which order it was recorded what two did that knew nothing of it."""
    steps = shuffled(story(flushed=flushed, stopped=stopped).steps, seed)
    found = [v for v in play(steps).violations if v.rule == "S15"]
    assert [violation.agent for violation in found] == by
