"""Every race on every kernel: what is found beside what is expected, or a patched kernel beside
the stock one.

Each race runs with its recipe, at the paces that processes may have, and without it.  All of it is
determined by the seed.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import multiprocess

from mmurace.explorer.run import outcome as codes
from mmurace.explorer.sample.explore import Exploration, Options, explore
from mmurace.nodes import plugin_watchdog, plugins
from mmurace.protocol.errors import PluginError, UserError
from mmurace.scenarios import catalogue
from mmurace.scenarios.spec import Expectation, RunSpec

RECIPE_SCHEDULES: Final = 20
"""Schedules with the recipe, which hits in nearly all of them."""
SCHEDULES: Final = 100
"""Schedules without the recipe, if nothing else is said."""
LOOK_SECONDS: Final = 1.0
"""How often it is looked whether a plug-in has ended one of the processes."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the schedules of one race on one kernel showed."""

    verdict: Literal["held", "violated", "inconclusive"]
    breaches: tuple[str, ...]
    """``S4 by cpu1``."""
    schedules: int
    violated: int
    """How many of them broke something."""
    as_expected: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One race on one kernel."""

    race: str
    kernel: str
    expected: str
    """What its file says: ``held``, ``violated: S4 by cpu1``."""
    stock: Found
    patched: Found | None = None
    """With the patch; None: no patch was asked for, or its function never ran."""
    reached: bool = False
    """A function that the patch replaces ran."""

    @property
    def agrees(self) -> bool:
        """Without a patch: it is as expected; with one: it breaks nothing else than before.

        What a bad kernel no longer breaks may be by chance of its schedules.
        """
        if self.patched is None:
            return self.stock.as_expected
        return not self.turned and set(self.patched.breaches) <= set(self.stock.breaches)

    @property
    def turned(self) -> bool:
        """The patch changes the verdict."""
        return self.patched is not None and self.patched.verdict != self.stock.verdict


@dataclass(frozen=True, slots=True)
class Task:
    """What one row needs; plain values, for another process."""

    race: str
    """Its id, or its file."""
    kernel: str
    patch: str
    schedules: int
    seed: int


def tasks(races: Iterable[str], patch: str, schedules: int, seed: int) -> list[Task]:
    """All kernels of the named races, or of all of them.  Raises ``UserError``."""
    plugins.check_patch(patch)
    named = list(races) or list(catalogue.load_all())
    return [
        Task(race, case.name, patch, schedules, seed)
        for race in named
        for case in catalogue.find(race).kernels
    ]


def rows(todo: list[Task], jobs: int) -> Iterator[Row]:
    """The rows of all tasks, in their order, with so many processes.  Raises ``PluginError``."""
    if jobs == 1:
        yield from map(row, todo)
        return
    needed = [plugin.path for plugin in plugins.loaded()]
    context = multiprocess.get_context("spawn")
    stuck = context.SimpleQueue()
    with context.Pool(jobs, _prepare, (needed, stuck)) as pool:
        made = pool.imap(row, todo)
        for _ in todo:
            yield _next(made, stuck)


def _next(made: Any, stuck: Any) -> Row:
    """The next row.  Raises ``PluginError``: a pool waits for a process that has ended for ever."""
    while True:
        try:
            found: Row = made.next(LOOK_SECONDS)
        except multiprocess.TimeoutError:
            if not stuck.empty():
                raise PluginError(stuck.get()) from None
        else:
            return found


def _prepare(needed: list[str], stuck: Any) -> None:
    """What a process does first: Ctrl-C is its parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def last_word(said: str) -> int:
        stuck.put(said)
        return codes.BROKEN

    plugin_watchdog.last_word(last_word)
    try:
        plugins.load(needed)
    except UserError as error:  # though its parent could load them
        last_word(f"plug-in {error}")
        raise


def row(task: Task) -> Row:
    """Run one race on one kernel, and on the patched one if the patch concerns it."""
    race = catalogue.find(task.race)
    spec = race.run(task.kernel, task.seed)
    plugins.forget_reached()
    stock = found_in(spec, task.schedules)
    reached = task.patch in plugins.reached()
    patched = found_in(spec.patched(task.patch), task.schedules) if reached else None
    return Row(race.id, task.kernel, expected_text(spec.expectation), stock, patched, reached)


def found_in(spec: RunSpec, schedules: int) -> Found:
    """What schedules with the recipe and without it show."""
    made = [explore(replace(spec, chaos=None), Options("portfolio", schedules, stop_on=""))]
    if spec.chaos is not None:
        made.append(explore(spec, Options("paces", RECIPE_SCHEDULES, stop_on="")))
    broken = {f"{v.rule} by {v.agent}": v for one in made for v in one.violations.values()}
    wanted = spec.expectation.expected() if spec.expectation else None
    met = any(wanted.matches(v) for one in made for v in one.violations.values()) if wanted else (
        not broken and _held(made)
    )  # fmt: skip
    return Found(
        "violated" if broken else "held" if _held(made) else "inconclusive",
        tuple(sorted(broken)),
        sum(one.schedules for one in made),
        sum(one.violated for one in made),
        met,
    )


def _held(made: list[Exploration]) -> bool:
    """The window was entered somewhere, and nothing was broken there."""
    return any(one.verdict().outcome == "held" for one in made)


def expected_text(expectation: Expectation | None) -> str:
    """What a race's file says of a kernel."""
    if expectation is None or expectation.verdict == "held":
        return "held"
    who = f" by {expectation.agent}" if expectation.agent else ""
    return f"violated: {expectation.rule or 'a rule'}{who}"
