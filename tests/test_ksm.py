"""KSM: pages of equal content become one, which nobody writes to, whatever runs beside it."""

from __future__ import annotations

import random

import pytest

from mmurace.broker.programs import Program, Step
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.kvm.messages import GuestTouch
from mmurace.nodes.world import World
from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from mmurace.protocol.messages import program as op
from tests.file_programs import KERNELS, file_world
from tests.observed import Run, moments, observe
from tests.worlds import MM, page, small_world

RELEASES = ("v4.12", "v5.8", "v5.10", "v5.18", "v6.2", "v6.6.5")


def run_of(world: World, steps: list[op.Operation]) -> Run:
    """One thread, one operation after the other."""
    return observe(world, [Program("cpu0", "cpu0", [Step(one) for one in steps])], 1)


def merged(run: Run) -> int:
    """Pages that were replaced."""
    points = [m.record.point for m in moments(run) if isinstance(m.record, r.Coverage)]
    return points.count("ksm_merged")


def entries(run: Run) -> dict[tuple[str, int], int]:
    """Leaf entries at the end."""
    changes = [m.record for m in moments(run) if isinstance(m.record, r.PteChange)]
    return {(c.mm, c.address): c.new for c in changes}


def alike(pages: int, value: int = 7) -> list[op.Operation]:
    """So many pages of one content."""
    return [
        op.Mmap(MM, 0, page(pages), True, True),
        *(op.Touch(MM, page(number), True, value) for number in range(pages)),
    ]


@pytest.mark.parametrize("release", RELEASES)
def test_pages_of_equal_content_become_one_that_is_copied_by_who_stores(release: str) -> None:
    scan = op.KsmScan(MM, 0, page(3))
    stores = [op.Touch(MM, page(number), True, 8) for number in range(2)]
    reads = [op.Touch(MM, page(number), False) for number in range(3)]
    world = small_world(release)
    before = run_of(world, [*alike(3), op.Touch(MM, page(2), True, 9), scan])
    assert not before.violations
    assert merged(before) == 1
    first, second, third = (entries(before)[MM, page(number)] for number in range(3))
    assert ptes.frame_of(first) == ptes.frame_of(second) != ptes.frame_of(third)
    assert not (first | second) & (ptes.WRITE | ptes.DIRTY)
    assert third & ptes.WRITE, "nobody has to do with what is like no other page"
    after = run_of(world, [*alike(3), op.Touch(MM, page(2), True, 9), scan, *stores, *reads])
    assert not after.violations
    one, other = (ptes.frame_of(entries(after)[MM, page(number)]) for number in range(2))
    assert one != other


def test_a_page_that_somebody_has_a_reference_to_is_left_alone() -> None:
    undone = 0
    for seed in range(12):
        setup = alike(2)
        pin = op.PinnedAccess(MM, page(1), True, 7)
        scan = op.KsmScan(MM, 0, page(2))
        run = observe(small_world("v6.6.5"), [
            Program("cpu0", "cpu0", [*(Step(one) for one in setup), *[Step(scan)] * 8]),
            Program("cpu1", "cpu1", [Step(pin, (f"cpu0/{len(setup) - 1}",)), *[Step(pin)] * 20]),
        ], seed)  # fmt: skip
        assert not run.violations, [v.text() for v in run.violations]
        points = [m.record.point for m in moments(run) if isinstance(m.record, r.Coverage)]
        undone += points.count("ksm_undone")
    assert undone


@pytest.mark.parametrize(("release", "arch", "switches"), KERNELS)
def test_nothing_is_lost_whatever_runs_beside_it(
    release: str, arch: str, switches: dict[str, object]
) -> None:
    replaced = 0
    for seed in range(6):
        run = observe(file_world(release, arch, switches), programs(seed), seed)
        assert not run.violations, [v.text() for v in run.violations]
        replaced += merged(run)
    assert replaced


def programs(seed: int) -> tuple[Program, ...]:
    """Threads, a device and a guest that store one value, now and then another, and daemons."""
    draw = random.Random(seed)

    def value() -> int:
        return 1 + (draw.random() < 0.2)

    def somewhere() -> int:
        return page(draw.randrange(4))

    def change() -> op.Operation:
        at = somewhere()
        return draw.choice((
            op.Touch(MM, at, True, value()), op.Touch(MM, at, True, value()),
            op.Touch(MM, at, False), op.MadviseDontneed(MM, at, page(1)),
            op.MadviseFree(MM, at, page(1)), op.MigratePages(MM, at, page(1)),
            op.Mprotect(MM, at, page(1), True, draw.random() < 0.7),
        ))  # fmt: skip

    scan, numa = op.KsmScan(MM, 0, page(4)), op.ChangeProtNuma(MM, 0, page(4))
    daemons: list[op.Operation] = [draw.choice((scan, scan, op.Kswapd(2), numa)) for _ in range(12)]
    others: dict[str, list[op.Operation]] = {
        "cpu1": [op.Touch(MM, somewhere(), draw.random() < 0.7, value()) for _ in range(20)],
        "cpu3": daemons,
        "device0": [Dma(MM, somewhere(), draw.random() < 0.7, value()) for _ in range(12)],
        "vcpu0": [GuestTouch(somewhere(), draw.random() < 0.7, value()) for _ in range(12)],
    }
    setup = alike(4, 1)
    first = [Step(one) for one in [*setup, *(change() for _ in range(16))]]
    ready = (f"cpu0/{len(setup) - 1}",)
    return (
        Program("cpu0", "cpu0", first),
        *(Program(node, node, [Step(steps[0], ready), *map(Step, steps[1:])])
          for node, steps in others.items()),
    )  # fmt: skip
