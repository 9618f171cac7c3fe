"""Why a schedule fails: the interleaving, the orders that decide it, what was owed, what cures it.

Nothing here is a template of a known race.  Orders are found by reversing every immediate race of
the run and playing what comes of it; the deciding swap by turning a passing run into the failing
one, one adjacent pair at a time; the cure by playing the same schedule, then others, on every other
kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mmurace.explorer.exhaustive.reversible import Order
from mmurace.explorer.explain.cures import Cure, cures_of
from mmurace.explorer.explain.deaths import Fate, death_rows, fates
from mmurace.explorer.explain.interleaving import Row, setup_of, timeline
from mmurace.explorer.explain.missed import Missed, missed_by, owes_invalidation
from mmurace.explorer.explain.places import Spot, spot_of
from mmurace.explorer.run.schedule_file import Loaded
from mmurace.explorer.shrink.attempts import completions
from mmurace.explorer.shrink.case import Case, Target
from mmurace.explorer.shrink.play import How, Moment, Played, play
from mmurace.oracle.violation import Violation
from mmurace.protocol.errors import EmulatorError, UserError

PASSING_TRIES: Final = 200


@dataclass(frozen=True, slots=True)
class Ordering:
    """``early`` before ``late``: without it the violation does not happen."""

    early: Spot
    late: Spot
    runs: int
    """Completions that were run with the two the other way round; none had the violation."""


@dataclass(frozen=True, slots=True)
class Swap:
    """Two neighbours: as here the run fails, the other way round it passes."""

    first: Spot
    second: Spot
    runs: int
    """Runs that the search took."""


@dataclass(slots=True)
class Explanation:
    """All parts."""

    case: Case
    target: Target
    violation: Violation
    rows: list[Row]
    setup: list[str]
    deliveries: int
    switches: int
    orderings: list[Ordering]
    races: int
    """Immediate races that were reversed."""
    deaths: list[Fate]
    swap: Swap | None
    missed: Missed
    cures: list[Cure]
    contradictory: int
    """Other values that the kernel's remaining switches rule out."""


def explain(
    loaded: Loaded,
    tick: Callable[[str], None] = lambda _: None,
    passing_tries: int = PASSING_TRIES,
) -> Explanation:
    """Explain the violation of a case (best: a minimised one).  Raises ``UserError``."""
    case, target = replace(loaded.case, order=loaded.played.order), loaded.target
    failing = play(case, How(target, keep=True))
    violation = failing.found
    if violation is None:
        raise UserError("schedule", f"does not violate {target.text()}", "a schedule that does")
    case = replace(case, order=failing.order, deaths=failing.deaths)
    tick("orders")
    order = Order(failing.moments)
    races = _races(order, failing.moments)
    orderings, passing = _necessary(case, target, order, races)
    tick("the deciding swap")
    passing = passing or _passing(case, target, passing_tries)
    swap = None if passing is None else _Path(case, target, failing, passing).search()
    tick("kernels")
    cures, contradictory = cures_of(case, target)
    whole = play(case, How(target, stop=False, keep=True)).moments
    last = failing.moments[-1].n if failing.moments else 0
    missed = missed_by(case, violation, whole, last)
    after = whole[len(failing.moments) :]
    shown = {row.operation for row in timeline(case, violation, failing.moments)}
    orderings = [o for o in orderings if _among(shown, o.early, o.late)]
    swap = swap if swap is not None and _told(swap, shown, failing, missed) else None
    deaths = fates(case, target, failing.moments)
    named = _spoken_of(orderings, swap, missed if owes_invalidation(violation) else None)
    named |= {fate.after.name for fate in deaths if fate.after is not None}
    rows = timeline(case, violation, failing.moments, after, named)
    rows = sorted([*rows, *death_rows(case, failing)], key=lambda row: row.n)
    return Explanation(
        case, target, violation, rows, setup_of(failing.moments, rows), *failing.cost, orderings,
        len(races), deaths, swap, missed, cures, contradictory,
    )  # fmt: skip


def _told(swap: Swap, shown: Collection[str], failing: Played, missed: Missed) -> bool:
    """Whether a swap is about what is told: before the violation, or the flush that came late."""
    known = {*failing.order, *(spot.name for spot in missed.spots())}
    return _among(shown, swap.first, swap.second) and {swap.first.name, swap.second.name} <= known


def _among(operations: Collection[str], *spots: Spot) -> bool:
    """Whether these are steps of what is told; what only prepared the ground decides nothing."""
    return all(spot.operation in operations for spot in spots)


