"""``tour``, which is what the program does if it is asked for nothing: one race, seen and cured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mmurace.explorer.run import outcome as codes
from mmurace.report import formats
from mmurace.report.commands.run import print_json
from mmurace.report.screen import put, stdout
from mmurace.scenarios import catalogue, tour

if TYPE_CHECKING:
    from mmurace.explorer.sample.explore import Exploration
    from mmurace.scenarios.catalogue import Race

SEED: Final = 3
"""The same race every time; it is found among the first schedules."""
SCHEDULES: Final = 100
"""So many hold on the cured kernel; that takes a third of a second."""


def show_tour(as_json: bool) -> int:
    """Show the race of the README on the kernel that has it and on one that has not.  Always 0."""
    from mmurace.report import exploration as explored
    from mmurace.report import searches

    race = catalogue.find(tour.RACE)
    broken, cured = (_explored(race, kernel) for kernel in (tour.BROKEN, tour.CURED))
    outcome = None if broken.finding is None else searches.record(broken, None)
    if as_json:
        return print_json({
            tour.BROKEN: explored.exploration_dict(broken) | searches.told_dict(outcome, True),
            tour.CURED: explored.exploration_dict(cured),
        })  # fmt: skip
    console = stdout()
    put(console, f"{race.title} ({race.id}).  On {tour.BROKEN}, {_briefly(broken)}")
    searches.tell(outcome, True)
    put(console, f"\nOn {tour.CURED}, {_briefly(cured)}\n  {_cure(race)}\n")
    put(console, "\n".join(_what_next()))
    return codes.HELD


def _explored(race: Race, kernel: str) -> Exploration:
    from dataclasses import replace

    from mmurace.explorer.sample.explore import Options, explore

    spec = replace(race.run(kernel, SEED), chaos=None)
    return explore(spec, Options(schedules=SCHEDULES))


def _briefly(found: Exploration) -> str:
    """``the 6th schedule of 6 fails``, ``200 schedules hold``."""
    took = formats.seconds(found.seconds)
    schedules = formats.many(found.schedules, "schedule")
    entered = f"the window was entered in {found.entered:,} of {schedules}"
    if found.violated:
        return f"found after {schedules}, in {took}: {entered}."
    return f"nothing is broken: {entered}, in {took}."


def _cure(race: Race) -> str:
    return f"{tour.CURED}: {race.kernel_case(tour.CURED).expect.description}."


def _what_next() -> list[str]:
    """Commands to go on with."""
    rows: list[tuple[tuple[Any, ...], str]] = [
        (("repro", tour.RACE, "--kernel", tour.BROKEN), "the same on real processes"),
        (("list",), "all races"),
        (("explore", "my-race.toml"), "one of your own: docs/scenarios.md"),
        (("stress",), "a mixed workload on processes for half a minute"),
        (("--help",), "all commands"),
    ]
    texts = [(formats.command(*words), what) for words, what in rows]
    width = max(len(text) for text, _ in texts)
    return ["What next:", *(f"  {text:<{width}}  {what}" for text, what in texts)]
