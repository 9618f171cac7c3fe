"""The ways to get one check wrong are told apart by what they break."""

from __future__ import annotations

from mmurace.explorer.run.session import simulate
from mmurace.scenarios.catalogue import find

SEEDS = 5


def broken(kernel: str, seed: int) -> frozenset[tuple[str, int]]:
    """Rules S4 and S10 with the page of the shadow entry that broke them."""
    verdict = simulate(find("E12").run(kernel, seed)).verdict
    return frozenset(
        (v.rule, v.address) for v in verdict.violations if v.rule == "S10" or v.cache == "spte"
    )


def test_every_way_to_retry_wrongly_breaks_something_else() -> None:
    names = [c.name for c in find("E12").kernels if c.expect.verdict == "violated"]
    of = {name: {broken(name, seed) for seed in range(SEEDS)} for name in names}
    for name, seen in of.items():
        others = set().union(*(sets for other, sets in of.items() if other != name))
        assert not seen & others, name


def test_what_each_breaks_first_differs() -> None:
    expected = [c.expect for c in find("E12").kernels if c.expect.verdict == "violated"]
    told = {(e.rule, e.agent, e.cache, e.address) for e in expected}
    assert len(told) == len(expected)
