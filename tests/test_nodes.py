"""What hardware guarantees, shown on single nodes driven by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mmurace.nodes.build import build
from mmurace.nodes.driver import Driver
from mmurace.nodes.secondaries.iommu_sva.messages import DmaAccess, IotlbInvalidate, PageRequest
from mmurace.nodes.secondaries.kvm.messages import GuestTouch, KvmRequest, SpteLoad, SpteValue
from mmurace.protocol import pte as ptes
from mmurace.protocol.envelope import Envelope, Handled, reply_id
from mmurace.protocol.messages.base import Message
from mmurace.protocol.messages.memory import Flag, FrameRead, PteLoad, PteValue, PteWalk, Word
from mmurace.protocol.messages.processor import (
    FlushTlbIpi,
)
from mmurace.protocol.messages.program import (
    Touch,
)
from mmurace.protocol.records import Fill, InvalidateDone, WalkDiscarded
from tests.worlds import MM, page, small_world

TABLE = ptes.make(5, ptes.PRESENT | ptes.WRITE)
LEAF = ptes.make(9, ptes.PRESENT | ptes.WRITE | ptes.ACCESSED)


class Hand:
    """Delivers to one node and answers what it asks."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.n = driver, 0
        self.sent: list[Envelope] = []
        self.records: list[Any] = []

    def request(self, message: Message, identity: str) -> Handled:
        return self._deliver(
            Envelope(identity, "test", self.driver.name, type(message).__name__, "", "", message)
        )

    def answer(self, kind: type[Message], reply: Message) -> Handled:
        """Answer the oldest open request of this kind."""
        asked = next(e for e in self.sent if type(e.body) is kind)
        self.sent.remove(asked)
        return self._deliver(
            Envelope(
                reply_id(asked.id), asked.dst, self.driver.name, asked.kind + "~", "", "", reply
            )
        )

    def _deliver(self, envelope: Envelope) -> Handled:
        self.n += 1
        handled = self.driver.deliver(self.n, envelope)
        self.sent += [m for m in handled.messages if not m.is_reply]
        self.records += handled.records
        return handled

    def seen(self, kind: type[Any]) -> list[Any]:
        return [r for r in self.records if type(r) is kind]


def replies(handled: Handled) -> list[str]:
    return [m.id for m in handled.messages if m.is_reply]


def walking_iommu() -> Hand:
    """An IOMMU in the middle of a device's read: the upper level has been loaded."""
    hand = Hand(build("iommu0", small_world(), 0))
    hand.request(DmaAccess(MM, page(1), False, 0), "d/0.0")
    hand.answer(PteLoad, PteValue(TABLE))
    return hand


def walking_cpu() -> Hand:
    """A CPU in the middle of a load."""
    hand = Hand(build("cpu0", small_world(), 0))
    hand.driver.node.active_mms.append(MM)  # type: ignore[attr-defined]  # in the cpumask already
    hand.request(Touch(MM, page(1), False), "c/0")
    hand.answer(PteLoad, PteValue(TABLE))
    return hand


AGENTS: list[tuple[Callable[[], Hand], Message]] = [
    (walking_iommu, IotlbInvalidate(MM, page(1), page(2))),
    (walking_cpu, FlushTlbIpi(MM, page(1), page(2))),
]


@pytest.mark.parametrize(("agent", "invalidation"), AGENTS)
def test_invalidation_waits_for_accesses_through_the_old_entry(
    agent: Callable[[], Hand], invalidation: Message
) -> None:
    hand = agent()
    hand.answer(PteWalk, PteValue(LEAF))
    assert len(hand.seen(Fill)) == 1
    assert replies(hand.request(invalidation, "i/0.0")) == []
    assert hand.seen(InvalidateDone) == []
    assert "i/0.0~" in replies(hand.answer(FrameRead, Word(0)))
    assert len(hand.seen(InvalidateDone)) == 1


@pytest.mark.parametrize(("agent", "invalidation"), AGENTS)
def test_a_walk_that_raced_installs_nothing(
    agent: Callable[[], Hand], invalidation: Message
) -> None:
    hand = agent()
    assert replies(hand.request(invalidation, "i/0.0")) == []  # the walk is still under way
    handled = hand.answer(PteWalk, PteValue(LEAF))
    assert "i/0.0~" in replies(handled)
    assert len(hand.seen(WalkDiscarded)) == 1
    assert hand.seen(Fill) == []
    assert [type(m.body) for m in hand.sent] == [PteLoad]  # it walks again from the top


@pytest.mark.parametrize(("agent", "invalidation"), AGENTS)
def test_an_invalidation_of_another_range_waits_for_nothing(
    agent: Callable[[], Hand], invalidation: Any
) -> None:
    """Not even of pages of the same tables, which a unit's command may be about to free."""
    other = type(invalidation)(MM, page(8), page(9))
    assert replies(agent().request(other, "i/0.0")) == ["i/0.0~"]


def test_absent_entries_are_not_cached() -> None:
    hand = walking_iommu()
    hand.answer(PteWalk, PteValue(ptes.NONE))
    assert hand.seen(Fill) == []
    hand.answer(PageRequest, Flag(True))
    assert [type(m.body) for m in hand.sent] == [PteLoad]  # asked again: memory is walked again


def test_a_kick_is_acknowledged_out_of_guest_mode() -> None:
    hand = Hand(build("vcpu0", small_world(), 0))
    vcpu: Any = hand.driver.node
    vcpu.requests.clear()
    vcpu.active_mms.append(MM)
    hand.request(GuestTouch(page(1), False), "v/0")
    hand.answer(SpteLoad, SpteValue(LEAF, "spte:x"))
    assert vcpu.in_guest_mode
    assert replies(hand.request(KvmRequest("TLB_FLUSH", True), "k/0.0")) == []
    assert replies(hand.answer(FrameRead, Word(0))) == ["v/0~", "k/0.0~"]
    assert vcpu.gtlb.entries == {}


def test_an_ipi_waits_while_interrupts_are_off() -> None:
    hand = Hand(build("cpu0", small_world(), 0))
    cpu: Any = hand.driver.node
    cpu.irq_disable()
    assert replies(hand.request(FlushTlbIpi(MM, 0, page(1)), "i/0.0")) == []
    cpu.irq_enable()  # takes effect in the handling that does it; here that is the next one
    again = hand.request(FlushTlbIpi(MM, 0, page(1)), "i/0.0")  # a repetition does nothing itself
    assert replies(again) == ["i/0.0~"]
    assert replies(hand.request(FlushTlbIpi(MM, 0, page(1)), "i/0.1")) == ["i/0.1~"]
