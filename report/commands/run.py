"""What commands share: run once, print how it came out."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmurace.explorer.run import outcome as codes
from mmurace.nodes.files import unwritten
from mmurace.protocol.signals import held
from mmurace.report import formats, machine
from mmurace.report.arguments import PROGRAM, On
from mmurace.report.directory import new_run, point_to
from mmurace.report.interrupts import interrupts
from mmurace.report.progress import Progress
from mmurace.report.screen import say, stderr, stdout, write_out
from mmurace.report.terminal import print_outcome
from mmurace.scenarios.spec import RunSpec

if TYPE_CHECKING:
    from mmurace.explorer.run.outcome import Outcome

PAGE: Final = "report.html"
"""The page of a run, beside its other files."""


def perform(
    spec: RunSpec,
    on: On,
    out: Path | None,
    as_json: bool,
    seconds: float | None = None,
    stop_on: str = "",
    size: int | None = None,
) -> int:
    """Run once, show progress meanwhile, then print; the exit status."""
    with held():
        from mmurace.explorer.run import session

    directory = new_run(spec.name, out)
    with interrupts(directory), Progress(stderr()) as progress:
        saved = save(spec, directory)
        if out is None:
            point_to(directory)
        say(f"running {spec.name} on {on.value}, seed {spec.seed:#x}, in {directory}")
        if on is On.simulator:
            outcome = session.simulate(saved, directory)
        else:
            outcome = session.run_on_processes(saved, directory, seconds, progress, stop_on, size)
    return finish(outcome, as_json)


def save(spec: RunSpec, directory: Path) -> RunSpec:
    """Write what a run is; a directory in which that cannot be is not left behind."""
    try:
        return spec.save(directory)
    except OSError:
        with suppress(OSError):
            directory.rmdir()
        raise


def finish(outcome: Outcome, as_json: bool, saved: bool = True) -> int:
    """Print how a run came out, and which of its files could not be written; the exit status.

    ``saved``: first put a summary into its directory.
    """
    if saved:
        machine.save_summary(outcome)
    if as_json:
        print_json(machine.outcome_dict(outcome))
    else:
        print_outcome(stdout(), outcome)
    if saved:
        save_page(outcome)
    for problem in outcome.unwritten:
        say(f"{PROGRAM}: {problem}")
    return outcome.exit_code


def save_page(outcome: Outcome) -> None:
    """Write a page of its numbers into the run's directory; ``report`` shows a violation there."""
    if outcome.run_dir is None:
        return
    from mmurace.report.page.summary import summary_page

    again = [formats.command(word, str(outcome.run_dir)) for word in commands_for(outcome)]
    path = outcome.run_dir / PAGE
    problem = unwritten(path, summary_page(machine.outcome_dict(outcome), again))
    if problem:
        say(f"{path} cannot be written{problem.removeprefix(str(path))}")


def commands_for(outcome: Outcome) -> tuple[str, ...]:
    """What there is to do with a saved run."""
    return ("report", "minimize", "explain") if outcome.violations else ("replay", "check")


def print_json(value: dict[str, Any]) -> int:
    """One object on stdout."""
    write_out(machine.as_json(value))
    return codes.HELD
