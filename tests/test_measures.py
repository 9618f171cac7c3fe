"""What invalidations cost: measures P1 (too much), P2 (said twice), P3 (zapped for nothing)."""

from __future__ import annotations

from typing import Any

import pytest

from mmurace.explorer.run.session import simulate
from mmurace.scenarios.catalogue import find


def statistics(race: str, kernel: str) -> dict[str, Any]:
    return simulate(find(race).run(kernel, seed=1)).verdict.how.statistics


@pytest.mark.parametrize(
    ("kernel", "repeated"),
    [("always-notify", True), ("v4.15", False), ("v6.2-arm64", False), ("v6.6", False)],
)
def test_a_copy_on_write_tells_secondaries_once(kernel: str, repeated: bool) -> None:
    measured = statistics("E07", kernel)
    assert measured["secondary_invalidations"]["Touch"] >= 2
    assert bool(measured["secondary_repeated"].get("Touch")) is repeated


@pytest.mark.parametrize(
    ("kernel", "zapped"), [("generic-after-ptl", 2), ("event-filter", 0), ("v6.6-arm64", 0)]
)
def test_an_added_right_zaps_no_shadow_entry(kernel: str, zapped: int) -> None:
    assert statistics("E03", kernel)["zapped"].get("PROTECTION_UPGRADE", 0) == zapped


@pytest.mark.parametrize(
    ("kernel", "whole"), [("v6.6.5", True), ("v6.6.5-at-flush", True), ("v6.6-arm64", False)]
)
def test_a_batch_of_x86_tells_of_the_whole_mm(kernel: str, whole: bool) -> None:
    measured = statistics("E10", kernel)
    assert measured["secondary_whole"].get("Kswapd", 0) == whole
    assert measured["secondary_pages"].get("Kswapd", 0) == (not whole)
    assert measured["changed_pages"]["Kswapd"] == 1
