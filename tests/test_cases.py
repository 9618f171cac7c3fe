"""Small inputs on which good kernels were blamed, or bad ones passed over: ``tests/data/cases``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmurace.explorer.sample.explore import Options, explore
from mmurace.scenarios.catalogue import Race, load_race

CASES = Path(__file__).parent / "data" / "cases"
SCHEDULES = 100


def case(name: str) -> Race:
    """The race in a case's file."""
    return load_race(CASES / f"{name}.toml")


@pytest.mark.parametrize("kernel", ["v6.6.5", "v6.6.88-arm64"])
def test_a_narrow_invalidation_in_a_wide_one_is_not_blamed(kernel: str) -> None:
    found = explore(case("false-o-wide-invalidate").run(kernel), Options(schedules=SCHEDULES))
    assert found.verdict().outcome == "held", found.verdict().reasons


def test_a_refusal_while_the_flush_is_owed_is_no_livelock() -> None:
    """``stall`` lets a device be refused as often as it likes while reclaim has yet to flush."""
    spec = case("false-l1-flush-pending").run(seed=1)
    found = explore(spec, Options(schedules=250, strategy="stall"))
    assert found.violated == 0, found.violations
