"""Small races about flushes: bad kernels are found out in a few schedules, good ones not blamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mmurace.broker.schedules import RandomWalk
from mmurace.explorer.run.session import simulate
from mmurace.explorer.sample.strategies import Paces
from mmurace.oracle.verdict import Verdict
from mmurace.scenarios.catalogue import KernelCase, Race, find

DATA = Path(__file__).parent / "data" / "cases"
NAMES = (
    "flush-ceiling", "flush-ceiling-arm64", "smmu-command-storm", "tlb-end-vma",
    "tlb-end-vma-batch", "mkclean-quiet-end",
)  # fmt: skip
SCHEDULES_GOOD, SCHEDULES_BAD = 40, 400

CASES = [
    pytest.param(race, case, id=f"{name}-{case.name}")
    for name in NAMES
    for race in (find(str(DATA / f"{name}.toml")),)
    for case in race.kernels
]


def verdicts(race: Race, kernel: str, count: int) -> Iterator[Verdict]:
    """Of so many schedules; half have nodes of unequal pace."""
    for seed in range(count):
        schedule = Paces(seed) if seed % 2 else RandomWalk(seed)
        yield simulate(race.run(kernel, seed), schedule=schedule).verdict


@pytest.mark.parametrize(("race", "case"), CASES)
def test_bad_and_good_kernels(race: Race, case: KernelCase) -> None:
    if case.expect.verdict == "violated":
        found = verdicts(race, case.name, SCHEDULES_BAD)
        assert any(v.rule == case.expect.rule for verdict in found for v in verdict.violations)
    else:
        found_all = list(verdicts(race, case.name, SCHEDULES_GOOD))
        assert not [v for verdict in found_all for v in verdict.violations]
        assert any(verdict.outcome == "held" for verdict in found_all)
