"""Whoever walks the rmap beside whoever moves entries: reclaim, migration, writeback, truncation
beside mremap, fork, exit and each other.

Correct kernels break no rule, and when all is over the rmap of every page says where it is mapped,
no migration entry is left, and nothing is locked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program, Step
from mmurace.broker.schedules import RandomWalk, Schedule
from mmurace.broker.simulator import Simulator
from mmurace.explorer.sample.strategies import Paces, Pos, Stall
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel import rmap
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.locking import anon_vma_lock_read, anon_vma_unlock_read
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.memory import Memory
from mmurace.nodes.page_table import entries_below
from mmurace.nodes.world import MEMORY, World
from mmurace.oracle.oracle import Oracle
from mmurace.protocol import pte as ptes
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.messages import memory as m
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages import swap as s
from mmurace.protocol.messages.base import Ack
from tests.file_programs import FILE
from tests.worlds import page

MM, CHILD = "mm0", "mm1"
TABLE = 8
"""Pages that a leaf table of these worlds maps."""
FLUSHES: dict[str, object] = {"batched_pending_flush": "flush_tlb_mm"}
KERNELS: list[tuple[str, str, dict[str, object]]] = [
    ("v6.6.5", "x86", {}),
    ("v6.6.5", "arm64", FLUSHES),
    ("v6.2", "arm64", {}),
    ("v5.12", "x86", {"move_pmd_rmap_locks": "always"}),
    ("v5.8", "x86", {"have_move_pmd": False}),
    ("v4.15", "x86", {"mremap_cpu_flush": "under_both_ptl"}),
]
"""Releases, cured of what their moves of entries and of tables are known for."""
Operations = Sequence[op.Operation]


def world(release: str, arch: str, switches: dict[str, object]) -> World:
    """A processor for who moves, one for who walks, and one that uses the pages."""
    return World(
        kernel=preset(release, arch, switches), cpus=("cpu0", "cpu1", "cpu2"), mms=(MM, CHILD),
        levels=2, entries=TABLE, frames=48, gather_batch=2,
    )  # fmt: skip


# ---- every walker beside every mover -------------------------------------------------------------

ANON: Operations = (
    op.Mmap(MM, 0, page(TABLE), True, True),
    op.Touch(MM, 0, True, 1), op.Touch(MM, page(1), True, 2),
)  # fmt: skip
MAPPED: Operations = (
    op.Mmap(MM, 0, page(TABLE), True, True, FILE, 0, True),
    op.Touch(MM, 0, True, 1), op.Touch(MM, page(1), True, 2),
)  # fmt: skip
WALKERS: dict[str, tuple[Operations, op.Operation]] = {
    "reclaim": (ANON, op.Kswapd(2)),
    "migration": (ANON, op.MigratePages(MM, 0, page(2))),
    "lazyfree": ((*ANON, op.MadviseFree(MM, 0, page(2))), op.Kswapd(2)),
    "reclaim of a file": (MAPPED, op.Kswapd(2)),
    "migration of a file": (MAPPED, op.MigratePages(MM, 0, page(2))),
    "writeback": (MAPPED, op.Writeback(FILE)),
    "truncation": (MAPPED, op.Truncate(FILE, 0)),
}
AWAY = page(2 * TABLE)
MOVERS: dict[str, Operations] = {
    "pages": (
        op.Mremap(MM, 0, page(2), AWAY, page(2)),
        op.Mmap(MM, 0, page(2), True, True), op.Touch(MM, 0, True, 5),
        op.Mremap(MM, AWAY, page(2), page(4), page(2)),
    ),
    "table": (
        op.Mremap(MM, 0, page(TABLE), AWAY, page(TABLE)),
        op.Mmap(MM, 0, page(2), True, True), op.Touch(MM, 0, True, 5),
        op.Mremap(MM, AWAY, page(TABLE), 0, page(TABLE)),
    ),
    "fork": (
        op.Fork(MM, CHILD), op.Touch(MM, 0, True, 5),
        op.Mremap(CHILD, 0, page(2), AWAY, page(2)), op.Touch(CHILD, AWAY, True, 6),
    ),
    "exit": (op.Fork(MM, CHILD), op.Exit(MM), op.Touch(CHILD, 0, True, 5), op.Exit(CHILD)),
    "migration": (op.Fork(MM, CHILD), op.MigratePages(CHILD, 0, page(2))),
}  # fmt: skip


def programs(begin: Operations, walk: op.Operation, move: Operations) -> tuple[Program, ...]:
    """cpu0 moves, cpu1 walks twice, cpu2 uses the pages."""
    after = (f"cpu0/{len(begin) - 1}",)
    uses = [op.Touch(MM, page(n % 2), n % 3 > 0, 10 + n) for n in range(4)]
    return (
        Program("cpu0", "cpu0", [Step(o) for o in (*begin, *move)]),
        Program("cpu1", "cpu1", [Step(walk, after), Step(walk)]),
        Program("cpu2", "cpu2", [Step(o, after) for o in uses]),
    )


def schedules(seed: int) -> Schedule:
    """One of several kinds."""
    return (RandomWalk, Pos, Stall, Paces)[seed % 4](seed)


def run(here: World, asked: tuple[Program, ...], seed: int) -> tuple[Oracle, Memory, bool]:
    """To its end: the oracle, memory, and whether everything was done."""
    oracle, drivers = Oracle(here), build_all(here, seed)
    exchange = Exchange(Feeder(asked))
    ending = Simulator(drivers, exchange, schedules(seed), oracle.observe).run(20_000)
    oracle.finish(ending)
    memory = drivers[MEMORY].node
    assert isinstance(memory, Memory)
    return oracle, memory, ending.complete


def misplaced(memory: Memory) -> list[str]:
    """Where rmap and page tables disagree, and what is left behind."""
    frames, here = memory.frames, Counter[tuple[int, str, int]]()
    left = [f"{lock} is held" for lock in memory.locks]
    for mm in memory.world.mms:
        for table, index in entries_below(frames, memory.world.pgd(mm)):
            pte, address = frames[table].words[index], frames[table].address + page(index)
            if ptes.is_migration(pte):
                left.append(f"{mm}:{address:#x} is a migration entry")
            elif ptes.pte_present(pte) and not pte & ptes.SPECIAL:
                here[ptes.frame_of(pte), frames[table].mm, address] += 1
    there = Counter((f, mm, at) for f, frame in enumerate(frames) for mm, at in frame.rmap)
    return left + [f"mapped, and the rmap does not say so: {x}" for x in here - there] + [
        f"in the rmap, and not mapped: {x}" for x in there - here
    ]  # fmt: skip


@pytest.mark.parametrize("mover", MOVERS)
@pytest.mark.parametrize("walker", WALKERS)
def test_every_walker_beside_every_mover(walker: str, mover: str) -> None:
    begin, walk = WALKERS[walker]
    for release, arch, switches in KERNELS:
        here = world(release, arch, switches)
        for seed in range(12):
            oracle, memory, complete = run(here, programs(begin, walk, MOVERS[mover]), seed)
            where = (release, arch, seed)
            assert complete, where
            assert [v.text() for v in oracle.violations] == [], where
            assert misplaced(memory) == [], where


# ---- one thing missing ---------------------------------------------------------------------------


def the_copy_is_not_locked(patch: pytest.MonkeyPatch) -> None:
    """cpu1, which migrates, does not lock the new page: to v5.8 its mappings decide on reuse."""
    lock, unlock = Memory.folio_trylock, Memory.folio_unlock

    def trylock(memory: Memory, message: s.FolioTrylock, envelope: Envelope) -> m.Flag:
        migrates = envelope.id.startswith("cpu1/")
        return m.Flag(True) if migrates else lock(memory, message, envelope)

    def unlock_if_held(memory: Memory, message: m.FolioUnlock, envelope: Envelope) -> Ack:
        held = ("folio_lock", message.frame) in memory.locks
        return unlock(memory, message, envelope) if held else Ack()

    patch.setattr(Memory, "folio_trylock", trylock)
    patch.setattr(Memory, "folio_unlock", unlock_if_held)


def places_are_looked_up_before_the_lock(patch: pytest.MonkeyPatch) -> None:
    """Each place that was in the rmap when the walk began, and no other."""

    async def rmap_walk(cpu: Processor, folio: int, file: str, visit: rmap.Visit) -> None:
        for place in (await cpu.mem(m.RmapWalk(folio))).places:
            await anon_vma_lock_read(cpu, place[0])
            await visit(place)
            await anon_vma_unlock_read(cpu, place[0])

    patch.setattr(rmap, "rmap_walk", rmap_walk)


@pytest.mark.parametrize(
    ("release", "mistake", "mover", "found"),
    [
        ("v5.8", the_copy_is_not_locked, "fork", "S6"),
        ("v6.6.5", places_are_looked_up_before_the_lock, "pages", "migration entry"),
        ("v6.6.5", places_are_looked_up_before_the_lock, "table", "migration entry"),
        ("v6.6.5", places_are_looked_up_before_the_lock, "fork", "migration entry"),
    ],
)
def test_what_is_missing_is_found(
    monkeypatch: pytest.MonkeyPatch, release: str, mistake: Callable[[pytest.MonkeyPatch], None],
    mover: str, found: str,
) -> None:  # fmt: skip
    mistake(monkeypatch)
    here = world(release, "x86", {})
    for seed in range(300):
        oracle, memory, _ = run(here, programs(*WALKERS["migration"], MOVERS[mover]), seed)
        wrong = [v.text() for v in oracle.violations] + misplaced(memory)
        if any(found in text for text in wrong):
            return
    pytest.fail(f"{found} was not found")
