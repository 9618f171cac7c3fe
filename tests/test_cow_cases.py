"""A load makes an entry young and loses no dirty bit; a plain store in its place would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmurace.explorer.sample.explore import Exploration, Options, explore
from mmurace.nodes.kernel import pgtable
from mmurace.scenarios.catalogue import find
from tests.test_plain_stores import stores_what_it_loaded

CASES = Path(__file__).parent / "data" / "cases"
READ_FAULT = find(str(CASES / "false-s16-read-fault.toml"))
SCHEDULES = 250


def explored(race: str, kernel: str, recipe: bool) -> Exploration:
    """Many schedules of a case."""
    spec = find(str(CASES / f"{race}.toml")).run(kernel, 7)
    spec = spec if recipe else replace(spec, chaos=None)
    return explore(spec, Options(schedules=SCHEDULES))


@pytest.mark.parametrize("kernel", [case.name for case in READ_FAULT.kernels])
def test_a_load_loses_no_dirty_bit_without_the_recipe_either(kernel: str) -> None:
    found = explored("false-s16-read-fault", kernel, recipe=False)
    assert found.verdict().outcome == "held", found.verdict().reasons


@pytest.mark.parametrize("kernel", ["v6.6.5", "v6.6.88-arm64"])
def test_a_plain_store_for_a_load_loses_it(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgtable, "ptep_set_access_flags", stores_what_it_loaded)
    found = explored("false-s16-read-fault", kernel, recipe=True)
    assert "S16" in {v.rule for v in found.violations.values()}
