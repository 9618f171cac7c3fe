"""Interleavings without what says nothing new, and names for every message."""

from __future__ import annotations

import re

from mmurace.explorer.explain.interleaving import Row
from mmurace.protocol.messages.base import kinds
from mmurace.protocol.told import DECISIVE, HELPFUL
from mmurace.report.condense import condensed
from mmurace.report.steps import function_text, text_of


def a_row(party: str, text: str, weight: int = HELPFUL) -> Row:
    """A row that is told by a function's name."""
    return Row(1, party, text, "cpu0/1", "Munmap", {}, weight)


def told(rows: list[Row]) -> list[str]:
    """What is left of them."""
    return [f"{row.party} {text_of(row)}" for row in condensed(rows)]


def test_a_loop_of_two_parties_is_told_once() -> None:
    turn = [a_row("iommu0", "PteWalk"), a_row("cpu1", "PtlLock"), a_row("cpu1", "PtlUnlock")]
    rows = [a_row("cpu1", "PagePut"), a_row("cpu1", "PtlUnlock"), *turn * 9, a_row("cpu0", "Mmap")]
    rows[0].values["frame"] = 3
    for row in rows:
        if row.kind == "PteWalk":
            row.values["reply"] = {"pte": 0}
    assert told(rows) == [
        "cpu1 put_page: frame 0x3", "cpu1 unlock PTL", "iommu0 hardware walk: none",
        "cpu1 lock PTL", "cpu1 unlock PTL", "iommu0 ... 8 more times", "cpu0 mmap_region",
    ]  # fmt: skip


def test_two_rounds_are_told_in_full_and_what_decides_always() -> None:
    assert len(told([a_row("cpu0", "PtlLock"), a_row("cpu0", "PtlUnlock")] * 2)) == 4
    rows = [a_row("cpu0", "PtlLock", DECISIVE) for _ in range(9)]
    for n, row in enumerate(rows):
        row.n = n
    assert len(told(rows)) == 9


def test_rounds_that_differ_in_numbers_are_one_loop_if_many() -> None:
    def commands(count: int) -> list[Row]:
        rows = [a_row("iommu0", "IotlbInvalidate") for _ in range(count)]
        for at, row in enumerate(rows):
            row.values |= {"start": at << 12, "end": at + 1 << 12}
        return rows

    assert len(told(commands(7))) == 7
    assert told(commands(64)) == [
        "iommu0 IOTLB invalidation [0x0, 0x1000)", "iommu0 ... 63 more times",
    ]  # fmt: skip


def test_a_callback_in_which_nothing_happened_does_not_return() -> None:
    values = {"callback": "invalidate_range", "subscriber": "iommu0", "start": 0, "end": 1 << 12}
    begin = Row(1, "cpu0", "NotifierCall", "cpu0/1", "", values | {"phase": "begin"})
    end = Row(2, "cpu0", "NotifierCall", "cpu0/1", "", values | {"phase": "end"})
    between = a_row("iommu0", "IotlbInvalidate")
    between.values |= {"start": 0, "end": (1 << 64) - 1}
    assert told([begin, end]) == ["cpu0 invalidate_range(iommu0, 0x0, 0x1000)"]
    assert told([begin, between, end])[1:] == [
        "iommu0 IOTLB invalidation [0x0, ~0)", "cpu0 invalidate_range returns",
    ]  # fmt: skip


def test_every_message_has_a_name_of_the_kernel_or_of_the_hardware() -> None:
    for kind in kinds():
        named = function_text(kind, "Munmap")
        assert named
        assert named == named.strip()
        macro = named in ("PageAnonExclusive", "SetPageAnonExclusive")  # linux/page-flags.h
        assert macro or not re.search(r"[a-z][A-Z]", named), f"{kind} is told as {named}"
