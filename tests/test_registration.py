"""A subscriber comes on the list of an mm that is in use: in no bracket, whoever has opened it.

The test of each lock is a pair: with ``mm_take_all_locks`` nothing is broken in any order, without
it something is, by an invalidation that holds no other lock than that one.
"""

from __future__ import annotations

from itertools import product

import pytest

from mmurace.broker.chaos import ChaosRules
from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program, Step
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.explorer.sample.explore import Options, explore
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel.errno import EOVERFLOW
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.gpu.messages import GpuJob, GpuMirror
from mmurace.nodes.secondaries.kvm.messages import GuestTouch, KvmAddMemslot, KvmCreateVm
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.world import World
from mmurace.oracle.oracle import Oracle
from mmurace.protocol.messages import program as op
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script
from tests.gpu_runs import A, Ran, gpu_world, program, script
from tests.test_gpu import DRIVERS
from tests.test_kill import config, kill
from tests.worlds import MM, page

PAGES = 2
KERNELS = [("v5.8", "x86"), ("v6.6.5", "x86"), ("v6.6.88", "arm64")]
FILE = op.Mmap(MM, 0, page(PAGES), True, True, "data", 0, True)
ANON = op.Mmap(MM, 0, page(PAGES), True, True)
BY_RMAP = {
    "anon_vma lock": (ANON, op.MigratePages(MM, 0, page(PAGES))),
    "i_mmap_rwsem": (FILE, op.Truncate("data", 0)),
}
"""Lock -> what is mapped, and who takes it away under that lock alone."""


def world(release: str, arch: str, created: bool, **switches: object) -> World:
    vm = Vm("kvm0", ("vcpu0",), MM, (Slot(0, PAGES, 0),), created=created)
    return World(kernel=preset(release, arch, switches), cpus=("cpu0", "cpu1"), parts=(vm,))


def registers_beside(lock: str, release: str, arch: str, **switches: object) -> RunSpec:
    """A VM is created, and used, while pages of its process are taken away."""
    mapped, taken = BY_RMAP[lock]
    programs = (
        Program("cpu0", "cpu0", [Step(mapped), Step(op.Touch(MM, 0, True, 1)), Step(taken)]),
        Program("cpu1", "cpu1", [Step(KvmCreateVm("kvm0"), ("cpu0/1",))]),
        Program("vcpu0", "vcpu0", [Step(GuestTouch(0, True, 2), ("cpu1/0",))]),
    )
    return RunSpec("t", world(release, arch, False, **switches), 0, Script(programs))


@pytest.mark.parametrize("lock", BY_RMAP)
@pytest.mark.parametrize(("release", "arch"), KERNELS)
def test_no_bracket_is_open_when_a_subscriber_comes(lock: str, release: str, arch: str) -> None:
    found = explore(registers_beside(lock, release, arch), Options(schedules=150))
    assert found.violated == 0, found.violations


@pytest.mark.parametrize("lock", BY_RMAP)
def test_mmap_lock_alone_does_not_see_to_that(lock: str) -> None:
    spec = registers_beside(lock, "v5.8", "x86", register_locks="mmap_lock")
    found = explore(spec, Options(schedules=600))
    assert "S10" in {broken.rule for broken in found.violations.values()}


@pytest.mark.parametrize(("release", "arch"), KERNELS)
def test_a_memslot_that_comes_as_an_invalidation_starts_installs_nothing_old(
    release: str, arch: str
) -> None:
    """To v5.14 the memslots are looked up when the count is up, and not before."""
    programs = (
        Program("cpu0", "cpu0", [
            Step(op.Mmap(MM, page(4), page(1), True, True)),
            Step(op.Touch(MM, page(4), True, 1)),
            Step(op.MigratePages(MM, page(4), page(1))),
        ]),
        Program("cpu1", "cpu1", [Step(KvmAddMemslot("kvm0", 4, page(4), page(1)), ("cpu0/1",))]),
        Program("vcpu0", "vcpu0", [Step(GuestTouch(page(4), True, 2), ("cpu1/0",))]),
    )  # fmt: skip
    spec = RunSpec("t", world(release, arch, True), 0, Script(programs))
    found = explore(spec, Options(schedules=400))
    assert found.violated == 0, found.violations


# ---- intervals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_gpu_that_is_pulled_out_closes_the_mirrors_that_it_has(driver: str) -> None:
    """Also while a fault of it is served; it mirrors one process of two."""
    pages = [A + page(at % 4) for at in range(6)]
    programs = [
        program("cpu0", op.Mmap(MM, A, page(4), True, True), op.MadviseDontneed(MM, A, page(4))),
        program("gpu0", *(GpuJob(MM, at, page(1), True, 1) for at in pages)),
    ]
    died = 0
    for seed, at in product(range(3), (60, 100, 150)):
        world = gpu_world(driver)
        exchange = Exchange(Feeder(programs), ChaosRules(config(kill("gpu0", at)), seed, world))
        oracle = Oracle(world)
        ending = Simulator(
            build_all(world, seed), exchange, RandomWalk(seed), oracle.observe, mourner=oracle.lost
        ).run(100_000)
        oracle.finish(ending, quiescent=not exchange.heads)
        assert ending.complete
        assert oracle.violations == []
        assert exchange.deaths is not None
        died += len(exchange.deaths.dead)
    assert died


@pytest.mark.parametrize("pages_", [0, (1 << 52) - 1])
def test_a_range_that_cannot_be_is_refused(pages_: int) -> None:
    """And nothing is left of the mirror: the next one can be made."""
    wide, good = (GpuMirror(MM, "gpu0", A, size) for size in (pages_ * page(1), page(1)))
    ran = Ran(gpu_world(mirrors=()), script(("cpu0", wide), ("cpu0", good)))
    assert ran.results == {"cpu0/0": -EOVERFLOW, "cpu0/1": 0}
    assert ran.rules == set()
