"""What a search leaves and says: the run that it found, and why that fails.

What searches exhaustively, cuts down and explains is imported when it is needed: an exploration
that is to take a second would wait for it a tenth of that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmurace.explorer.run.outcome import Outcome
from mmurace.explorer.sample import explore as exploration
from mmurace.explorer.sample.policies import ENGINES, STRATEGIES
from mmurace.protocol.errors import EmulatorError, ReplayDivergence, UserError
from mmurace.report import exploration as explored
from mmurace.report import machine
from mmurace.report.directory import new_run, point_to
from mmurace.report.interrupts import interrupts
from mmurace.report.progress import Progress
from mmurace.report.screen import say, stderr, stdout, write_out
from mmurace.report.shortage import shortage
from mmurace.scenarios.spec import RunSpec

if TYPE_CHECKING:
    from mmurace.explorer.explain.found import Story


def engine_from(strategy: str, exhaust: bool, keep_going: bool, recipe: bool, scope: str) -> str:
    """The engine of an exhaustive search; empty if schedules are drawn instead.

    Raises ``UserError`` for a strategy that there is not, and for options that exclude each other.
    """
    if strategy not in ("", *STRATEGIES):
        raise UserError("--strategy", f"is {strategy!r}", f"one of {', '.join(STRATEGIES)}")
    engine = strategy if strategy in ENGINES else "stateful" if exhaust else ""
    if exhaust and strategy not in ("", engine):
        engines = " or ".join(ENGINES)
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
    executions: int | None,
    seconds: float | None,
    out: Path | None,
    as_json: bool,
    explanation: bool = True,
) -> int:
    """Search one race exhaustively, or as far as the limits go; the exit status."""
    from mmurace.explorer.exhaustive import race as exhaustive
    from mmurace.report import exhaustion as exhausted

    limits = exhaustive.Limits(executions, seconds)
    say(f"searching {spec.name} with {engine}")
    with Progress(stderr(), exhausted.search_line) as progress:
        found = exhaustive.search(spec, engine, limits, progress)
    outcome = None
    if found.violation is not None:
        violation = found.violation
        outcome = _recorded(spec.name, out, lambda run: exhaustive.record(spec, violation, run))
    if as_json:
        result = exhausted.exhaustion_dict(spec, found, outcome)
        write_out(machine.as_json(result | told_dict(outcome, explanation)))
    else:
        exhausted.print_exhaustion(stdout(), spec, found, outcome)
        _tell_story(outcome, explanation)
    return exhausted.exit_code(found)


def record(found: exploration.Exploration, out: Path | None) -> Outcome | None:
    """Put the schedule that an exploration found into a run's directory; None: it has no room."""
    return _recorded(found.spec.name, out, lambda run: exploration.record(found, run))


def _recorded(name: str, out: Path | None, write: Callable[[Path], Outcome]) -> Outcome | None:
    """Record what was found.  If that cannot be (the disk is full), it is found all the same."""
    try:
        directory = new_run(name, out)
        with interrupts(directory):
            outcome = write(directory)
    except OSError as error:
        say(f"what was found cannot be recorded: {shortage(error)}")
        return None
    if outcome.status == "broken":
        say(f"what was found cannot be recorded: {outcome.detail}")
        return None
    machine.save_summary(outcome)
    if out is None:
        point_to(directory)
    for problem in outcome.unwritten:
        say(f"what was found is not all recorded: {problem}")
    return outcome


def _story_of(outcome: Outcome | None, wanted: bool) -> Story | None:
    """The explanation of what was found; none if there is nothing, or Ctrl-C says so."""
    if outcome is None or outcome.run_dir is None or not wanted:
        return None
    from mmurace.explorer.explain.found import story_of as explained

    try:
        return explained(outcome.run_dir)
    except (UserError, EmulatorError, ReplayDivergence) as error:
        say(f"no explanation: {error}")
    except OSError as error:  # no room for the schedule that was cut down
        say(f"no explanation: {shortage(error) or error}")
    except KeyboardInterrupt:
        say("interrupted; no explanation")
    return None


def told_dict(outcome: Outcome | None, wanted: bool) -> dict[str, Any]:
    """The short schedule of what was found and its explanation, if there are any."""
    told = _story_of(outcome, wanted)
    if told is None:
        return {"schedule": None, "minimized": None, "explanation": None}
    from mmurace.report.story import story_dict

    return story_dict(told)


def tell(outcome: Outcome | None, wanted: bool) -> None:
    """Print why what was found fails; at least what it breaks."""
    if outcome is not None and not _tell_story(outcome, wanted):
        explored.print_violation(stdout(), outcome)


def _tell_story(outcome: Outcome | None, wanted: bool) -> bool:
    told = _story_of(outcome, wanted)
    if outcome is None or told is None:
        return False
    from mmurace.report.story import print_story

    print_story(stdout(), outcome, told)
    return True
