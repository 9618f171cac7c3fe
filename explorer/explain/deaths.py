"""What an explanation says about deaths: when they came, and whether they matter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mmurace.broker.kills import last_operation
from mmurace.explorer.explain.interleaving import Row
from mmurace.explorer.explain.places import Spot, spot_of
from mmurace.explorer.shrink.attempts import completions
from mmurace.explorer.shrink.case import Case, Target
from mmurace.explorer.shrink.play import Moment, Played


@dataclass(frozen=True, slots=True)
class Fate:
    """A death of the run, and how it goes without."""

    node: str
    operation_kind: str
    """What the kernel does about it."""
    after: Spot | None
    """The delivery after which it began; None: before any."""
    runs: int
    """Runs without it that were tried; 0 if one had the violation."""
    necessary: bool


def fates(case: Case, target: Target, moments: Sequence[Moment]) -> list[Fate]:
    """Each death of a case left out, all else as it was."""
    there = {moment.name: moment for moment in moments}
    kinds = case.kinds()
    found = []
    for death in case.deaths:
        without = replace(case, deaths=tuple(d for d in case.deaths if d != death))
        passed = _passed(completions(without, target, death.after))
        kind = kinds.get(last_operation(death.node), "")
        spot = spot_of(there[death.after], case) if death.after in there else None
        found.append(Fate(death.node, kind, spot, passed, passed > 0))
    return found


def _passed(runs: Iterable[Played]) -> int:
    """How many runs there are; 0 if one of them has the violation."""
    passed = 0
    for played in runs:
        if played.found is not None:
            return 0
        passed += 1
    return passed


def death_rows(case: Case, failing: Played) -> list[Row]:
    """Deaths in the columns of those who die."""
    kinds = case.kinds()
    rows = []
    for death in case.deaths:
        operation = last_operation(death.node)
        begun = failing.begun[death.node]
        gone = failing.gone.get(death.node, begun)
        moments = {"Killed": begun} | ({"Gone": gone} if gone > begun else {})
        rows += [
            Row(n, death.node, word, operation, kinds.get(operation, ""))
            for word, n in moments.items()
        ]
    return rows
