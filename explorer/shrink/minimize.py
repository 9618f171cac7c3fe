"""The smallest case that still violates the same rule: a schedule cut down step by step.

From the coarse to the fine, because a coarse cut is worth a thousand fine ones: first what the
violation can need at all (operations that share pages with it), then programs, operations,
faults, deaths, nodes and ranges by delta debugging (Zeller, ddmin), then the schedule itself:
fewest deliveries, then fewest switches between threads.  Every candidate is played leniently
(``lenient.py``) and counts only if the same target (``case.Target``) is violated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final, TypeVar

from mmurace.explorer.run.schedule_file import Loaded
from mmurace.explorer.shrink.case import Case, Target, thread_of
from mmurace.explorer.shrink.play import How, Played, as_played, attempt
from mmurace.explorer.shrink.shortest import Proof, look_for_shorter, shortest_by_states
from mmurace.explorer.shrink.smaller import (
    keep_operations,
    related,
    shorter_ranges,
    smaller_worlds,
    with_order,
)
from mmurace.protocol.envelope import REPLY_MARK

T = TypeVar("T")
LATE_DELIVERIES_MAX: Final = 400
"""Runs up to so long are searched for one late delivery that makes up for an operation."""
GUESSES: Final = (1, 2, 3)
"""Rounds of ``related``, smallest guess first."""
SECONDS_MAX: Final = 60.0
QUICK_TRIES: Final = 250
"""Tries of a quick minimisation: about a second."""
STATES_SECONDS_MAX: Final = 20.0
"""How long every state may be visited at the end."""
SEARCH_RUNS: Final = 300
"""Runs that look for a shorter schedule at the end, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Size:
    """How big a case is."""

    operations: int
    nodes: int
    faults: int
    deliveries: int
    switches: int
    deaths: int


@dataclass(frozen=True, slots=True)
class Update:
    """What a progress callback is told."""

    phase: str
    size: Size
    tries: int
    seconds: float


@dataclass(slots=True)
class Minimized:
    """The best that was found."""

    case: Case
    played: Played
    target: Target
    before: Size
    after: Size
    tries: int
    seconds: float
    interrupted: bool
    """Ctrl-C, or the time was up: smaller ones may exist and were not looked for."""
    proof: Proof


Progress = Callable[[Update], None]
Allowed = Callable[[Case], bool]


def minimize(
    loaded: Loaded,
    progress: Progress | None = None,
    seconds_max: float = SECONDS_MAX,
    search_runs: int = SEARCH_RUNS,
) -> Minimized:
    """Cut a case down; the best so far if interrupted or out of time.

    The result does not depend on the clock unless ``seconds_max`` is reached.
    """
    return Minimizer(loaded, progress, seconds_max).run(search_runs)


def minimize_quickly(
    loaded: Loaded, tries_max: int = QUICK_TRIES, allowed: Allowed | None = None
) -> Minimized:
    """Cut a case down as far as few tries go.  No clock has a say in the result.

    ``allowed``: the only cases that are tried; None: all.  Raises ``KeyboardInterrupt``: there is
    nothing worth keeping.
    """
    found = Minimizer(loaded, None, math.inf, tries_max, allowed).run(0)
    if found.interrupted and found.tries < tries_max:
        raise KeyboardInterrupt
    return found


def size_of(case: Case, deliveries: int, switched: int) -> Size:
    """The size of a case whose run has so many deliveries and switches."""
    return Size(
        len(case.operations()), len(case.spec.world.nodes()), len(case.faults), deliveries,
        switched, len(case.deaths),
    )  # fmt: skip


class _TimeUp(Exception):  # noqa: N818 - not an error
    """The budget is spent."""


