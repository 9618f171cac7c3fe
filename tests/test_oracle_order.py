"""A verdict is the same for every linearisation of a trace; numbers are not time."""

from __future__ import annotations

import pytest

from mmurace.oracle.state.order import Order
from tests.oracle_story import RO, Story, change, dropped, entry, identities, play, shuffled
from tests.test_oracle import (
    FREED,
    access_after_return,
    apic,
    cached,
    notify,
    raced_walk,
    shadowed,
    unmap,
)


def test_rows_know_what_happened_before() -> None:
    order = Order(("memory", "cpu0", "cpu1"))
    assert order.deliver(1, 1, ()) == (0, 1, 0)
    assert order.deliver(2, 2, ()) == (0, 0, 2)
    assert order.deliver(3, 0, (1,)) == (3, 1, 0)
    assert order.deliver(4, 0, (2,)) == (4, 1, 2)
    assert order.deliver(5, 1, (3,)) == (3, 5, 0), "it does not know what came from cpu1"
    assert order.deliver(6, 2, (4, 1)) == (4, 1, 6)


def stories() -> dict[str, Story]:
    """Stories with and without breaches, and with things that nothing orders."""
    found = {
        "raced walk": raced_walk(install=True),
        "apic": apic("write", "enter", "change", "end"),
    }
    for name, order in (("good", "flush free"), ("bad", "free access flush"), ("end", "free")):
        found[name] = cached()
        unmap(found[name], *order.split())
    found["loose flush"] = cached()
    s = found["loose flush"]
    s.begin("m/0", "cpu0", "Munmap")
    s.call("m/0", "memory", change(entry(3), 0))
    s.begin("x/0", "cpu1", "Touch")
    s.go("x/0", "iommu0", *dropped("iotlb", "f"))
    s.call("m/0", "memory", FREED)
    s.end("m/0", "cpu0", "Munmap")
    found["s3"] = access_after_return(written=True, remap=entry(3, RO))
    for name, order in (("shadow", "zap change end"), ("late shadow", "change end zap flush")):
        found[name] = shadowed()
        notify(found[name], *order.split())
    return found


@pytest.mark.parametrize("name", stories())
def test_every_linearisation_has_the_same_violations(name: str) -> None:
    steps = stories()[name].steps
    wanted = identities(play(steps).violations)
    orders = set()
    for seed in range(60):
        other = shuffled(steps, seed)
        orders.add(tuple(step.id for step in other))
        assert identities(play(other).violations) == wanted, seed
    assert name in ("apic",) or len(orders) > 1
