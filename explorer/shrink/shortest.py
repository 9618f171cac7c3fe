"""Whether a shorter schedule exists: breadth-first over reversed races, within bounds.

From a complete run every race is reversed, from the runs that come of it again, until no new
trace appears (every trace of a finite program is reached so) or a bound is hit.  If none of all
traces has the violation after fewer deliveries, the schedule is shortest *for these operations in
this world, with the choices and losses as they were*, as far as footprints tell all that two
handlings share; if a bound was hit, that is said and nothing is claimed.  Nor is it where a node
dies: reversing races moves no death.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b

from mmurace.explorer.exhaustive.oracle_table import RULES
from mmurace.explorer.exhaustive.reversible import Order
from mmurace.explorer.exhaustive.search import Budget, explore_stateful
from mmurace.explorer.shrink.case import Case, Target
from mmurace.explorer.shrink.play import How, Played, attempt, play
from mmurace.protocol.errors import EmulatorError, UserError


@dataclass(frozen=True, slots=True)
class Proof:
    """What the search for a shorter schedule showed."""

    shortest: bool
    """Every trace of these operations was run, and none violates the target sooner."""
    runs: int
    detail: str


@dataclass(frozen=True, slots=True)
class Search:
    """A shorter run if there was one, else what that proves."""

    better: Played | None
    proof: Proof


def look_for_shorter(
    case: Case, target: Target, cost: tuple[int, int], runs_max: int, seconds_max: float
) -> Search:
    """Search until a run costs less than ``cost``, all traces were run, or a bound is hit."""
    ends, runs = time.monotonic() + seconds_max, 0
    seen: set[bytes] = set()
    asked: set[tuple[str, ...]] = {case.order}
    queue: deque[Case] = deque([case])
    while queue:
        if runs >= runs_max or time.monotonic() > ends:
            return Search(None, Proof(False, runs, f"{len(seen)} traces run, not all"))
        candidate = queue.popleft()
        runs += 1
        whole = _whole(candidate, target)
        if whole is None:
            continue
        order = Order(whole.moments)
        key = _key(order)
        if key in seen:
            continue
        seen.add(key)
        if whole.found is not None:
            better = _better(candidate, target, cost, order, whole)
            if better is not None:
                return Search(better, Proof(False, runs, "a shorter one was found"))
        for reversal in _reversals(case, order):
            if reversal.order not in asked:
                asked.add(reversal.order)
                queue.append(reversal)
    detail = f"all {len(seen)} traces were run, none is shorter"
    if case.deaths:
        return Search(None, Proof(False, runs, f"{detail} with the deaths where they are"))
    return Search(None, Proof(True, runs, detail))


def shortest_by_states(
    case: Case, target: Target, deliveries: int, seconds_max: float
) -> Proof | None:
    """The same by visiting every state in the order of deliveries; None if that shows nothing.

    Every order and every choice of the hardware is tried, so the first breach of the rule that is
    met has the fewest deliveries.  There are no faults and no deaths in such a search, and only
    rules whose memory is part of a state can be looked for.
    """
    if case.faults or case.deaths or target.rule not in RULES:
        return None
    ends = time.monotonic() + seconds_max
    spec = replace(case.spec, chaos=None)
    budget = Budget(expired=lambda: time.monotonic() > ends)
    try:
        found = explore_stateful(spec, budget, eager=False, wanted=target.rule)
    except UserError:
        return None
    first = found.violation
    if first is None or len(first.entries) != deliveries:
        return None
    if not any(violation.rule == target.rule for violation in first.verdict.violations):
        return None
    detail = f"breadth-first through {found.states} states, all orders and choices: none is shorter"
    return Proof(True, found.judged, detail)


def _whole(case: Case, target: Target) -> Played | None:
    """A complete run, with what every delivery touched."""
    try:
        return play(case, How(target, stop=False, keep=True))
    except EmulatorError:
        return None


def _key(order: Order) -> bytes:
    digest = blake2b(digest_size=16)
    for first, second in sorted(order.trace()):
        digest.update(f"{first}<{second};".encode())
    return digest.digest()


def _reversals(case: Case, order: Order) -> Iterator[Case]:
    for race in order.races():
        yield replace(case, order=order.reversed_order(race.first, race.second))


def _better(
    case: Case, target: Target, cost: tuple[int, int], order: Order, whole: Played
) -> Played | None:
    """A run of this trace that stops at the violation sooner than ``cost``, or None.

    The fewest deliveries of a trace are the past of its violation: those are played first.
    """
    stopped = attempt(replace(case, order=whole.order), How(target))
    if stopped is None:
        return None
    past = order.before[len(stopped.order) - 1]
    names = tuple(name for at, name in enumerate(stopped.order) if past >> at & 1)
    cut = attempt(replace(case, order=names), How(target))
    best = min((p for p in (stopped, cut) if p is not None), key=lambda p: p.cost)
    return best if best.cost[0] < cost[0] else None
