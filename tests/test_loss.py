"""Loss can only delay: the first message of each kind dropped, repeated or delayed changes
nothing but the order of things, on a kernel that is right."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

import pytest

from mmurace.broker.chaos import ChaosRules, parse_rules
from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.nodes.build import build_all
from mmurace.nodes.world import World
from mmurace.oracle.oracle import Oracle
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.messages import kinds as all_kinds
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.base import Request
from mmurace.protocol.trace import TraceStep
from mmurace.scenarios.catalogue import find
from tests.file_programs import FILE, file_programs, file_world
from tests.mm_programs import several_programs, several_world
from tests.part_programs import link_programs, link_world, part_programs, part_world
from tests.worlds import small_programs, small_world

SEEDS = (1, 2, 3)
ARCHES = ("x86", "arm64", "ppc")
Make = Callable[[str, int], tuple[World, tuple[Program, ...]]]


def small(arch: str, _: int) -> tuple[World, tuple[Program, ...]]:
    """One mm, all agents, system calls."""
    return small_world(arch=arch), small_programs(arch)


def several(arch: str, seed: int) -> tuple[World, tuple[Program, ...]]:
    """Several mms: fork, exec, exit, mremap, files, page requests."""
    return several_world("v6.6.5", arch), several_programs(seed, 40)


def parts(arch: str, _: int) -> tuple[World, tuple[Program, ...]]:
    """One mm: swap, translation caches in devices, a new memslot."""
    return part_world(arch), part_programs()


def files(arch: str, seed: int) -> tuple[World, tuple[Program, ...]]:
    """Several mms that share a file, which is written back, reclaimed and truncated."""
    daemons = (op.Kswapd(3), op.Writeback(FILE))
    return file_world("v6.6.5", arch, {}), file_programs(seed, 20, daemons, (1, 2, 4))


def registers(arch: str, _: int) -> tuple[World, tuple[Program, ...]]:
    """Several mms that come and go at a link with registers."""
    assert arch == "ppc"
    return link_world("v6.2"), link_programs()


def bus(arch: str, _: int) -> tuple[World, tuple[Program, ...]]:
    """The same at a link that snoops the bus."""
    assert arch == "ppc"
    return link_world("v5.10"), link_programs()


def _race(name: str, kernel: str) -> Make:
    """The programs of a race on a kernel that does not have it."""

    def make(_arch: str, seed: int) -> tuple[World, tuple[Program, ...]]:
        spec = find(name).run(kernel, seed)
        return spec.world, spec.programs()

    make.__name__ = name
    return make


RACES: Final = (
    ("E14", "v6.6"), ("E15", "v6.6"), ("E16", "v6.6"), ("E18b", "v6.6"), ("E18b", "v6.6-amdgpu"),
    ("E17a", "v6.6.5"), ("E23", "v6.6"), ("E31", "v6.6.5"), ("E32", "v6.6.5"),
)  # fmt: skip
"""Mirrors, cached frame numbers, the OOM reaper, pins, aging: each sends what no other does."""
MAKES: Final[dict[str, tuple[Make, ...]]] = {
    "x86": (small, several, files, *(_race(*race) for race in RACES)),
    "arm64": (small, several, parts), "ppc": (registers, bus),
}  # fmt: skip


@cache
def kinds_seen(make: Make, arch: str) -> frozenset[str]:
    """Every kind of message, replies included, that these programs send."""
    seen: set[str] = set()

    def note(envelope: Envelope, _: Handled) -> None:
        seen.add(envelope.kind)

    for seed in SEEDS:
        world, programs = make(arch, seed)
        exchange = Exchange(Feeder(programs))
        Simulator(build_all(world, seed), exchange, RandomWalk(seed), note).run(100_000)
    return frozenset(seen)


def run_with(make: Make, arch: str, kind: str, fault: str, seed: int) -> int:
    """Run with one fault on the first message of ``kind``; how often the rule hit."""
    after = {"min": 1, "max": 60}
    rule = {"name": "first", "match": {"kind": kind}, "fault": fault, "after": after}
    table = {"schema": 1, "rule": [rule | {"when": {"hits_max": 1}}]}
    chaos = ChaosRules(parse_rules(table, "test"), seed)
    world, programs = make(arch, seed)
    oracle = Oracle(world)
    exchange = Exchange(Feeder(programs), chaos)

    def watch(e: Envelope, handled: Handled) -> None:
        step = TraceStep(handled.n, e.id, e.src, e.dst, e.kind, e.causes, handled.records)
        assert oracle.step(step) == []

    simulator = Simulator(build_all(world, seed), exchange, RandomWalk(seed), watch)
    ending = simulator.run(deliveries_max=100_000)
    assert ending.complete, ending.waiting
    assert oracle.finish(ending) == []
    assert exchange.counts.balance(exchange.pending) == 0
    return int(chaos.report()["rules"][0]["hits"])


@pytest.mark.parametrize("fault", ["drop", "duplicate", "delay"])
@pytest.mark.parametrize("arch", ARCHES)
def test_one_fault_on_each_kind_changes_no_verdict(arch: str, fault: str) -> None:
    # What all architectures have is not tried again on the third.
    tried = set(kinds_seen(small, "x86")) if arch == "ppc" else set()
    for make in MAKES[arch]:
        kinds = kinds_seen(make, arch) - tried
        assert kinds, make.__name__
        tried |= kinds
        for kind in sorted(kinds):
            assert any(run_with(make, arch, kind, fault, seed) for seed in SEEDS), kind


UNSEEN: Final = {
    "ChangeProtNuma": "nobody balances nodes",
    "ClearRefs": "nobody looks for soft-dirty pages",
    "FenceSignal": "a worker with the driver's lock before a fence, which no release has",
    "GpcClear": "a frame number must be cached when its page is taken away",
    "FolioPutbackLru": "a migration that finds its page in use",
    "FolioWaitIdle": "a fault on a page of a device that somebody else is about",
    "GetUserPage": "a fault of a table from outside; the drivers here have their own",
    "InvalidateRangeEnd": "the same of its callbacks",
    "InvalidateRangeStart": "the same of its callbacks",
    "KsmScan": "there is no ksmd",
    "MadviseNohugepage": "nobody keeps VMAs apart",
    "MmapReadTrylock": "kernels from v6.10 on ask for it",
    "PagePgmap": "whose page of a device it is that another device comes to",
    "PagesIdentical": "the same",
    "PasidFind": "in a release callback that no version of the driver has",
    "RemoveMapping": "reclaim must find a page of a file that nobody else has",
    "ReclaimThrottle": "reclaim waits for other reclaim only when the pool is empty",
    "SetPageKsm": "the same",
    "SwapCacheDelete": "a page must be mapped again while it is written to swap",
    "TlbBatchedStore": "the marker is a flag up to v5.16 only; later kernels count",
}
"""Requests that none of these worlds sends, and why."""


def test_every_kind_of_request_is_sent_in_one_of_the_worlds() -> None:
    seen = {kind for arch, makes in MAKES.items() for m in makes for kind in kinds_seen(m, arch)}
    own = {name: kind for name, kind in all_kinds().items() if kind.__module__[:7] == "mmurace"}
    asked = {name for name, kind in own.items() if issubclass(kind, Request)}
    bases = {
        name for name, kind in own.items()
        if kind.__subclasses__() or vars(kind).get("ONLY_A_BASE")
    }  # fmt: skip
    assert asked - bases - seen == set(UNSEEN)
