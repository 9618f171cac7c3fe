"""What a GPU's driver is asked for by several threads at once, and what its page table is."""

from __future__ import annotations

import msgspec
import pytest

from mmurace.broker.schedules import RandomWalk
from mmurace.explorer.sample.explore import run_schedule
from mmurace.nodes.kernel.errno import EBUSY, EFAULT, EINVAL
from mmurace.nodes.secondaries.gpu.messages import GpuJob, GpuMirror, GpuUnmirror
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as op
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script
from tests.gpu_runs import MM, A, Ran, gpu_world, program, script
from tests.test_kill import config, kill

PAGES = 4 * PAGE_SIZE
MAPPED = op.Mmap(MM, A, PAGES, read=True, write=True)


@pytest.mark.parametrize("driver", ["dmirror", "amdgpu"])
def test_a_page_table_of_a_driver_is_no_cache(driver: str) -> None:
    """It is never full and forgets nothing: a job has all of its pages at once."""
    world = gpu_world(driver)
    small = msgspec.structs.replace(world, tlb_entries=1, evict_one_in=1)
    ran = Ran(small, script(("cpu0", MAPPED), ("gpu0", GpuJob(MM, A, PAGES, write=True, value=7))))
    assert ran.results["gpu0/0"] == 0
    assert not ran.rules
    ran = Ran(small, script(("cpu0", MAPPED), ("gpu0", GpuJob(MM, A, PAGES, write=True, value=7)),
                            ("cpu0", op.Touch(MM, A + 3 * PAGE_SIZE, write=False))))  # fmt: skip
    assert ran.loaded["cpu0/1"] == [7]


@pytest.mark.parametrize("seed", range(40))
def test_nobody_has_a_mirror_that_is_not_open_yet_or_is_closed(seed: int) -> None:
    """Two threads open and close it, and jobs are asked for all the while."""
    opens, closes = GpuMirror(MM, "gpu0", A, PAGES), GpuUnmirror(MM, "gpu0")
    jobs = [GpuJob(MM, A, PAGES, write=True, value=n) for n in range(6)]
    begun = ("cpu0/0",)
    ran = Ran(
        gpu_world(mirrors=()),
        [
            program("cpu0", MAPPED, opens, closes, op.MadviseDontneed(MM, A, PAGES), opens),
            program("cpu1", closes, opens, opens, closes, after=begun),
            program("gpu0", *jobs, after=begun),
        ],
        seed,
    )
    assert ran.complete
    assert not ran.rules
    assert {ran.results[f"gpu0/{n}"] for n in range(6)} <= {0, -EFAULT}
    assert {ran.results[name] for name in ("cpu1/1", "cpu1/2")} <= {0, -EBUSY}
    assert ran.results["cpu1/0"] in (0, -EINVAL)


@pytest.mark.parametrize("close", ["removes", "under_lock"])
def test_a_gpu_dies_while_a_mirror_is_opened_and_another_closed(close: str) -> None:
    """Its driver closes what there is, once, and a call that comes too late says so."""
    world = gpu_world()
    world = msgspec.structs.replace(world, kernel=world.kernel.replace(gpu_close=close))
    opens = [GpuMirror(mm, "gpu0", A, PAGES) for mm in ("mm1", MM)]
    begun, jobs = ("cpu0/0",), [GpuJob(MM, A, PAGES, write=True, value=n) for n in range(3)]
    programs = (
        program("cpu0", MAPPED, op.Touch(MM, A, write=True, value=9),
                GpuUnmirror(MM, "gpu0"), *opens, op.Munmap(MM, A, PAGES)),
        program("gpu0", *jobs, after=begun),
    )  # fmt: skip
    for at in range(20, 200, 3):
        spec = RunSpec("gpu", world, at, Script(programs), config(kill("gpu0", at)))
        trial = run_schedule(spec, RandomWalk(at), 20_000)
        assert trial.complete
        assert not trial.oracle.violations
