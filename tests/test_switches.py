"""Switches that contradict each other are refused by name."""

from __future__ import annotations

import pytest

from mmurace.nodes.kernel.variant import preset
from mmurace.protocol.errors import UserError

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
