"""The oracle and a naive checker agree on random runs, good kernels and bad.

``benchmarks/second_opinion.py`` asks the same of as many runs as one has time for.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from mmurace.broker.schedules import RandomWalk
from mmurace.scenarios.catalogue import find
from tests.second_opinion import RULES
from tests.second_opinion.both import run
from tests.second_opinion.programs import draw, of_race

SEED = 4
RUNS = 200
READ_FAULT = str(Path(__file__).parent / "data" / "cases" / "false-s16-read-fault.toml")
BROKEN = [
    ("E01", "v5.7", "", {"S4", "O"}),
    ("E01", "v6.6", "a reload that lost is not asked for again", {"S1", "S4", "O"}),
    ("E05", "v6.2-quiet-end", "", {"O", "S1"}),
    ("E05d", "v6.6-own-range", "", {"O", "S3"}),
    ("E11c", "v6.6-own-range", "", {"O", "S9"}),
    ("E14", "v5.17", "", {"S4", "O"}),
    ("E30", "unlocks-early", "", {"S4"}),
    (READ_FAULT, "v6.6.5", "access flags are stored plainly", {"S16"}),
]
"""Races with a kernel, a mistake that it makes beside, and what is broken then."""
NAMES = [name for race, kernel, *_ in BROKEN for name in (race, kernel)]
JUDGES = sorted(Path(__file__).parent.glob("second_opinion/*.py"))
MAY_HEAR = ("both.py", "programs.py", "mistakes.py")
"""Those who make runs; the others only read them."""


@pytest.mark.parametrize("path", JUDGES, ids=lambda path: path.name)
def test_it_knows_nothing_of_the_oracle(path: Path) -> None:
    names = [
        name
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        )
    ]  # fmt: skip
    ours = [name for name in names if name.startswith(("mmurace", "tests"))]
    known = ("mmurace.protocol", "tests.second_opinion")
    assert path.name in MAY_HEAR or all(name.startswith(known) for name in ours)


@pytest.mark.parametrize(
    ("race", "kernel", "mistake", "rules"), BROKEN, ids=lambda p: p[-20:] if p in NAMES else ""
)
def test_both_find_what_is_broken(race: str, kernel: str, mistake: str, rules: set[str]) -> None:
    found: set[str] = set()
    for seed in range(12):
        drawn = of_race(find(race), kernel, RandomWalk(seed), seed, mistake=mistake)
        opinions = run(drawn)
        assert opinions.differences(whole=True) == (set(), set()), (race, kernel, seed)
        found |= {finding.rule for finding in opinions.second}
    assert rules <= found


def test_every_rule_is_among_them() -> None:
    assert set(RULES) == {rule for *_, rules in BROKEN for rule in rules}


def test_they_agree_on_random_runs() -> None:
    broken: Counter[bool] = Counter()
    for number in range(RUNS):
        opinions = run(draw(SEED, number))
        assert opinions.differences() == (set(), set()), (SEED, number)
        broken[bool(opinions.second)] += 1
    assert broken[True] > RUNS // 20
    assert broken[False] > RUNS // 2
