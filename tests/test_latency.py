"""What an invalidation takes: measured in deliveries, and said."""

from __future__ import annotations

from dataclasses import replace

from mmurace.broker.chaos import parse_rules
from mmurace.explorer.run.latency import Latencies, Latency
from mmurace.explorer.run.session import simulate
from mmurace.nodes.kernel.variant import preset
from mmurace.protocol.records import InvalidateBegin
from mmurace.protocol.trace import TraceStep
from mmurace.report.machine import outcome_dict
from mmurace.report.terminal import summary
from mmurace.scenarios.runs import mixed_run


def measure(found: Latencies, number: int, took: int, cache: str = "iotlb") -> None:
    """One invalidation that was asked for in delivery ``number``."""
    record = InvalidateBegin(cache, "mm0", 0, 4096, ())
    id_ = f"cpu0/{number}.0"
    began = TraceStep(number + 1, id_, "cpu0", "iommu0", "IotlbInvalidate", (number,), (record,))
    found.step(began)
    found.began(began, record)
    done = TraceStep(number + took, id_ + "~", "iommu0", "cpu0", "IotlbInvalidate~", (), ())
    found.step(done)
    found.step(done)  # a repetition counts once


def test_ranks_are_of_deliveries_from_request_to_completion() -> None:
    found = Latencies()
    for took in range(1, 101):
        measure(found, took * 1000, took + 1)
    measure(found, 10, 123_456, "tlb")
    iotlb = tuple((took, 1) for took in range(2, 102))
    assert found.result() == {
        "iotlb": Latency(100, 51, 100, 101, iotlb),
        "tlb": Latency(1, 123_000, 123_000, 123_000, ((123_000, 1),)),
    }


def test_late_invalidations_show_in_the_summary() -> None:
    late = {"name": "late", "fault": "delay", "match": {"kind": "IotlbInvalidate"},
            "after": {"min": 40, "max": 40}}  # fmt: skip
    spec = mixed_run(preset("v6.6.5"), 3, operations_max=300)
    chaos = parse_rules({"schema": 1, "rule": [late]}, "test")
    plain, slow = simulate(spec), simulate(replace(spec, chaos=chaos))
    assert set(plain.latencies) >= {"tlb", "iotlb", "spte", "gtlb"}
    assert slow.latencies["iotlb"].p99 >= plain.latencies["iotlb"].p99 + 20
    iotlb = slow.latencies["iotlb"]
    assert f"iotlb {iotlb.p50}/{iotlb.p99}/{iotlb.max} ({iotlb.count})" in summary(slow)
    assert outcome_dict(slow)["latency"]["iotlb"]["p99"] == iotlb.p99
