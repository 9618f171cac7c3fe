"""Exhaustive searches of the catalogue's scopes: the bad kernel breaks, the good one never does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmurace.explorer.exhaustive.oracle_table import RULES
from mmurace.explorer.exhaustive.search import Budget, Exhaustion, explore_dpor, explore_stateful
from mmurace.explorer.run.outcome import INTERRUPTED
from mmurace.protocol.errors import UserError
from mmurace.report.exhaustion import exit_code
from mmurace.scenarios.catalogue import DIRECTORY, load_all, load_race
from mmurace.scenarios.spec import RunSpec

RACES = {name: race for name, race in load_all().items() if race.scopes}
BAD = [
    (name, case.name)
    for name, race in RACES.items()
    for case in race.kernels[: 1 if name != "E12" else None]
    if case.expect.verdict == "violated"
]
STANDS_FOR = {"L5": "S11"}
"""Rules that no state tells, and what is broken with them: whoever waits there may sleep there."""
QUICK = [("E01", "v6.6"), ("E02", "v6.6-arm64"), ("E09", "v6.6.5"), ("E12", "v6.2")]
"""Good kernels that are searched in a few seconds; ``benchmarks/exhaustive.py`` does them all."""


@pytest.mark.parametrize(("name", "kernel"), BAD)
def test_a_bad_kernel_is_violated_in_its_scope(name: str, kernel: str) -> None:
    spec = RACES[name].run_in_scope(kernel)
    found = explore_stateful(spec, Budget(executions_max=60_000))
    assert found.violation is not None
    rules = {violation.rule for violation in found.verdict.violations}
    rule = RACES[name].kernel_case(kernel).expect.rule
    assert STANDS_FOR.get(rule, rule) in rules


@pytest.mark.parametrize(("name", "kernel"), QUICK)
def test_a_good_kernel_is_held_in_every_state(name: str, kernel: str) -> None:
    found = explore_stateful(RACES[name].run_in_scope(kernel), Budget())
    assert found.exhaustive
    assert found.verdict.outcome == "held", found.verdict.reasons
    assert found.verdict.how.entered
    assert found.rules == RULES


def test_endless_denial_is_seen_where_it_happens() -> None:
    """Rule L6 depends on the release of a lock, which leaves no record."""
    spec = RACES["E02"].run_in_scope("v6.2-arm64")
    found = explore_stateful(spec, Budget())
    assert found.violation is not None
    assert len(found.violation.entries) < 500, "a whole execution, in which the device gives up"


def test_what_a_search_that_was_cut_says_is_left() -> None:
    """Cut after two thirds of its states, the estimate is of the size of the whole."""
    spec = RACES["E12"].run_in_scope("v6.2")
    whole = explore_stateful(spec, Budget())
    assert whole.estimate is None
    cut = explore_stateful(spec, Budget(executions_max=whole.states * 2 // 3))
    assert not cut.exhaustive
    assert cut.estimate is not None
    assert whole.states / 10 < cut.estimate < whole.states * 10


@pytest.mark.parametrize("engine", [explore_stateful, explore_dpor])
def test_ctrl_c_keeps_what_was_searched(engine: Callable[[RunSpec, Budget], Exhaustion]) -> None:
    asked = iter(range(600))

    def expired() -> bool:
        if next(asked, None) is None:
            raise KeyboardInterrupt
        return False

    found = engine(RACES["E12"].run_in_scope("v6.2"), Budget(expired=expired))
    assert found.interrupted
    assert not found.exhaustive
    assert found.deliveries > 0
    assert exit_code(found) == INTERRUPTED


def test_another_scope_of_a_race_is_searched_by_name() -> None:
    race = RACES["E01"]
    assert "vcpu1" in race.run_in_scope("v6.6", scope="two-vcpus").world.nodes()
    assert "vcpu1" not in race.run_in_scope("v6.6").world.nodes()
    with pytest.raises(UserError, match="two-vcpus"):
        race.run_in_scope("v6.6", scope="three-vcpus")


def test_both_engines_agree() -> None:
    spec = RACES["E02"].run_in_scope("v6.6-arm64")
    traces = explore_dpor(spec, Budget())
    assert traces.exhaustive
    assert traces.verdict.outcome == "held"


def test_a_scope_has_every_program_of_its_race() -> None:
    for race in RACES.values():
        for scope in race.scopes:
            assert {p.node for p in scope.programs} <= set(scope.world.nodes())
            assert scope.sometimes, race.id


def test_a_scope_for_an_unknown_kernel_is_refused(tmp_path: Path) -> None:
    text = (DIRECTORY / RACES["E12"].where).read_text(encoding="utf-8")
    path = tmp_path / "e12.toml"
    path.write_text(text.replace('kernels = ["second-range-replaces"]', 'kernels = ["none"]'))
    with pytest.raises(UserError, match=r"scope\[0\].kernels"):
        load_race(path)
