"""``mremap`` of whole page tables: what the entries say, and who may hold on to them."""

from __future__ import annotations

import random
from types import SimpleNamespace

import msgspec
import pytest

from mmurace.broker.programs import Program, Step
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.page_table import entries_below
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.messages import GuestTouch
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.world import World
from mmurace.protocol import pte as ptes
from mmurace.protocol.errors import UserError
from mmurace.protocol.messages import program as op
from tests.test_direct_reclaim import run
from tests.test_independence import commuting_pairs
from tests.worlds import page

MM = "mm0"
TABLE = page(8)
"""What a leaf table of eight entries maps."""
SLOTS = 5


def world(release: str, arch: str = "x86", unit: bool = True, **switches: object) -> World:
    """Three CPUs, a guest, and a device behind an IOMMU."""
    return World(
        kernel=preset(release, arch, switches),
        cpus=("cpu0", "cpu1", "cpu2"),
        parts=(
            *((Unit("iommu0", ("device0",), (MM,), "cpu1", pwc=True),) if unit else ()),
            Vm("kvm0", ("vcpu0",), MM, (Slot(0, 8 * SLOTS, 0),)),
        ),
        frames=64,
        gather_batch=3,
        evict_one_in=20,
    )


def _step(draw: random.Random) -> op.Operation:
    """A move of a table or of a part of one, or something that takes entries away meanwhile."""
    old, new = draw.sample(range(SLOTS), 2)
    at = page(draw.randrange(8 * SLOTS))
    way = draw.randrange(10)
    if way < 3:
        return op.Mremap(MM, old * TABLE, TABLE, new * TABLE, TABLE)
    if way == 3:
        return op.Mremap(MM, old * TABLE, page(3), new * TABLE, page(3))
    if way < 6:
        file = draw.choice(("data", ""))
        return op.Mmap(MM, old * TABLE, TABLE, True, True, file, 0, bool(file))
    if way == 6:
        return op.Truncate("data", page(draw.choice((0, 4, 8))))
    if way == 7:
        return op.MigratePages(MM, at, page(1))
    return op.Kswapd(2) if way == 8 else op.MadviseFree(MM, old * TABLE, TABLE)


def programs(seed: int, unit: bool = True) -> tuple[Program, ...]:
    """One thread that moves, one that touches, kswapd and truncation, a device and a guest."""
    draw = random.Random(seed)
    mover = [op.Mmap(MM, 0, SLOTS * TABLE, True, True), *(_step(draw) for _ in range(20))]
    places = [page(draw.randrange(8 * SLOTS)) for _ in range(40)]
    touch = [op.Touch(MM, at, n % 2 > 0, n) for n, at in enumerate(places)]
    others = [_step(draw) for _ in range(15)]
    daemon = [o for o in others if isinstance(o, (op.Truncate, op.MigratePages, op.Kswapd))]
    device = [Dma(MM, at, n % 2 > 0, n) for n, at in enumerate(places[:20])] if unit else []
    guest = [GuestTouch(at, n % 2 > 0, n) for n, at in enumerate(places[20:])]
    asked: tuple[tuple[str, list[op.Operation]], ...] = (
        ("cpu0", mover), ("cpu1", [*touch]), ("cpu2", [*daemon]), ("device0", [*device]),
        ("vcpu0", [*guest]),
    )  # fmt: skip
    return tuple(Program(name, name, [Step(o) for o in own]) for name, own in asked if own)


@pytest.mark.parametrize(
    ("release", "arch", "unit"),
    [("v6.6.5", "x86", True), ("v6.6.5", "arm64", True), ("v6.2", "x86", False),
     ("v6.2", "arm64", False)],
)  # fmt: skip
def test_moves_beside_everything_else(release: str, arch: str, unit: bool) -> None:
    moved = 0
    for seed in range(8):
        here = world(release, arch, unit)
        kernel = here.kernel.replace(batched_pending_flush="flush_tlb_mm")
        here = msgspec.structs.replace(here, kernel=kernel)
        oracle, ending, _, _ = run(here, programs(seed, unit), seed)
        assert ending.complete, ending.waiting
        assert not oracle.violations, [v.text() for v in oracle.violations]
        moved += oracle.statistics.covered.get("table_moved", 0)
    assert moved > 8


