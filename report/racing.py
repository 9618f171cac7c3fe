"""One race on one kernel as a test: whether it comes out as its file says, and if not, why.

Schedules are drawn without the race's recipe, and then, unless that was enough, with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mmurace.explorer.sample.explore import Exploration, Options, explore, record
from mmurace.explorer.sample.matrix import RECIPE_SCHEDULES
from mmurace.protocol.errors import EmulatorError, ReplayDivergence, UserError
from mmurace.report import formats
from mmurace.report.catalogue import expected
from mmurace.report.directory import new_run
from mmurace.scenarios import catalogue, tour
from mmurace.scenarios.spec import Expectation, RunSpec

if TYPE_CHECKING:
    from mmurace.explorer.run.outcome import Outcome

SCHEDULES: Final = 100
"""So many are run without the recipe, if nothing else is said."""
SEED: Final = 1
"""The same for everybody, so that a test that fails fails again."""
RUNS: Final = "runs"


@dataclass(frozen=True, slots=True)
class Raced:
    """What the schedules of one race on one kernel showed."""

    spec: RunSpec
    parts: tuple[Exploration, ...]

    @property
    def schedules(self) -> int:
        """How many were run."""
        return sum(part.schedules for part in self.parts)

    @property
    def entered(self) -> int:
        """In how many of them the window was entered."""
        return sum(part.entered for part in self.parts)

    @property
    def deliveries(self) -> int:
        """Of all of them."""
        return sum(part.deliveries for part in self.parts)

    @property
    def broken(self) -> tuple[str, ...]:
        """``S4 by cpu1`` for what was broken, once each."""
        found = (v for part in self.parts for v in part.violations.values())
        return tuple(dict.fromkeys(f"{v.rule} by {v.agent}" for v in found))

    @property
    def verdict(self) -> str:
        """``held``, ``violated`` or ``inconclusive``."""
        if self.broken:
            return "violated"
        held = any(part.verdict().outcome == "held" for part in self.parts)
        return "held" if held else "inconclusive"

    @property
    def as_expected(self) -> bool:
        """Whether it came out as the race says of this kernel."""
        wanted = self.spec.expectation
        if wanted is None or wanted.expected() is None:
            return self.verdict == "held"
        return any(part.expected for part in self.parts)

    def problem(self) -> str:
        """What is wrong with it, on one line; empty: it came out as expected."""
        if self.as_expected:
            return ""
        wanted = self.spec.expectation
        said = "held" if wanted is None else expected(wanted)
        schedules = formats.many(self.schedules, "schedule")
        if self.verdict == "inconclusive":
            why = next((r for part in self.parts for r in part.verdict().reasons), "")
            return f"nothing was raced: the window was never entered in {schedules} ({why})"
        found = formats.listed(self.broken) if self.broken else f"it held in {schedules}"
        return f"expected {said}, but {found}"


def race(spec: RunSpec, schedules: int = SCHEDULES) -> Raced:
    """Run a race's schedules, as many as it takes."""
    wanted = spec.expectation.expected() if spec.expectation is not None else None
    stop_on = "any" if wanted is None else wanted.rule or "any"
    parts = [explore(replace(spec, chaos=None), Options("portfolio", schedules, stop_on=stop_on))]
    enough = bool(parts[0].violations) if wanted is None else bool(parts[0].expected)
    if spec.chaos is not None and not enough:
        parts.append(explore(spec, Options("paces", RECIPE_SCHEDULES, stop_on=stop_on)))
    return Raced(spec, tuple(parts))


def expecting(spec: RunSpec, verdict: str) -> RunSpec:
    """The same, expected to come out so.  Raises ``UserError`` for what is no verdict."""
    if verdict not in ("held", "violated"):
        raise UserError("expect", f"is {verdict!r}", "held or violated")
    known = spec.expectation
    if known is not None and known.verdict == verdict:
        return spec
    wanted = Expectation(verdict="held") if verdict == "held" else Expectation(verdict="violated")
    return replace(spec, expectation=wanted)


def failure_text(raced: Raced, root: Path) -> str:
    """Why a race did not come out as expected: all that there is to say, and how to repeat it."""
    lines = [f"{raced.spec.name}: {raced.problem()}", f"seed {raced.spec.seed:#x}"]
    found = next((part for part in raced.parts if part.finding is not None), None)
    return "\n".join([*lines, *_why(found, root)]) if found is not None else "\n".join(lines)


def _why(found: Exploration, root: Path) -> list[str]:
    """The explanation of what was found, and the commands that go on from it."""
    try:
        outcome = record(found, new_run(found.spec.name, None, root / RUNS))
        return _explained(outcome)
    except (UserError, EmulatorError, ReplayDivergence, OSError) as error:
        return [f"it cannot be recorded or explained: {error}"]


def _explained(outcome: Outcome) -> list[str]:
    from mmurace.explorer.explain.found import story_of
    from mmurace.report import interleaving
    from mmurace.report.next_steps import next_steps

    assert outcome.run_dir is not None
    story = story_of(outcome.run_dir)
    replay = formats.command("replay", str(story.file))
    steps = next_steps(story.explanation.violation, outcome.spec.name, story.file)
    return ["", interleaving.terminal(story.explanation), "", f"replay: {replay}", *steps]


@cache
def planted() -> str:
    """Whether a race that is there is found, and none where it was cured; empty if so.

    Of the race that the README shows.  What is wrong otherwise is a reason to believe no verdict.
    """
    known = catalogue.find(tour.RACE)
    for kernel in (tour.BROKEN, tour.CURED):
        problem = race(known.run(kernel, SEED), SCHEDULES).problem()
        if problem:
            return f"the emulator does not find a race that is there ({known.id}): {problem}"
    return ""
