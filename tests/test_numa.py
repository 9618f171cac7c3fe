"""NUMA balancing: entries become inaccessible, no right changes, and who faults moves the page."""

from __future__ import annotations

import pytest

from mmurace.broker.programs import Program, Step
from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from mmurace.protocol.messages import program as op
from tests.file_programs import KERNELS, file_programs, file_world
from tests.observed import Run, moments, observe
from tests.worlds import MM, page, small_world

SCANS = (op.ChangeProtNuma(MM, 0, page(4)), op.Kswapd(2), op.MigratePages(MM, 0, page(4)))
FLUSHED = [("v4.19", "x86"), ("v5.12", "x86"), ("v5.15", "x86"), ("v6.6.5", "x86"),
           ("v6.6.88", "arm64")]  # fmt: skip


def by(run: Run, kind: str) -> list[r.PteChange]:
    """What operations of a kind have changed."""
    return [
        moment.record
        for moment in moments(run)
        if isinstance(moment.record, r.PteChange) and run.kinds.get(moment.op) == kind
    ]


def hint_faults(run: Run) -> int:
    """How many there were."""
    points = [m.record.point for m in moments(run) if isinstance(m.record, r.Coverage)]
    return points.count("numa_hint_fault")


@pytest.mark.parametrize(("release", "arch", "switches"), KERNELS)
def test_nothing_but_the_access_goes_whatever_runs_beside_it(
    release: str, arch: str, switches: dict[str, object]
) -> None:
    scanned = faults = 0
    for seed in range(4):
        here = file_world(release, arch, switches)
        run = observe(here, file_programs(seed, 20, SCANS, (0, 2, 8)), seed)
        assert not run.violations, [v.text() for v in run.violations]
        hidden = [c for c in by(run, "ChangeProtNuma") if c.new]
        assert all(c.new & ptes.PROTNONE and not c.new & ptes.PRESENT for c in hidden)
        assert all(not c.new & ptes.SPECIAL for c in hidden)
        scanned, faults = scanned + len(hidden), faults + hint_faults(run)
    assert scanned
    assert faults


def test_a_scan_passes_over_what_nobody_may_access_and_files_that_are_only_read() -> None:
    steps = [
        op.Mmap(MM, 0, page(1), True, True), op.Touch(MM, 0, True, 1),
        op.Mprotect(MM, 0, page(1), False, False),
        op.Mmap(MM, page(1), page(1), True, False, "data"), op.Touch(MM, page(1), False),
        op.ChangeProtNuma(MM, 0, page(2)),
    ]  # fmt: skip
    run = observe(small_world(), [Program("cpu0", "cpu0", [Step(one) for one in steps])], 1)
    assert not by(run, "ChangeProtNuma")


@pytest.mark.parametrize(("release", "arch"), FLUSHED)
@pytest.mark.parametrize("pending", [True, False])
def test_a_hint_fault_moves_the_page_and_keeps_the_right_to_write(
    release: str, arch: str, pending: bool
) -> None:
    """With and without ``mm_tlb_flush_pending`` in ``pte_accessible``: nobody is beside it."""
    steps = [
        op.Mmap(MM, 0, page(1), True, True), op.Touch(MM, 0, True, 1),
        op.ChangeProtNuma(MM, 0, page(1)), op.Touch(MM, 0, True, 2), op.Touch(MM, 0, False),
    ]  # fmt: skip
    world = small_world(release, arch, pending_is_accessible=pending)
    run = observe(world, [Program("cpu0", "cpu0", [Step(one) for one in steps])], 1)
    assert not run.violations
    assert hint_faults(run) == 1
    changes = [change for change in by(run, "Touch") if change.new & ptes.DIRTY]
    first, last = changes[0].new, changes[-1].new
    assert ptes.frame_of(first) != ptes.frame_of(last), "it has moved"
    assert ptes.permits(last, True)
    copied = [m.record for m in moments(run) if isinstance(m.record, r.FrameCopied)]
    assert [(c.source, c.target) for c in copied] == [(ptes.frame_of(first), ptes.frame_of(last))]


@pytest.mark.parametrize(("release", "flushes"), [("v5.12", True), ("v5.15", False)])
def test_who_flushes_when_nothing_is_owed_any_more(release: str, flushes: bool) -> None:
    """From v5.13 (b99a342d4f11) the migration clears an entry that no TLB holds."""
    steps = [
        op.Mmap(MM, 0, page(1), True, True), op.Touch(MM, 0, True, 1),
        op.ChangeProtNuma(MM, 0, page(1)), op.Touch(MM, 0, True, 2),
    ]  # fmt: skip
    other = Program("cpu1", "cpu1", [Step(op.Touch(MM, 0, True, 3), ("cpu0/1",))])
    program = Program("cpu0", "cpu0", [
        *(Step(one) for one in steps[:2]), Step(steps[2], ("cpu1/0",)), Step(steps[3]),
    ])  # fmt: skip
    run = observe(small_world(release), [program, other], 1)
    sent = [s for s in run.steps if s.kind == "FlushTlbIpi" and s.id.startswith("cpu0/3")]
    assert bool(sent) is flushes
