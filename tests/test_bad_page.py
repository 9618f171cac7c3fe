"""Rules Q4 and S8: what mm's own checks say, in a kernel with one thing missing, and in the same
programs without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program, Step
from mmurace.broker.simulator import Simulator
from mmurace.explorer.sample.strategies import Pos
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel import do_fault, memory
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.locking import folio_lock
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.memory import Memory
from mmurace.nodes.world import World
from mmurace.oracle.oracle import Oracle
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.messages import memory as m
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.base import Ack
from tests.file_programs import FILE
from tests.worlds import page

MM = "mm0"
ANON = (op.Mmap(MM, 0, page(4), True, True), op.Touch(MM, 0, True, 1))
SHARED = (op.Truncate(FILE, page(4)), op.Mmap(MM, 0, page(4), True, True, FILE, 0, True))
SCHEDULES = 2000
"""The rarest of these shows in one of five hundred."""
Programs = tuple[Sequence[op.Operation], op.Operation, op.Operation]
Patch = pytest.MonkeyPatch


async def _nothing(*_: object) -> None:
    return None


def tables_freed_beside_walks(patch: Patch) -> None:
    """``free_pgtables`` does not wait for who walks the reverse map."""
    for name in ("anon_vma_lock_write", "anon_vma_unlock_write"):
        patch.setattr(memory, name, _nothing)


def mapped_though_truncated(patch: Patch) -> None:
    """``filemap_page_mkwrite`` does not look whether the page is still the file's."""

    async def mkwrite(cpu: Processor, _file: str, frame: int) -> bool:
        await folio_lock(cpu, frame)
        return True

    patch.setattr(do_fault, "do_page_mkwrite", mkwrite)


def mapped_without_reference(patch: Patch) -> None:
    """``finish_fault`` takes none for the mapping."""
    patch.setattr(do_fault, "get_page", _nothing)


def mapped_without_rmap(patch: Patch) -> None:
    """``finish_fault`` does not count the mapping."""

    def nothing(_memory: Memory, _message: m.RmapAdd, _envelope: Envelope) -> Ack:
        return Ack()

    patch.setattr(Memory, "rmap_add", nothing)


CASES: dict[Callable[[Patch], None], tuple[str, str, Programs]] = {
    tables_freed_beside_walks: (
        "S8", "page-table page",
        (ANON, op.Munmap(MM, 0, page(4)), op.MigratePages(MM, 0, page(1))),
    ),
    mapped_though_truncated: (
        "Q4", "no file", (SHARED, op.Truncate(FILE, 0), op.Touch(MM, 0, True, 2)),
    ),
    mapped_without_reference: (
        "Q4", "reference",
        ((*SHARED, op.Touch(MM, 0, True, 2)), op.Munmap(MM, 0, page(4)), op.Truncate(FILE, 0)),
    ),
    mapped_without_rmap: (
        "Q4", "mapping", (ANON, op.Munmap(MM, 0, page(4)), op.Touch(MM, 0, False)),
    ),
}  # fmt: skip
"""Mistake -> rule, a word of the report, (what comes first, what one thread does, and another)."""


def judged(programs: Programs, seed: int) -> Oracle:
    """One schedule of two threads."""
    here = World(
        kernel=preset("v6.6.5", "x86"), cpus=("cpu0", "cpu1"), levels=3, entries=4, frames=32
    )
    begin, one, other = programs
    asked = (
        Program("cpu0", "cpu0", [Step(o) for o in (*begin, one)]),
        Program("cpu1", "cpu1", [Step(other, (f"cpu0/{len(begin) - 1}",))]),
    )
    oracle, exchange = Oracle(here), Exchange(Feeder(asked))
    simulator = Simulator(build_all(here, seed), exchange, Pos(seed), oracle.observe)
    oracle.finish(simulator.run(10_000))
    return oracle


@pytest.mark.parametrize("mistake", CASES)
def test_what_mm_checks_itself_is_judged(
    monkeypatch: Patch, mistake: Callable[[Patch], None]
) -> None:
    rule, word, programs = CASES[mistake]

    def found(seed: int) -> bool:
        violations = judged(programs, seed).violations
        return any(v.rule == rule and word in v.detail for v in violations)

    with monkeypatch.context() as patch:
        mistake(patch)
        shows = next(seed for seed in range(SCHEDULES) if found(seed))
    for seed in (shows, *range(200)):
        assert not judged(programs, seed).violations
