"""Variants of one race that a verdict alone does not tell apart: who discharged what, and where."""

from __future__ import annotations

import pytest

from mmurace.explorer.run.session import simulate
from mmurace.scenarios.catalogue import Race, find

END, GATHER = "iotlb by invalidate_range_end", "iotlb by invalidate_range"
FLUSH = "iotlb by arch_invalidate_secondary_tlbs"


@pytest.mark.parametrize(
    ("kernel", "by"),
    [("v5.8", END), ("v6.2", END), ("v4.15-quiet-end", GATHER),
     ("v6.2-quiet-end-whole-mm", GATHER), ("v6.6.5", FLUSH), ("v6.6-arm64", FLUSH)],
)  # fmt: skip
def test_a_nested_gather_that_says_nothing_is_masked_by_the_end(kernel: str, by: str) -> None:
    verdict = simulate(find("E05").run(kernel, seed=1)).verdict
    assert verdict.outcome == "held"
    assert set(verdict.how.statistics["discharged"]) == {by}


def test_without_that_end_nobody_discharges_it_before_the_free() -> None:
    verdict = simulate(find("E05").run("v6.2-quiet-end", seed=1)).verdict
    assert verdict.outcome == "violated"
    assert END not in verdict.how.statistics["discharged"]


@pytest.mark.parametrize("race", ["E04p", "E09c", "E10d", "E11c", "E12r", "E20p"])
def test_a_variant_breaks_what_its_race_does_not(race: str) -> None:
    """By rule, agent, cache or object, or else by a window that only the variant enters."""
    variant, race_itself = find(race), find(race[:3])
    told, other = broken(variant), broken(race_itself)
    windows = {repr(c) for c in variant.sometimes} - {repr(c) for c in race_itself.sometimes}
    assert not told & other or windows


def broken(race: Race) -> set[tuple[str, str, str, str, int]]:
    """What the bad kernels of a race are expected to break."""
    expected = [c.expect for c in race.kernels if c.expect.verdict == "violated"]
    return {(e.rule, e.agent, e.cache, e.mm, e.address) for e in expected}
