"""What a search leaves and says: the run that it found, and why that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import typer

from explorer import exhaustion as exhaustive
from explorer import explore as exploration
from explorer.outcome import Outcome
from explorer.story import Story
from explorer.story import story_of as explained
from protocol.errors import EmulatorError, ReplayDivergence, UserError
from report import exhaustion as exhausted
from report import exploration as explored
from report import machine
from report.directory import new_run, point_latest
from report.interrupts import interrupts
from report.progress import Progress
from report.screen import say, stderr, stdout
from scenarios.spec import RunSpec

STRATEGIES: Final = (*exploration.STRATEGIES, *exhaustive.ENGINES)
"""What ``explore --strategy`` can be."""


def engine_from(strategy: str, exhaust: bool, keep_going: bool, recipe: bool, scope: str) -> str:
    """The engine of an exhaustive search; empty if schedules are drawn instead.

    Raises ``UserError`` for a strategy that there is not, and for options that exclude each other.
    """
    if strategy not in ("", *STRATEGIES):
        raise UserError("--strategy", f"is {strategy!r}", f"one of {', '.join(STRATEGIES)}")
    engine = strategy if strategy in exhaustive.ENGINES else "stateful" if exhaust else ""
    if exhaust and strategy not in ("", engine):
        engines = " or ".join(exhaustive.ENGINES)
        raise UserError("--strategy", f"{strategy} with --exhaustive draws schedules", engines)
    if engine and keep_going:
        raise UserError("--keep-going", "an exhaustive search ends with a violation", "one of both")
    if engine and recipe:
        raise UserError("--recipe", "an exhaustive search has no chaos", "one of both")
    if scope and not engine:
        raise UserError("--scope", "says what is searched exhaustively", "--exhaustive with it")
    return engine


def search(
    spec: RunSpec,
    engine: str,
    limits: exhaustive.Limits,
    out: Path | None,
    as_json: bool,
    explanation: bool = True,
) -> int:
    """Search one race exhaustively, or as far as the limits go; the exit status."""
    say(f"searching {spec.name} with {engine}")
    with Progress(stderr(), exhausted.search_line) as progress:
        found = exhaustive.search(spec, engine, limits, progress)
    outcome = None
    if found.violation is not None:
        directory = new_run(spec.name, out)
        outcome = exhaustive.record(spec, found.violation, directory)
        machine.save_summary(outcome)
        if out is None:
            point_latest(directory)
    if as_json:
        told = story_of(outcome, explanation)
        result = exhausted.exhaustion_dict(spec, found, outcome)
        typer.echo(machine.as_json(result | explored.told_dict(told)))
    else:
        exhausted.print_exhaustion(stdout(), spec, found, outcome)
        told = story_of(outcome, explanation)
        if outcome is not None and told is not None:
            explored.print_story(stdout(), outcome, told)
    return exhausted.exit_code(found)


def record(found: exploration.Exploration, out: Path | None) -> Outcome:
    """Put the schedule that an exploration found into a run's directory."""
    directory = new_run(found.spec.name, out)
    with interrupts(directory):
        outcome = exploration.record(found, directory)
        machine.save_summary(outcome)
    if out is None:
        point_latest(directory)
    return outcome


def story_of(outcome: Outcome | None, wanted: bool) -> Story | None:
    """The explanation of what was found; none if there is nothing, or Ctrl-C says so."""
    if outcome is None or outcome.run_dir is None or not wanted:
        return None
    try:
        return explained(outcome.run_dir)
    except (UserError, EmulatorError, ReplayDivergence) as error:
        say(f"no explanation: {error}")
    except KeyboardInterrupt:
        say("interrupted; no explanation")
    return None


def tell(outcome: Outcome | None, wanted: bool) -> None:
    """Print why what was found fails; at least what it breaks."""
    if outcome is None:
        return
    told = story_of(outcome, wanted)
    if told is None:
        explored.print_violation(stdout(), outcome)
    else:
        explored.print_story(stdout(), outcome, told)
