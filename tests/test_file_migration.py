"""Migration of pages of files: the page cache has another frame, with all that was stored."""

from __future__ import annotations

from typing import Any

import pytest

from mmurace.nodes.kernel import migrate
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.memory import FrameCopy
from mmurace.protocol.records import FilePageMigrated, FrameFreed
from tests.file_programs import FILE, KERNELS, MM, OTHER, file_world
from tests.test_file_reclaim import BEGIN, KSWAPD, READ, STORES, count, values
from tests.test_madvise_free import one_after_the_other, run
from tests.worlds import page

MIGRATE = ("cpu2", op.MigratePages(OTHER, 0, page(1)))


@pytest.mark.parametrize("stores", STORES)
@pytest.mark.parametrize(("release", "arch", "switches"), KERNELS)
def test_what_was_stored_is_in_the_new_page_and_then_on_the_disk(
    release: str, arch: str, switches: dict[str, object], stores: str
) -> None:
    """Before it is reclaimed and afterwards, and the page that it was in is free."""
    steps = (*BEGIN, READ, *STORES[stores], MIGRATE, READ, KSWAPD, READ)
    world = file_world(release, arch, switches)
    oracle, records, complete = run(world, one_after_the_other(*steps))
    assert complete
    assert not oracle.violations, [v.text() for v in oracle.violations]
    assert values(records)[-2:] == [9, 9]
    (moved,) = (r for r in records if isinstance(r, FilePageMigrated))
    assert FrameFreed(moved.old) in records


def test_it_stays_where_it_is_while_somebody_has_it_pinned() -> None:
    pinned = ("cpu1", op.PinnedAccess(MM, 0, True, 9))
    for seed in range(40):
        programs = (
            *one_after_the_other(*BEGIN, READ),
            *one_after_the_other(pinned, prefix="a"),
            *one_after_the_other(MIGRATE, READ, prefix="b"),
        )
        oracle, _, complete = run(file_world("v6.6.5", "x86", {}), programs, seed)
        assert complete
        assert not oracle.violations, [v.text() for v in oracle.violations]


def test_a_page_that_forgets_that_it_is_dirty_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def copy(source: int, target: int, _: Any) -> FrameCopy:
        return FrameCopy(source, target, False)

    monkeypatch.setattr(migrate, "FrameCopy", copy)
    unmap = ("cpu0", op.Munmap(MM, 0, page(2)))
    steps = (*BEGIN, *STORES["cpu"], unmap, READ, MIGRATE, KSWAPD, READ)
    oracle, records, _ = run(file_world("v6.6.5", "x86", {}), one_after_the_other(*steps))
    assert count(records, FilePageMigrated) == 1
    assert {v.rule for v in oracle.violations} & {"S9", "S16"}


def test_a_file_that_two_processes_share_is_not_private_memory_afterwards() -> None:
    store = ("cpu2", op.Touch(OTHER, 0, True, 5))
    read = ("cpu0", op.Touch(MM, 0, False))
    steps = (*BEGIN, READ, *STORES["cpu"], MIGRATE, store, read, ("cpu0", op.Writeback(FILE)))
    oracle, records, _ = run(file_world("v6.6.5", "x86", {}), one_after_the_other(*steps))
    assert values(records)[-1] == 5
    assert not oracle.violations, [v.text() for v in oracle.violations]