def _spoken_of(
    orderings: Sequence[Ordering], swap: Swap | None, missed: Missed | None
) -> frozenset[str]:
    """Names of the deliveries of which an explanation speaks."""
    spots = [spot for o in orderings for spot in (o.early, o.late)]
    spots += [] if swap is None else [swap.first, swap.second]
    spots += [] if missed is None else missed.spots()
    return frozenset(spot.name for spot in spots)


# ---- necessary orders --------------------------------------------------------------------------


def _races(order: Order, moments: Sequence[Moment]) -> list[tuple[int, int]]:
    """Immediate races between different threads."""
    return [
        (race.first, race.second)
        for race in order.races()
        if moments[race.first].envelope.id.partition("/")[0]
        != moments[race.second].envelope.id.partition("/")[0]
    ]


def _necessary(
    case: Case, target: Target, order: Order, races: Sequence[tuple[int, int]]
) -> tuple[list[Ordering], Played | None]:
    """The races that decide, and a passing run that was met on the way."""
    found: list[Ordering] = []
    passing: Played | None = None
    for first, second in races:
        early, late = order.moments[first], order.moments[second]
        other = replace(case, order=order.reversed_order(first, second))
        passed: list[Played] = []
        hold = (early.name, late.name)
        for played in completions(other, target, early.name, hold):
            if not _kept(played, hold):
                continue
            if played.found is not None:
                passed.clear()
                break
            passed.append(played)
        if passed:
            passing = passed[0]  # of the last one: it has most in common with the failing run
            found.append(Ordering(spot_of(early, case), spot_of(late, case), len(passed)))
    return found, passing


def _kept(played: Played, hold: tuple[str, str]) -> bool:
    """Whether the late one came and the early one, if at all, after it."""
    early, late = hold
    if late not in played.order:
        return False
    return early not in played.order or played.order.index(late) < played.order.index(early)


# ---- the deciding swap -------------------------------------------------------------------------


def _passing(case: Case, target: Target, tries: int) -> Played | None:
    """Some run of the same programs without the violation."""
    for seed in range(tries):
        played = play(replace(case, order=()), How(target, seed=seed))
        if played.found is None:
            return played
    return None


class _Path:
    """The way from a passing run to a failing one: each step puts one delivery in its place.

    Hermit's schedule search does the same for threads: bisect over the steps, then over the
    places that the deciding delivery passes on its way.
    """

    def __init__(self, case: Case, target: Target, failing: Played, passing: Played) -> None:
        self.case, self.target = case, target
        self.failing, self.passing = failing, passing
        self.runs = 0

    def search(self) -> Swap | None:
        """The swap; None if even the two ends do not differ when played from here."""
        last = len(self.failing.order)
        if self._fails(self._step(0)) or not self._fails(self._step(last)):
            return None
        at = _bisect(0, last, lambda k: self._fails(self._step(k)))
        return self._within(at - 1)

    def _step(self, count: int) -> tuple[str, ...]:
        """The failing run's first ``count``, then the passing run's rest."""
        head = self.failing.order[:count]
        placed = set(head)
        return (*head, *(name for name in self.passing.order if name not in placed))

    def _within(self, count: int) -> Swap | None:
        """``failing[count]`` moves to its place: over whom does it decide?"""
        head, moved = self.failing.order[:count], self.failing.order[count]
        base = self._step(count)[count:]
        rest = tuple(name for name in base if name != moved)
        last = base.index(moved) if moved in base else len(rest)

        def at(back: int) -> tuple[str, ...]:
            place = last - back
            return (*head, *rest[:place], moved, *rest[place:])

        if self._fails(at(0)) or last == 0:
            return None
        back = _bisect(0, last, lambda k: self._fails(at(k)))
        return self._swap(moved, rest[last - back], at(back))

    def _swap(self, first: str, second: str, order: tuple[str, ...]) -> Swap | None:
        played = play(replace(self.case, order=order), How(self.target, stop=False, keep=True))
        there = {moment.name: moment for moment in played.moments}
        if first not in there or second not in there:
            return None
        one, two = (spot_of(there[name], self.case) for name in (first, second))
        return Swap(one, two, self.runs)

    def _fails(self, order: tuple[str, ...]) -> bool:
        self.runs += 1
        try:
            return play(replace(self.case, order=order), How(self.target)).found is not None
        except EmulatorError:
            return False


def _bisect(passes: int, fails: int, failing: Callable[[int], bool]) -> int:
    """Some k with ``failing(k)`` and not ``failing(k - 1)``; the ends are as their names say."""
    while fails - passes > 1:
        middle = (passes + fails) // 2
        if failing(middle):
            fails = middle
        else:
            passes = middle
    return fails
