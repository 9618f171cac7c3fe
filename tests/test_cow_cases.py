"""Races of copy on write and of access flags: kernels that are right hold, v5.8 loses a store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmurace.explorer.sample.explore import Exploration, Options, explore
from mmurace.nodes.kernel import pgtable
from mmurace.scenarios.catalogue import find
from tests.test_plain_stores import stores_what_it_loaded

CASES = Path(__file__).parent / "data" / "cases"
ABA = find(str(CASES / "cow-aba.toml"))
READ_FAULT = find(str(CASES / "read-fault-over-dirty.toml"))
SCHEDULES = 250


def explored(race: str, kernel: str, recipe: bool, schedules: int = SCHEDULES) -> Exploration:
    """Many schedules of a case."""
    spec = find(str(CASES / f"{race}.toml")).run(kernel, 7)
    spec = spec if recipe else replace(spec, chaos=None)
    return explore(spec, Options(schedules=schedules))


@pytest.mark.parametrize("kernel", [c.name for c in ABA.kernels if c.expect.verdict == "held"])
def test_a_reference_forbids_the_reuse(kernel: str) -> None:
    """From v5.9; and from v5.19 an exclusive page is nobody else's."""
    found = explored("cow-aba", kernel, recipe=False)
    assert found.verdict().outcome == "held", found.verdict().reasons


def test_without_references_a_store_is_lost() -> None:
    """v5.8: ``reuse_swap_page`` counts entries, and the copy finds its entry as it was."""
    found = explored("cow-aba", "v5.8", recipe=False, schedules=1500)
    assert {v.rule for v in found.violations.values()} == {"S9"}


@pytest.mark.parametrize("recipe", [True, False])
@pytest.mark.parametrize("kernel", [case.name for case in READ_FAULT.kernels])
def test_a_load_loses_no_dirty_bit(kernel: str, recipe: bool) -> None:
    found = explored("read-fault-over-dirty", kernel, recipe)
    assert found.verdict().outcome == "held", found.verdict().reasons


@pytest.mark.parametrize("kernel", ["v6.6.5", "v6.6.88-arm64"])
def test_a_plain_store_for_a_load_loses_it(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgtable, "ptep_set_access_flags", stores_what_it_loaded)
    found = explored("read-fault-over-dirty", kernel, recipe=True)
    assert "S16" in {v.rule for v in found.violations.values()}
