"""Deliveries whose footprints are disjoint commute: both orders give the same state and sends."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program
from mmurace.broker.schedules import RandomWalk
from mmurace.nodes.build import build_all
from mmurace.nodes.driver import Driver
from mmurace.nodes.fingerprint import fingerprint
from mmurace.nodes.footprint import independent
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import DmaAccess
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.ocxl.messages import AfuTouch
from mmurace.nodes.secondaries.ocxl.part import Link
from mmurace.nodes.world import MEMORY, World
from mmurace.protocol.envelope import REPLY_MARK, Envelope
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages.base import Message
from mmurace.protocol.messages.book3s64 import MmName, Tlbie
from mmurace.protocol.messages.memory import Count, PteValue
from mmurace.protocol.pte import PRESENT, WRITE, make
from tests.worlds import MM, page, small_programs, small_world

PAIRS_MAX = 60


def recorded(world: World, seed: int, programs: tuple[Program, ...]) -> list[Envelope]:
    """The deliveries of one run, each with what it touched (in ``footprints``)."""
    drivers = build_all(world, seed)
    exchange, schedule = Exchange(Feeder(programs)), RandomWalk(seed)
    exchange.start()
    run = []
    while exchange.heads:
        envelope = exchange.take(schedule.pick(exchange.heads))
        run.append(msgspec.structs.replace(envelope))
        handled = drivers[envelope.dst].deliver(exchange.number, envelope)
        exchange.release(exchange.number, handled.messages)
    return run


def replay(world: World, seed: int, deliveries: list[Envelope], node: str) -> Driver:
    """One node, brought to where it stands after its share of ``deliveries``."""
    driver = build_all(world, seed)[node]
    for number, envelope in enumerate(deliveries, 1):
        if envelope.dst == node:
            driver.deliver(number, envelope)
    return driver


def outcome(driver: Driver, pair: tuple[Envelope, Envelope]) -> tuple[str, list[tuple[str, str]]]:
    """State and sends after delivering a pair, whatever its order."""
    sends = []
    for envelope in pair:
        handled = driver.deliver(0, envelope)
        sends += [(m.id, repr(m.body)) for m in handled.messages]
    return fingerprint(driver), sorted(sends)


@pytest.mark.parametrize(
    ("release", "arch"), [("v6.6.5", "x86"), ("v6.6.5", "arm64"), ("v5.7", "x86")]
)
def test_independent_deliveries_commute(release: str, arch: str) -> None:
    assert commuting_pairs(small_world(release, arch), small_programs(arch), PAIRS_MAX) >= 20


def commuting_pairs(world: World, programs: tuple[Program, ...], pairs_max: int) -> int:
    """Try pairs of neighbours that are said to be independent, in both orders: how many."""
    tried = 0
    for seed in range(20):
        run = recorded(world, seed, programs)
        for at, (first, second) in enumerate(itertools.pairwise(run)):
            released = all(cause <= at for cause in second.causes)
            if first.dst != second.dst or not released or tried >= pairs_max:
                continue
            probe = replay(world, seed, run[:at], first.dst)
            if not independent(probe, first, second):
                continue
            tried += 1
            forward = outcome(replay(world, seed, run[:at], first.dst), (first, second))
            backward = outcome(replay(world, seed, run[:at], first.dst), (second, first))
            assert forward == backward, (first, second)
    return tried


def answered(request: Envelope, body: Message) -> Envelope:
    """The reply of memory to a request of a link."""
    kind = request.kind + REPLY_MARK
    return Envelope(request.id + REPLY_MARK, MEMORY, request.src, kind, request.id, "", body)


@pytest.mark.parametrize("steps", [1, 2], ids=["process table", "upper entry"])
def test_a_walk_of_a_link_looks_whether_it_is_stale_at_every_step(steps: int) -> None:
    """So an answer of its walk does not commute with an invalidation that overlaps it."""
    world = World(kernel=preset("v6.6.5", "ppc"), parts=(Link("link0", ("mm0",), "cpu1"),))
    driver = build_all(world, 0)["link0"]
    message = Envelope("afu/0", "", "link0", "AfuTouch", "afu", "", AfuTouch("mm0", 0, False))
    table = PteValue(make(5, PRESENT | WRITE))
    bodies: list[Message] = [Count(1), MmName("mm0"), table]
    for number, body in enumerate(bodies[: steps + 1], 1):
        (request,) = driver.deliver(number, message).messages
        message = answered(request, body)
    command = Tlbie(1, 0, PAGE_SIZE)
    invalidation = Envelope("cpu0/0.0", "cpu0", "link0", "Tlbie", "cpu0/0", "", command)
    assert not independent(driver, message, invalidation)


def test_whoever_keeps_an_upper_entry_shortens_the_next_walk() -> None:
    """So a walk that begins does not commute with the answer that makes a walker keep one."""
    unit = Unit("iommu0", ("device0", "device1"), (MM,), "cpu1", pwc=True)
    world = small_world().with_parts(Unit, (unit,))
    driver = build_all(world, 0)["iommu0"]
    first, other = (
        Envelope(
            f"{name}/0.0", name, "iommu0", "DmaAccess", f"{name}/0", "",
            DmaAccess(MM, page(at), False, 0),
        )
        for at, name in enumerate(unit.devices)
    )  # fmt: skip
    (load,) = driver.deliver(1, first).messages
    answer = answered(load, PteValue(make(5, PRESENT | WRITE)))
    assert not independent(driver, answer, other)
