"""A driver that pins a page: its frame stays that of the page, whoever wants it meanwhile."""

from __future__ import annotations

import pytest

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program, Step
from mmurace.broker.simulator import Simulator
from mmurace.explorer.sample.explore import Options, explore
from mmurace.explorer.sample.strategies import Stall
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel import umem
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EFAULT
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.memory import Memory
from mmurace.nodes.world import World
from mmurace.oracle.sometimes import Covered
from mmurace.protocol import records as r
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.program import Operation
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script
from tests.test_scenarios import records_of
from tests.worlds import page

MM, CHILD = "mm0", "mm1"
KERNELS = [("v5.10", "x86"), ("v5.12", "arm64"), ("v6.2", "x86"), ("v6.6.5", "x86"),
           ("v6.6.88", "arm64")]  # fmt: skip
TAKERS: dict[str, list[Operation]] = {
    "reclaim": [op.Kswapd(2), op.Kswapd(2)],
    "migration": [op.MigratePages(MM, 0, page(1)), op.MigratePages(MM, 0, page(1))],
    "fork": [op.Fork(MM, CHILD), op.Touch(CHILD, 0, True, 5), op.Touch(MM, 0, True, 6)],
}
POINTS = {
    "reclaim": "anon_exclusive_pinned",
    "migration": "migrate_busy",
    "fork": "fork_copied_pinned",
}


def beside(
    taker: str, release: str = "v6.6.5", arch: str = "x86", **switches: object
) -> RunSpec:  # fmt: skip
    """A device stores to a page that its driver has pinned, while somebody else wants the page."""
    world = World(
        kernel=preset(release, arch, switches), cpus=("cpu0", "cpu1"), mms=(MM, CHILD),
        levels=2, entries=8, frames=48,
    )  # fmt: skip
    begin = [op.Mmap(MM, 0, page(2), True, True), op.Touch(MM, 0, True, 1)]
    dmas = [op.PinnedAccess(MM, 0, True, 7 + n) for n in range(3)]
    programs = (
        Program("cpu0", "cpu0", [Step(one) for one in (*begin, *dmas)]),
        Program("cpu1", "cpu1", [Step(one, ("cpu0/1",)) for one in TAKERS[taker]]),
    )
    return RunSpec("pins", world, 0, Script(programs), sometimes=(Covered(POINTS[taker]),))


@pytest.mark.parametrize(("release", "arch"), KERNELS)
@pytest.mark.parametrize("taker", TAKERS)
def test_nobody_is_blamed_for_a_page_that_is_pinned(taker: str, release: str, arch: str) -> None:
    found = explore(beside(taker, release, arch), Options(schedules=60))
    assert found.violated == 0, found.violations
    assert found.incomplete == 0


@pytest.mark.parametrize("taker", ["reclaim", "migration"])
def test_a_driver_that_goes_on_without_its_pin_is_found(taker: str) -> None:
    """Whether the frame is still free when its device stores, or somebody's again."""
    spec = beside(taker, umem_release="at_once")
    found = explore(spec, Options(schedules=400))
    assert "S1" in {violation.rule for violation in found.violations.values()}


@pytest.mark.parametrize("taker", TAKERS)
def test_who_wants_it_finds_the_pin(taker: str) -> None:
    assert explore(beside(taker), Options(schedules=60)).entered


def test_the_frame_is_that_of_the_page_as_long_as_it_is_pinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """v5.8 shares a pinned page with a child, and the parent's next store leaves it."""
    assert not moved_away("v6.6.5", monkeypatch)
    assert moved_away("v5.8", monkeypatch)


def moved_away(release: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the parent stores elsewhere after a fork beside the pin."""
    pinned: list[int] = []

    async def hold(cpu: Processor, frame: int, _dirty: bool) -> None:
        pinned.append(frame)

    monkeypatch.setattr(umem, "ib_umem_release", hold)
    steps = [op.Mmap(MM, 0, page(1), True, True), op.PinnedAccess(MM, 0, True, 7),
             op.Fork(MM, CHILD), op.Touch(MM, 0, True, 9)]  # fmt: skip
    world = beside("fork", release).world
    programs = (Program("cpu0", "cpu0", [Step(one) for one in steps]),)
    seen, complete = records_of(RunSpec("t", world, 0, Script(programs)))
    assert complete
    return pinned != [one.frame for one in seen if isinstance(one, r.Access) and one.value == 9]


def test_what_may_not_be_written_is_not_pinned() -> None:
    world = beside("fork").world
    steps = [op.Mmap(MM, 0, page(1), True, False), op.PinnedAccess(MM, 0, False)]
    programs = (Program("cpu0", "cpu0", [Step(one) for one in steps]),)
    seen, _ = records_of(RunSpec("t", world, 0, Script(programs)))
    assert [one.result for one in seen if isinstance(one, r.OpEnd)] == [0, -EFAULT]


@pytest.mark.parametrize("taker", TAKERS)
def test_every_pin_is_given_back_and_the_page_is_dirty(taker: str) -> None:
    """Also that of a lookup which is given up, as the entry has changed meanwhile."""
    spec = beside(taker)
    for seed in range(20):
        drivers = build_all(spec.world, seed)
        assert Simulator(drivers, Exchange(Feeder(spec.programs())), Stall(seed)).run().complete
        memory = drivers["memory"].node
        assert isinstance(memory, Memory)
        used = [frame for frame in memory.frames if frame.refs and frame.anon]
        assert not [frame for frame in memory.frames if frame.pins]
        assert any(frame.dirty for frame in used) or not used