def one_move(
    length: int, to: int, release: str = "v6.6.5", arch: str = "x86", **switches: object
) -> tuple[int, ...]:
    """Move some of eight pages with content: tables moved as one, and what is read behind."""
    steps: list[op.Operation] = [
        op.Mmap(MM, 0, TABLE, True, True),
        *(op.Touch(MM, page(n), True, 50 + n) for n in range(8)),
        op.Kswapd(2),
        op.Mremap(MM, 0, length, to, length),
        *(op.Touch(MM, to + at, False) for at in range(0, length, page(1))),
        op.Munmap(MM, to, length),
    ]
    here = World(kernel=preset(release, arch, switches), cpus=("cpu0", "cpu1"))
    program = Program("cpu0", "cpu0", [Step(o) for o in steps])
    oracle, ending, _, read = run(here, (program,), 1)
    assert ending.complete
    assert not oracle.violations
    return (oracle.statistics.covered.get("table_moved", 0), *read)


def test_a_table_moves_as_one_where_both_places_are_aligned() -> None:
    whole = (*range(50, 58),)
    assert one_move(TABLE, 2 * TABLE) == (1, *whole)
    assert one_move(TABLE, 2 * TABLE, have_move_pmd=False) == (0, *whole)
    assert one_move(TABLE, 2 * TABLE, "v5.8", "arm64") == (0, *whole)
    assert one_move(TABLE, 2 * TABLE + page(1)) == (0, *whole)
    assert one_move(page(4), 2 * TABLE) == (0, *whole[:4])


def test_a_table_is_not_moved_onto_one_that_is_in_use() -> None:
    steps: list[op.Operation] = [
        op.Mmap(MM, 0, TABLE, True, True),
        op.Touch(MM, 0, True, 50),
        op.Mmap(MM, 2 * TABLE, TABLE + page(1), True, True),
        op.Touch(MM, 2 * TABLE, True, 60),
        op.Touch(MM, 3 * TABLE, True, 61),
        op.Mremap(MM, 0, TABLE, 2 * TABLE + page(1), TABLE),
        op.Touch(MM, 2 * TABLE, False),
        op.Touch(MM, 2 * TABLE + page(1), False),
    ]
    here = World(kernel=preset("v6.6.5"), cpus=("cpu0",))
    oracle, ending, _, read = run(here, (Program("cpu0", "cpu0", [Step(o) for o in steps]),), 1)
    assert ending.complete
    assert not oracle.violations
    assert read == [60, 50]
    assert "table_moved" not in oracle.statistics.covered


def test_a_kernel_that_flushes_later_moves_no_tables() -> None:
    with pytest.raises(UserError, match=r"^k: have_move_pmd contradicts mremap_cpu_flush = at_end"):
        preset("v4.15", "x86", {"have_move_pmd": True, "mremap_cpu_flush": "at_end"}, "k")


def test_independent_deliveries_commute() -> None:
    assert commuting_pairs(world("v6.6.5"), programs(3), 40) >= 20


def test_a_table_that_was_overwritten_leads_nowhere_but_down() -> None:
    """A store through a stale translation may leave an entry that leads back up."""
    leaf = SimpleNamespace(level=0, words={3: ptes.make(7, ptes.PRESENT)})
    top = SimpleNamespace(level=1, words={0: ptes.make(1, ptes.PRESENT)})
    top.words[1] = ptes.make(0, ptes.PRESENT)  # itself
    top.words[2] = ptes.make(9, ptes.PRESENT)  # beyond memory
    assert list(entries_below([top, leaf], 0)) == [(1, 3)]