class Minimizer:
    """Holds the best case and tries to better it."""

    def __init__(
        self,
        loaded: Loaded,
        progress: Progress | None,
        seconds_max: float,
        tries_max: int | None = None,
        allowed: Allowed | None = None,
    ) -> None:
        """``tries_max``: end after so many, and leave out what costs many and seldom helps."""
        self._allowed = allowed
        self.target, self._progress = loaded.target, progress
        self._began = time.monotonic()
        self._ends = self._began + seconds_max
        self.phase = "replay"
        self.tries = 0
        self._tries_max = tries_max
        self.case, self.played = loaded.case, loaded.played
        self.before = size_of(loaded.case, *loaded.played.cost)

    # -- trying ------------------------------------------------------------------------------

    def run(self, search_runs: int) -> Minimized:
        """All phases."""
        interrupted, proof = False, Proof(False, 0, "not looked for")
        try:
            for phase in (
                self._deaths, self._cut, self._deaths, self._programs, self._operations,
                self._faults, self._deaths, self._nodes, self._ranges, self._schedule,
            ):  # fmt: skip
                phase()
            proof = self._shortest(search_runs) if search_runs else proof
        except (KeyboardInterrupt, _TimeUp):
            interrupted = True
        after = size_of(self.case, *self.played.cost)
        seconds = time.monotonic() - self._began
        return Minimized(
            self.case, self.played, self.target, self.before, after, self.tries, seconds,
            interrupted, proof,
        )  # fmt: skip

    def _try(self, candidate: Case, shorter: bool = False, eager: bool = True) -> bool:
        """Play a candidate and keep it if it has the target (``shorter``: and costs less).

        A coarse cut is also tried eagerly: its threads may need what nobody named.
        """
        if time.monotonic() > self._ends or self.tries == self._tries_max:
            raise _TimeUp
        if self._allowed is not None and not self._allowed(candidate):
            return False
        self.tries += 1
        longest = len(self.played.order) if shorter else None
        played = attempt(candidate, How(self.target, deliveries_max=longest))
        if played is None and eager and not shorter:
            played = attempt(candidate, How(self.target, eager=True))
        if played is None or (shorter and played.cost >= self.played.cost):
            return False
        self._keep(candidate, played)
        return True

    def _keep(self, candidate: Case, played: Played) -> None:
        self.case = as_played(candidate, played)
        self.played = played
        if self._progress is not None:
            size = size_of(self.case, *played.cost)
            elapsed = time.monotonic() - self._began
            self._progress(Update(self.phase, size, self.tries, elapsed))

    # -- phases ------------------------------------------------------------------------------

    def _deaths(self) -> None:
        """Without any, as most violations need none; else with as few as will do."""
        self.phase = "deaths"
        base = self.case
        if base.deaths and not self._try(replace(base, deaths=())):
            ddmin(base.deaths, lambda kept: self._try(replace(base, deaths=tuple(kept))))

    def _cut(self) -> None:
        """What the violation's causes can need: until it happened, then what shares its pages."""
        self.phase = "causal cut"
        violation = self.played.found
        begun = {name for name in self.played.order if "." not in name and "~" not in name}
        if not self._try(keep_operations(self.case, begun)) and violation is None:
            return
        violation = self.played.found
        for rounds in GUESSES:
            if violation is None:
                return
            if self._try(keep_operations(self.case, related(self.case, violation, rounds))):
                return

    def _programs(self) -> None:
        self.phase = "programs"
        names = [program.name for program in self.case.programs]
        base = self.case

        def without_others(kept: list[str]) -> bool:
            wanted = {op for op in base.operations() if op.rpartition("/")[0] in kept}
            return self._try(keep_operations(base, wanted))

        ddmin(names, without_others)

    def _operations(self) -> None:
        """By delta debugging from either end: one operation can make others needless."""
        self.phase = "operations"
        start = self.case, self.played
        self._fewer_operations(backwards=False)
        if len(start[0].order) > LATE_DELIVERIES_MAX or self._tries_max is not None:
            return
        best = self.case, self.played
        self.case, self.played = start
        self._fewer_operations(backwards=True)
        if _weight(*best) <= _weight(self.case, self.played):
            self.case, self.played = best

    def _fewer_operations(self, backwards: bool) -> None:
        while True:
            count = len(self.case.operations())
            self._ddmin_operations(backwards)
            if len(self.case.operations()) == count and not self._one_less_and_one_late():
                return

    def _ddmin_operations(self, backwards: bool) -> None:
        base = self.case
        operations = base.operations()[:: -1 if backwards else 1]
        ddmin(operations, lambda kept: self._try(keep_operations(base, set(kept))))

    def _one_less_and_one_late(self) -> bool:
        """Leave out one operation, if delaying one request makes up for it.

        What needed two operations with something between them may need only one that is long
        under way.  Nothing to gain where a run is long: that would be tries times operations.
        """
        base = self.case
        if len(base.order) > LATE_DELIVERIES_MAX or self._tries_max is not None:
            return False
        for left_out in base.operations():
            cut = keep_operations(base, {op for op in base.operations() if op != left_out})
            requests = [name for name in cut.order if not name.endswith(REPLY_MARK)]
            for late in requests:
                order = tuple(name for name in cut.order if name != late)
                if self._try(with_order(cut, order), eager=False):
                    return True
        return False

    def _faults(self) -> None:
        self.phase = "chaos"
        base = self.case
        if not base.faults or self._try(replace(base, faults={})):
            return
        ddmin(list(base.faults), lambda kept: self._try(_with_faults(base, kept)))

    def _nodes(self) -> None:
        self.phase = "nodes"
        self._greedily(smaller_worlds)

    def _ranges(self) -> None:
        self.phase = "ranges"
        self._greedily(shorter_ranges)

    def _greedily(self, ways: Callable[[Case], Iterator[Case]]) -> None:
        """Take the first way that works, again and again."""
        while any(self._try(candidate) for candidate in ways(self.case)):
            pass

    def _schedule(self) -> None:
        """Fewer deliveries, then fewer switches, until neither helps."""
        self.phase = "schedule"
        while True:
            cost = self.played.cost
            self._drop_chunks()
            self._move_blocks()
            if self.played.cost == cost:
                return

    def _drop_chunks(self) -> None:
        """Leave parts of the order to the lenient policy, which may never get to them."""
        chunk = max(len(self.case.order) // 2, 1)
        while True:
            at = 0
            while at < len(self.case.order):
                order = self.case.order
                shorter = order[:at] + order[at + chunk :]
                if not self._try(with_order(self.case, shorter), shorter=True):
                    at += chunk
            if chunk == 1:
                return
            chunk //= 2

    def _move_blocks(self) -> None:
        """Put one thread's blocks next to each other."""
        while any(
            self._try(replace(self.case, order=order), shorter=True)
            for order in joined_blocks(self.case.order)
        ):
            pass

    def _shortest(self, runs: int) -> Proof:
        self.phase = "shortest"
        while True:
            seconds = self._ends - time.monotonic()
            search = look_for_shorter(self.case, self.target, self.played.cost, runs, seconds)
            self.tries += search.proof.runs
            if search.better is None:
                return search.proof if search.proof.shortest else self._by_states(search.proof)
            self._keep(replace(self.case, order=search.better.order), search.better)
            self._schedule()
            self.phase = "shortest"

    def _by_states(self, proof: Proof) -> Proof:
        """Another way to show it, if the first has shown nothing."""
        seconds = min(STATES_SECONDS_MAX, self._ends - time.monotonic())
        deliveries = self.played.cost[0]
        return shortest_by_states(self.case, self.target, deliveries, seconds) or proof


def _weight(case: Case, played: Played) -> tuple[int, int, int]:
    """What is smaller is better: operations, deliveries, switches."""
    return len(case.operations()), *played.cost


def _with_faults(case: Case, kept: Sequence[tuple[str, int]]) -> Case:
    return replace(case, faults={key: case.faults[key] for key in kept})


def joined_blocks(order: Sequence[str]) -> Iterable[tuple[str, ...]]:
    """The order with one block of a thread's deliveries moved to another block of that thread."""
    blocks = [list(group) for _, group in groupby(order, thread_of)]
    threads = [thread_of(block[0]) for block in blocks]
    for later in range(len(blocks)):
        for earlier in range(later - 2, -1, -1):
            if threads[earlier] != threads[later]:
                continue
            between = blocks[earlier + 1 : later]
            head, tail = blocks[: earlier + 1], blocks[later + 1 :]
            yield _flat([*head, blocks[later], *between, *tail])
            yield _flat([*blocks[:earlier], *between, blocks[earlier], *blocks[later:]])
            break


def _flat(blocks: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(name for block in blocks for name in block)


def ddmin(items: Sequence[T], fails: Callable[[list[T]], bool]) -> list[T]:
    """A subset of ``items`` that still fails and of which no single one can be left out.

    Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002), complements
    only.  ``fails`` is never asked about all of them: that is known.
    """
    kept, parts = list(items), 2
    while len(kept) >= 2:
        size = max(len(kept) // parts, 1)
        for start in range(0, len(kept), size):
            rest = kept[:start] + kept[start + size :]
            if rest and fails(rest):
                kept, parts = rest, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(kept))
    return kept
