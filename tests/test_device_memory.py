"""Memory of devices: what goes there, what comes back, and who may use it meanwhile.

By the names of tools/testing/selftests/mm/hmm-tests.c.
"""

from __future__ import annotations

import pytest

from mmurace.nodes.kernel.errno import EFAULT, EINVAL
from mmurace.nodes.secondaries.gpu.messages import GpuJob, GpuMigrate
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as op
from tests.gpu_runs import MM, A, Ran, gpu_world, script

RELEASES = ("v5.8", "v5.18", "v6.6.5")


def job(address: int, write: bool = False, value: int = 0, pages: int = 1, mm: str = MM) -> GpuJob:
    """A job on some pages."""
    return GpuJob(mm, address, pages * PAGE_SIZE, write, value)


def touch(address: int, write: bool = True, value: int = 0, mm: str = MM) -> op.Touch:
    """An access of a processor."""
    return op.Touch(mm, address, write, value)


def to_device(pages: int = 1, gpu: str = "gpu0", address: int = A) -> GpuMigrate:
    """To the memory of a device."""
    return GpuMigrate(MM, gpu, address, pages * PAGE_SIZE)


def to_system(pages: int = 1, gpu: str = "gpu0") -> GpuMigrate:
    """Back."""
    return GpuMigrate(MM, gpu, A, pages * PAGE_SIZE, True)


MAPPED = (
    ("cpu0", op.Mmap(MM, A, 4 * PAGE_SIZE, True, True)),
    *(("cpu0", touch(A + n * PAGE_SIZE, value=n + 1)) for n in range(3)),
)
"""Four pages, the last of which nobody has touched."""


@pytest.mark.parametrize("release", RELEASES)
def test_what_goes_to_a_device_keeps_its_content(release: str) -> None:
    """``migrate``, ``migrate_fault``, ``migrate_multiple``: also where nothing was."""
    steps = [*MAPPED]
    for n in range(3):
        steps += [
            ("cpu0", to_device(4)),
            ("gpu0", job(A, pages=4)),
            ("gpu0", job(A, True, 50 + n)),
            ("cpu1", touch(A, False)),
            ("cpu1", touch(A + PAGE_SIZE, value=60 + n)),
        ]
    ran = Ran(gpu_world(release=release), script(*steps, ("cpu0", to_system(4))))
    assert [ran.results[f"cpu0/{4 + n}"] for n in range(4)] == [4, 2, 2, 2]
    assert [ran.loaded[f"gpu0/{2 * n}"] for n in range(3)] == [
        [1, 2, 3, 0], [50, 60, 3, 0], [51, 61, 3, 0]
    ]  # fmt: skip
    assert [ran.loaded[f"cpu1/{2 * n}"] for n in range(3)] == [[50], [51], [52]]
    assert ran.rules == set()


def add(value: int, address: int = A) -> GpuJob:
    """An atomic addition."""
    return GpuJob(MM, address, PAGE_SIZE, True, value, True)


@pytest.mark.parametrize("skips", ["none", "own"])
def test_a_page_that_a_device_has_for_itself_comes_back_to_who_touches_it(skips: str) -> None:
    """``exclusive``, ``exclusive_mprotect``, ``exclusive_cow``."""
    ran = Ran(
        gpu_world(mirrors=(MM, "mm1"), gpus=2, set={"gpu_exclusive_skips": skips}),
        script(
            *MAPPED,
            ("gpu0", add(10)), ("gpu0", add(10)), ("cpu1", touch(A, False)),
            ("gpu0", add(10)), ("gpu1", add(10)), ("gpu0", job(A)),
            ("gpu0", add(10)), ("cpu0", op.Mprotect(MM, A, PAGE_SIZE, True, False)),
            ("gpu0", add(10)), ("gpu0", job(A)), ("cpu0", touch(A, False)),
            ("gpu0", add(10, A + PAGE_SIZE)), ("cpu0", op.Fork(MM, "mm1")),
            ("cpu1", touch(A + PAGE_SIZE, value=99, mm="mm1")), ("gpu0", job(A + PAGE_SIZE)),
            ("gpu0", add(10, A + PAGE_SIZE)), ("cpu1", touch(A + PAGE_SIZE, False, mm="mm1")),
        ),
    )  # fmt: skip
    assert [ran.results[f"gpu0/{n}"] for n in range(9)] == [0, 0, 0, 0, 0, -EFAULT, 0, 0, 0]
    assert [ran.loaded[f"gpu0/{n}"] for n in (0, 1, 2, 3, 4, 6, 7, 8, 9)] == [
        [1], [11], [21], [41], [41], [51], [2], [12], [12]
    ]  # fmt: skip
    assert (ran.loaded["cpu1/0"], ran.loaded["cpu0/5"], ran.loaded["cpu1/2"]) == ([21], [51], [99])
    assert ran.rules == set()


def test_a_page_in_the_memory_of_one_device_comes_back_for_another() -> None:
    """``double_map``, ``migrate_mixed``: and what may not be read, or is of a file, does not go."""
    steps = (
        *MAPPED, ("cpu0", to_device()), ("gpu1", job(A)), ("cpu0", to_device(gpu="gpu1")),
        ("gpu0", job(A, True, 9)), ("cpu1", touch(A, False)),
        ("cpu0", op.Mprotect(MM, A, PAGE_SIZE, False, False)), ("cpu0", to_device()),
        ("cpu0", op.Mmap(MM, A, PAGE_SIZE, True, True, "data", 0, True)),
        ("cpu1", touch(A, value=5)), ("cpu0", to_device()),
    )  # fmt: skip
    told = {"gpu_migrate_skips": "none"}  # else gpu1 has what it should have lost: see E23c
    ran = Ran(gpu_world(gpus=2, set=told), script(*steps))
    assert [ran.results[f"cpu0/{n}"] for n in (4, 5, 7, 9)] == [1, 1, -EINVAL, 0]
    assert (ran.loaded["gpu1/0"], ran.loaded["cpu1/0"]) == ([1], [9])
    assert ran.rules == set()
    old = Ran(gpu_world(gpus=2, release="v5.18"), script(*steps[:6]))
    assert old.results["gpu1/0"] == -EFAULT  # to v5.18 hmm_range_fault gives up


@pytest.mark.parametrize("release", RELEASES)
def test_a_child_shares_what_is_in_the_memory_of_a_device(release: str) -> None:
    """``hmm_cow_in_device``: both copy it, and what one stores the other does not see."""
    ran = Ran(
        gpu_world(mirrors=(MM, "mm1"), release=release),
        script(
            *MAPPED, ("cpu0", to_device(2)), ("cpu0", op.Fork(MM, "mm1")),
            ("gpu0", job(A, True, 9)), ("cpu0", touch(A, value=10)),
            ("cpu1", touch(A, False, mm="mm1")), ("cpu1", touch(A + PAGE_SIZE, value=7, mm="mm1")),
            ("cpu0", touch(A + PAGE_SIZE, False)), ("cpu0", op.Munmap(MM, A, 4 * PAGE_SIZE)),
        ),
    )  # fmt: skip
    assert ran.results["gpu0/0"] == -EFAULT  # its own page is read-only now
    assert (ran.loaded["cpu1/0"], ran.loaded["cpu0/7"]) == ([1], [2])
    assert ran.rules == set()
    assert ran.complete
