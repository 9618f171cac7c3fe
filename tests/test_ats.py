"""Devices with a translation cache of their own: nothing is flagged, whatever is late."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from mmurace.broker.chaos_config import load_rules
from mmurace.explorer.run.session import simulate
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.scenarios.runs import mixed_run

OPERATIONS = 400


@pytest.mark.parametrize("chaos", ["calm", "late-acks"])
@pytest.mark.parametrize(
    ("release", "arch"), [("v6.6.5", "x86"), ("v6.6.5", "arm64"), ("v6.2", "x86")]
)
def test_a_correct_kernel_is_not_flagged(release: str, arch: str, chaos: str) -> None:
    rules = load_rules(chaos)
    run = mixed_run(preset(release, arch), seed=11, chaos=rules, operations_max=OPERATIONS)
    units = tuple(msgspec.structs.replace(unit, ats=True) for unit in run.world.parts_of(Unit))
    world = run.world.with_parts(Unit, units)
    outcome = simulate(replace(run, world=world))
    assert outcome.status == "finished"
    assert not outcome.verdict.violations
    assert outcome.verdict.how.statistics["invalidated"]["atc"] > 0
    assert outcome.verdict.how.statistics["accesses"]["atc"] > 0
