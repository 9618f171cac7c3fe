"""The likely mistakes of a driver with an interval notifier: each is found, and named in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmurace.broker.schedules import RandomWalk
from mmurace.explorer.run.session import simulate
from mmurace.explorer.sample.strategies import Pos
from mmurace.report.in_words import closing
from mmurace.scenarios.catalogue import find
from tests.test_explain_rows import found, texts

MISTAKES = [
    ("E15", "no-retry-check", "mmu_interval_read_retry has to be asked before it is installed"),
    ("E15", "check-before-lock", "has to be asked when the driver's lock is held, not before"),
    ("E15", "set-seq-forgotten", "its callback has to call mmu_interval_set_seq"),
    ("E15", "unmap-not-waited-for", "its callback has to wait until the device"),
    ("E15", "fence-not-waited-for", "its callback has to wait until the device"),
    ("E16", "frees-first", "before the removal has returned"),
    ("E16", "removes-under-lock", "waits for GpuUnmirror at cpu1 > IntervalWait at memory holding"),
    ("E18b", "locks-may-sleep", "must not block: try, or give up"),
    ("E18b", "locks", "waited for where nobody may block"),
    ("E15f", "signals-under-lock", "FenceWait at gpu0 holding MmapLock of memory, DriverLock"),
]


@pytest.mark.parametrize(("race", "kernel", "words"), MISTAKES)
def test_a_mistake_is_named_in_words_that_say_what_to_change(
    race: str, kernel: str, words: str
) -> None:
    assert words in closing(found(race, kernel))


@pytest.mark.parametrize(("race", "kernel", "_words"), MISTAKES)
def test_a_mistake_is_found_by_chance_in_a_few_schedules(
    race: str, kernel: str, _words: str
) -> None:
    """Without its recipe."""
    spec = replace(find(race).run(kernel, 1), chaos=None)
    rule = find(race).kernel_case(kernel).expect.rule
    for seed in range(150):
        outcome = simulate(spec, schedule=Pos(seed) if seed % 2 else RandomWalk(seed))
        if any(v.rule in (rule, "S4") for v in outcome.verdict.violations):
            return
    pytest.fail(f"{race} {kernel} was not found")


def test_the_rows_of_a_missing_check_are_the_steps_of_the_loop() -> None:
    told = texts(found("E15", "check-before-lock"))
    steps = (
        "cpu1 mmu_interval_read_retry: the sequence is 1",
        "cpu0 mmu_interval_set_seq(3)",
        "cpu0 mn_itree_inv_end",
    )
    assert all(step in told for step in steps), told
