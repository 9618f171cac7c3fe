"""Switches that contradict each other are refused by name."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from mmurace.explorer.explain.cures import other_values
from mmurace.explorer.run.session import simulate
from mmurace.nodes.kernel.variant import preset
from mmurace.protocol.errors import UserError
from mmurace.scenarios.catalogue import find

CASES = [
    ("v6.6.5", "x86", {"upgrade_notify": "none"}, "upgrade_notify = none"),
    ("v6.6.5", "arm64", {"upgrade_notify": "generic_after_ptl"}, "upgrade_notify"),
    ("v6.6.5", "x86", {"cow_range_only_end": True}, "cow_range_only_end"),
    ("v6.6.5", "x86", {"upgrade_tlbi_scope": "local"}, "without upgrade_needs_flush"),
    ("v6.6.5", "x86", {"secondary_before_dsb": "page"}, "without broadcast_tlbi"),
    ("v6.6.5", "x86", {"tlbie_scope": "by_cpumask"}, "tlbie_scope = by_cpumask without broadcast"),
    ("v6.6.5", "ppc", {"batch_mode": "tlbi_nosync"}, "contradicts tlbie_scope"),
    ("v6.6.5", "ppc", {"btm": True}, "btm contradicts tlbie_scope"),
    ("v6.2", "x86", {"kvm_retry": "none"}, "kvm_retry_hva contradicts kvm_retry = none"),
    ("v6.2", "x86", {"kvm_retry": "seq"}, "the range belongs to the count"),
    ("v6.2", "x86", {"kvm_retry": "sequence"}, "Invalid enum value 'sequence'"),
]


@pytest.mark.parametrize(("release", "arch", "switches", "said"), CASES)
def test_a_contradiction_is_refused(
    release: str, arch: str, switches: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        preset(release, arch, switches)


@pytest.mark.parametrize(
    ("race", "kernel"), [("E02", "v6.6-arm64"), ("E08", "v6.6"), ("E34", "v6.2")]
)
def test_every_value_of_every_switch_is_refused_or_runs(race: str, kernel: str) -> None:
    """On each machine; ``explain`` tries them all."""
    spec = find(race).run(kernel, seed=1)
    ran = 0
    for switch, value in other_values(spec.world.kernel):
        changed = spec.world.kernel.replace(**{switch: value})
        try:
            changed.validate(switch)
        except UserError:
            continue
        world = msgspec.structs.replace(spec.world, kernel=changed)
        assert simulate(replace(spec, world=world)).status == "finished", (switch, value)
        ran += 1
    assert ran > 50
