"""States as values: what decides something later is a part of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from mmurace.explorer.exhaustive.state_values import freeze_driver, freeze_fields
from mmurace.explorer.exhaustive.world_state import model_of
from mmurace.nodes.build import build, build_all
from mmurace.nodes.driver import Driver
from mmurace.nodes.footprint import independent, track
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import DmaAccess, IotlbInvalidate
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.iommu_sva.unit import Iommu
from mmurace.nodes.secondaries.kvm.messages import (
    ActiveInvalidate,
    Memslot,
    MemslotAdd,
    MemslotsLoad,
)
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.translation import TranslationCache
from mmurace.nodes.world import World
from mmurace.protocol.envelope import BROKER, Envelope
from mmurace.protocol.messages.base import Message, Request
from mmurace.protocol.messages.memory import Flag, PteValue
from tests.test_futures import CATALOGUE, in_bursts, walk
from tests.worlds import MM, page

SLOT = Slot(0, 1, 0)
TABLES = 8
"""How many leaf tables there can be."""


def world(tlb_entries: int) -> World:
    """A unit that keeps upper entries, and a guest that has one page."""
    return World(
        kernel=preset("v6.2"), tlb_entries=tlb_entries,
        parts=(
            Unit("iommu0", ("device0",), (MM,), "cpu0", pwc=True),
            Vm("kvm0", ("vcpu0",), MM, (SLOT,)),
        ),
    )  # fmt: skip


def kept(tables: Iterable[int], tlb_entries: int) -> object:
    """The state of a unit that has come to know of leaf tables in that order."""
    node = build("iommu0", world(tlb_entries), 0).node
    assert isinstance(node, Iommu)
    assert node.pwc is not None
    for table in tables:
        node.pwc.fill(MM, page(8 * table), 0, table, f"device0/{table}.0")
    return freeze_fields(node)


def test_the_order_of_upper_entries_is_told_where_the_oldest_is_dropped() -> None:
    assert kept((1, 2), TABLES - 1) != kept((2, 1), TABLES - 1)


def test_and_only_there() -> None:
    assert kept((1, 2), TABLES) == kept((2, 1), TABLES)


def test_a_guest_may_be_given_more_pages_than_it_begins_with() -> None:
    """So its TLB may drop entries although it could hold all of the first memslots."""
    port = build("vcpu0", world(2), 0).port
    assert TranslationCache("gtlb", world(2), port).evicts
    assert not TranslationCache("gtlb", world(64), port).evicts


def sent(name: str, message: Request[Any]) -> Envelope:
    """A request of cpu0 to the VM."""
    return Envelope(name, "cpu0", "kvm0", type(message).__name__, name, "", message)


def brackets(waits: bool) -> Driver:
    """A VM with an open bracket, for the end of which a new slot may wait."""
    driver = build("kvm0", world(64), 0)
    driver.deliver(1, sent("cpu0/0", ActiveInvalidate(1)))
    if waits:
        driver.deliver(2, sent("cpu0/1", MemslotAdd(Memslot(1, 1, page(1)), True)))
    return driver


def test_the_end_of_a_bracket_installs_the_slots_that_wait_for_it() -> None:
    end, load = sent("cpu0/2", ActiveInvalidate(-1)), sent("cpu0/3", MemslotsLoad())
    assert not independent(brackets(True), end, load)
    assert independent(brackets(False), end, load)


def test_of_two_slots_with_the_same_guest_frames_one_is_installed() -> None:
    driver = brackets(True)
    driver.deliver(3, sent("cpu1/1", MemslotAdd(Memslot(0, 3, page(1)), True)))
    replies = driver.deliver(4, sent("cpu0/2", ActiveInvalidate(-1))).messages
    assert [m.body for m in replies][:2] == [Flag(True), Flag(False)]
    late = driver.deliver(5, sent("cpu1/2", MemslotAdd(Memslot(1, 1, 0), True))).messages
    assert [m.body for m in late] == [Flag(False)]


def overlapping(devices: Iterable[str]) -> Driver:
    """A unit in which each device in turn begins a walk of a page, which is then invalidated."""
    here = world(64).with_parts(Unit, (Unit("iommu0", ("device0", "device1"), (MM,), "cpu0"),))
    driver = build("iommu0", here, 0)
    for at, name in enumerate(devices):
        driver.deliver(2 * at + 1, to_unit(f"{name}/0.0", DmaAccess(MM, 0, True, 1)))
        driver.deliver(2 * at + 2, to_unit(f"cpu0/{at}.0", IotlbInvalidate(MM, 0, page(1))))
    return driver


def to_unit(name: str, message: Message) -> Envelope:
    """A message to the unit."""
    return Envelope(name, "cpu0", "iommu0", type(message).__name__, name[:-2], "", message)


def test_whose_walk_an_invalidation_waits_for_is_told() -> None:
    """All four are under way in both; the first invalidation waits for the first walk only."""
    one, other = overlapping(("device0", "device1")), overlapping(("device1", "device0"))
    assert freeze_driver(one) != freeze_driver(other)
    answer = to_unit("device0/0.0.0~", PteValue(0))
    acknowledged = [
        [m.id for m in driver.deliver(5, answer).messages if m.dst == "cpu0" and m.id[-1] == "~"]
        for driver in (one, other)
    ]
    assert acknowledged == [["cpu0/0.0~"], []]


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_node_does_the_same_whatever_brought_it_to_its_state(name: str) -> None:
    """The search runs a node once from each state; here others ran through all that came before."""
    race = CATALOGUE[name]
    spec = replace(race.run(race.kernels[-1].name), chaos=None)
    model = model_of(spec)
    for seed, wander in enumerate((walk, in_bursts, in_bursts)):
        drivers = build_all(spec.world, spec.seed)
        for driver in drivers.values():
            track(driver)
        for _, message, move in wander(model, seed):
            driver, ways = drivers[message.dst], iter(move.ways)
            driver.chooser = lambda *_, ways=ways: next(ways)
            handled = driver.deliver(0, message.envelope())
            sent = [m for m in handled.messages if m.dst != BROKER]
            assert [(m.id, m.dst, m.stream, m.body) for m in sent] == [
                (m.id, m.dst, m.stream, m.body) for m in move.sent
            ]
            assert tuple(handled.records) == move.records
            machine = model.machines[model.index[message.dst]]
            assert freeze_driver(driver) == machine.frozen[move.target], message.id
