"""GPUs with HMM: interval notifiers, what a device reads and writes, and who is told what."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmurace.nodes.build import build
from mmurace.nodes.intervals import FIRST_SEQ
from mmurace.nodes.kernel.errno import EBUSY, EFAULT, EINVAL, EPERM
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.gpu.messages import (
    DriverLock,
    DriverTrylock,
    GpuJob,
    GpuMirror,
    GpuUnmirror,
)
from mmurace.nodes.secondaries.gpu.part import Gpu
from mmurace.nodes.world import MEMORY, World
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import intervals as i
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.base import Message
from mmurace.protocol.messages.memory import Count
from mmurace.scenarios.catalogue import find
from mmurace.scenarios.mixed import Mixed, MixedOptions
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script
from mmurace.scenarios.worlds import world_from, world_to
from tests.gpu_runs import MM, A, Ran, gpu_world, program, script
from tests.test_independence import commuting_pairs

DRIVERS = ("dmirror", "amdgpu", "nouveau")
ALL = A + 4 * PAGE_SIZE


def job(address: int, write: bool = False, value: int = 0, pages: int = 1, mm: str = MM) -> GpuJob:
    """A job on some pages."""
    return GpuJob(mm, address, pages * PAGE_SIZE, write, value)


def touch(address: int, write: bool = True, value: int = 0, mm: str = MM) -> op.Touch:
    """An access of a processor."""
    return op.Touch(mm, address, write, value)


# ---- the tree of intervals -------------------------------------------------------------------


class Tree:
    """The memory of a world, asked message by message."""

    def __init__(self) -> None:
        self.driver = build(MEMORY, gpu_world(mirrors=()), 0)
        self.answers: dict[int, Message] = {}
        self.n = 0

    def ask(self, message: Message) -> int:
        """Ask; the number under which the answer comes, now or later."""
        self.n += 1
        kind = type(message).__name__
        envelope = Envelope(f"cpu0/{self.n}", "cpu0", MEMORY, kind, "", "", message)
        for reply in self.driver.deliver(self.n, envelope).messages:
            assert isinstance(reply.body, Message)
            self.answers[int(reply.id.rstrip("~").rpartition("/")[2])] = reply.body
        return self.n

    def get(self, message: Message) -> Message | None:
        """Ask; the answer, or None if it has to wait."""
        return self.answers.get(self.ask(message))

    def seq(self) -> int:
        """``invalidate_seq``."""
        node = self.driver.node
        return int(node.itrees[MM].invalidate_seq)  # type: ignore[attr-defined]  # memory


INSERT = i.IntervalInsert(MM, "gpu", "gpu0", A, A + PAGE_SIZE - 1)
HIT, MISS = i.ItreeInvStart(MM, A, ALL), i.ItreeInvStart(MM, 0, A)
END = i.ItreeInvEnd(MM, A, ALL)


def test_the_sequence_is_odd_while_an_interval_is_being_invalidated() -> None:
    tree = Tree()
    tree.ask(INSERT)
    assert tree.get(MISS) == i.Intervals(FIRST_SEQ, ())
    assert tree.get(HIT) == i.Intervals(FIRST_SEQ + 1, (("gpu", "gpu0"),))
    tree.ask(END)
    assert tree.seq() == FIRST_SEQ + 1  # the other one is not over
    tree.ask(END)
    assert tree.seq() == FIRST_SEQ + 2


def test_a_reader_waits_for_the_callback_that_it_has_seen() -> None:
    tree = Tree()
    tree.ask(INSERT)
    assert tree.get(i.IntervalReadBegin(MM, "gpu0")) == i.IntervalSeq(FIRST_SEQ - 1, False)
    tree.ask(HIT)
    tree.ask(i.IntervalSetSeq(MM, "gpu0", FIRST_SEQ + 1))
    assert tree.get(i.IntervalReadBegin(MM, "gpu0")) == i.IntervalSeq(FIRST_SEQ + 1, True)
    waiting = tree.ask(i.IntervalWait(MM, FIRST_SEQ + 1, False))
    assert waiting not in tree.answers
    tree.ask(END)
    assert waiting in tree.answers


@pytest.mark.parametrize("first", [HIT, MISS])
def test_what_is_inserted_in_the_midst_of_an_invalidation_counts_as_its_own(
    first: i.ItreeInvStart,
) -> None:
    tree = Tree()
    tree.ask(i.IntervalInsert(MM, "gpu", "gpu1", A, A))
    tree.ask(first)
    tree.ask(INSERT)
    begun = tree.get(i.IntervalReadBegin(MM, "gpu0"))
    assert begun == i.IntervalSeq(FIRST_SEQ + 1, True)
    left = tree.get(END)
    if left != Count(0):
        tree.ask(i.ItreeDeferred(MM))
    found = tree.get(HIT)
    assert isinstance(found, i.Intervals)
    assert ("gpu", "gpu0") in found.found


@pytest.mark.parametrize("locked", [False, True])
def test_the_end_of_an_invalidation_is_seen_half_done_without_the_lock_only(locked: bool) -> None:
    tree = Tree()
    tree.ask(INSERT)
    tree.ask(HIT)
    assert tree.get(i.IntervalRemove(MM, "gpu0")) == Count(FIRST_SEQ + 1)
    assert tree.get(END) == Count(1)
    look = tree.ask(i.IntervalWait(MM, FIRST_SEQ + 1, locked))
    start = tree.ask(MISS)
    assert (look in tree.answers) != locked
    assert start not in tree.answers
    tree.ask(i.ItreeDeferred(MM))
    assert {look, start} <= tree.answers.keys()
    assert tree.get(HIT) == i.Intervals(FIRST_SEQ + 2, ())


# ---- what a device may do (tools/testing/selftests/mm/hmm-tests.c) -----------------------------


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_device_reads_what_the_process_has_stored_and_zeroes_elsewhere(driver: str) -> None:
    """``anon_read``."""
    ran = Ran(gpu_world(driver), script(
        ("cpu0", op.Mmap(MM, A, 3 * PAGE_SIZE, True, True)),
        ("cpu0", touch(A, value=7)), ("cpu0", touch(A + PAGE_SIZE, value=8)),
        ("gpu0", job(A, pages=3)),
    ))  # fmt: skip
    assert ran.results["gpu0/0"] == 0
    assert ran.loaded["gpu0/0"] == [7, 8, 0]
    assert ran.rules == set()


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_device_is_refused_what_the_process_may_not_do(driver: str) -> None:
    """``anon_read_prot``, ``anon_write_prot``."""
    ran = Ran(gpu_world(driver), script(
        ("cpu0", op.Mmap(MM, A, PAGE_SIZE, True, True)),
        ("cpu0", op.Mmap(MM, A + PAGE_SIZE, PAGE_SIZE, False, False)),
        ("cpu0", touch(A, value=7)),
        ("gpu0", job(A + PAGE_SIZE)),
        ("cpu0", op.Mprotect(MM, A, PAGE_SIZE, True, False)),
        ("gpu0", job(A, True, 9)),
        ("gpu0", job(A)),
        ("cpu0", op.Mprotect(MM, A, PAGE_SIZE, True, True)),
        ("gpu0", job(A, True, 9)),
        ("gpu0", job(A + 2 * PAGE_SIZE)),
        ("cpu1", touch(A, False)),
    ))  # fmt: skip
    results = [ran.results[f"gpu0/{n}"] for n in range(5)]
    assert results == [-EFAULT, -EPERM, 0, 0, -EFAULT]
    assert (ran.loaded["gpu0/2"], ran.loaded["cpu1/0"]) == ([7], [9])
    assert ran.rules == set()


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_child_and_its_device_write_to_a_copy(driver: str) -> None:
    """``anon_write_child``."""
    ran = Ran(gpu_world(driver, (MM, "mm1")), script(
        ("cpu0", op.Mmap(MM, A, PAGE_SIZE, True, True)),
        ("cpu0", touch(A, value=7)),
        ("gpu0", job(A, True, 8)),
        ("cpu0", op.Fork(MM, "mm1")),
        ("gpu0", job(A, True, 9, mm="mm1")),
        ("gpu0", job(A, True, 10)),
        ("cpu0", touch(A, False)),
        ("cpu1", touch(A, False, mm="mm1")),
    ))  # fmt: skip
    assert (ran.loaded["cpu0/3"], ran.loaded["cpu1/0"]) == ([10], [9])
    assert ran.rules == set()


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("shared", [True, False])
def test_a_device_writes_to_a_file_that_is_mapped_shared(driver: str, shared: bool) -> None:
    """``file_read``, ``file_write``."""
    ran = Ran(gpu_world(driver), script(
        ("cpu0", op.Mmap(MM, A, PAGE_SIZE, True, True, "data", 0, shared)),
        ("cpu0", op.Mmap(MM, A + PAGE_SIZE, PAGE_SIZE, True, True, "data", 0, True)),
        ("cpu0", touch(A + PAGE_SIZE, value=7)),
        ("gpu0", job(A)),
        ("gpu0", job(A, True, 8)),
        ("cpu0", touch(A + PAGE_SIZE, False)),
    ))  # fmt: skip
    assert ran.loaded["gpu0/0"] == [7]
    assert ran.loaded["cpu0/3"] == [8 if shared else 7]
    assert ran.rules == set()


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("seed", range(10))
def test_unmapping_half_of_what_a_device_reads_gives_data_or_an_error(
    driver: str, seed: int
) -> None:
    """``anon_teardown``: never wrong data."""
    stored: list[op.Operation] = [op.Mmap(MM, A, 4 * PAGE_SIZE, True, True)]
    stored += [touch(A + n * PAGE_SIZE, value=n + 1) for n in range(4)]
    unmapped = op.Munmap(MM, A + 2 * PAGE_SIZE, 2 * PAGE_SIZE)
    ran = Ran(
        gpu_world(driver),
        [program("cpu0", *stored, unmapped), program("gpu0", job(A, pages=4), after=("cpu0/4",))],
        seed,
    )
    read = ran.loaded.get("gpu0/0", [])
    assert read == list(range(1, len(read) + 1))
    assert ran.results["gpu0/0"] == (0 if len(read) == 4 else -EFAULT)
    assert ran.rules == set()


@pytest.mark.parametrize("driver", DRIVERS)
def test_ten_times_new_memory(driver: str) -> None:
    """``anon_read_multiple``; and ``double_map``: two devices read the same pages."""
    steps: list[tuple[str, op.Operation]] = []
    for n in range(10):
        steps += [
            ("cpu0", op.Mmap(MM, A, PAGE_SIZE, True, True)), ("cpu0", touch(A, value=n)),
            ("gpu0", job(A)), ("gpu1", job(A)), ("cpu0", op.Munmap(MM, A, PAGE_SIZE)),
        ]  # fmt: skip
    ran = Ran(gpu_world(driver, gpus=2), script(*steps))
    for gpu in ("gpu0", "gpu1"):
        assert [ran.loaded[f"{gpu}/{n}"] for n in range(10)] == [[n] for n in range(10)]
    assert ran.rules == set()


# ---- mirrors --------------------------------------------------------------------------------


def test_a_device_mirrors_a_range_from_the_first_call_to_the_last() -> None:
    """``open_close``."""
    ran = Ran(gpu_world(mirrors=()), script(
        ("cpu0", op.Mmap(MM, A, 4 * PAGE_SIZE, True, True)),
        ("gpu0", job(A)),
        ("cpu0", GpuMirror(MM, "gpu0", A, PAGE_SIZE)),
        ("cpu0", GpuMirror(MM, "gpu0", A, PAGE_SIZE)),
        ("gpu0", job(A)),
        ("gpu0", job(A, pages=2)),
        ("cpu0", GpuUnmirror(MM, "gpu0")),
        ("cpu0", GpuUnmirror(MM, "gpu0")),
        ("gpu0", job(A)),
    ))  # fmt: skip
    assert [ran.results[f"gpu0/{n}"] for n in range(4)] == [-EFAULT, 0, -EFAULT, -EFAULT]
    assert [ran.results[f"cpu0/{n}"] for n in range(1, 5)] == [0, -EBUSY, 0, -EINVAL]
    assert ran.rules == set()


def test_the_reaper_tries_the_lock_of_a_driver_and_others_take_it() -> None:
    steps = (
        ("cpu0", op.Mmap(MM, A, PAGE_SIZE, True, True)), ("gpu0", job(A, True, 7)),
        ("cpu0", op.OomReap(MM)),
    )  # fmt: skip
    ran = Ran(gpu_world(), script(*steps))
    mine = [type(m).__name__ for m in ran.sent if isinstance(m, (DriverLock, DriverTrylock))]
    assert mine[:2] == ["DriverLock", "DriverTrylock"]  # then the process ends
    assert ran.results["cpu0/1"] == 0
    left = Ran(gpu_world("amdgpu"), script(*steps))
    assert left.results["cpu0/1"] < 0  # its callback never does what must not block
    assert (ran.rules, left.rules) == (set(), set())


# ---- the declaration ------------------------------------------------------------------------


@pytest.mark.parametrize("release", ["v4.14", "v5.4"])
def test_a_kernel_without_interval_notifiers_has_no_gpu(release: str) -> None:
    table = world_to(gpu_world())
    with pytest.raises(UserError, match=rf"no driver in {release}.*\(expected v5.5 or later\)"):
        world_from(table, preset(release), "w")
    with pytest.raises(UserError, match=r"nodes\.gpus"):
        Mixed(MixedOptions(gpus=1)).world(preset(release))
    assert world_from(table, preset("v5.5"), "w").parts == gpu_world().parts


def test_fences_belong_to_jobs() -> None:
    with pytest.raises(UserError, match="gpu_fence_wait = false contradicts"):
        preset("v6.6", overrides={"gpu_fence_wait": False})
    preset("v6.6", profiles=("amdgpu",), overrides={"gpu_fence_wait": False})


def test_a_run_with_gpus_is_saved_and_read(tmp_path: Path) -> None:
    programs = script(("cpu0", GpuMirror(MM, "gpu0", A, PAGE_SIZE)), ("gpu0", job(A)))
    spec = RunSpec("gpus", gpu_world(mirrors=()), 1, Script(tuple(programs))).save(tmp_path)
    again = RunSpec.load(tmp_path)
    assert again.world == spec.world
    assert [list(p.steps) for p in again.programs()] == [list(p.steps) for p in programs]


@pytest.mark.parametrize("driver", DRIVERS)
def test_independent_deliveries_commute(driver: str) -> None:
    race = find("E15")
    world = race.run("v6.6").world
    of = World(kernel=gpu_world(driver).kernel, parts=(Gpu("gpu0", "cpu1", (MM,)),))
    assert of.parts == world.parts
    programs = (
        program("cpu0", op.Mmap(MM, A, PAGE_SIZE, True, True), touch(A),
                op.MadviseDontneed(MM, A, PAGE_SIZE), GpuUnmirror(MM, "gpu0")),
        program("gpu0", job(A, True, 1), job(A)),
    )  # fmt: skip
    assert commuting_pairs(of, programs, 40) >= 20


def test_a_mixed_run_with_gpus_holds() -> None:
    workload = Mixed(MixedOptions(gpus=1, operations=12))
    for driver in DRIVERS:
        of = workload.world(gpu_world(driver).kernel)
        ran = Ran(of, list(workload.programs(of, 1)), 1)
        assert ran.rules == set()
        assert any(ran.loaded.get(f"gpu0/{n}") for n in range(12))
