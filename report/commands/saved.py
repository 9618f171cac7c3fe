"""``replay``, ``minimize``, ``explain``, ``check``: of what was saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mmurace.explorer.run import outcome as codes
from mmurace.protocol.errors import EmulatorError, PeerError, ReplayDivergence, UserError
from mmurace.report import formats
from mmurace.report.arguments import Form, On, Shown
from mmurace.report.commands.run import finish, print_json
from mmurace.report.directory import new_run, point_to, replay_name, saved_record
from mmurace.report.interrupts import interrupts
from mmurace.report.machine import SUMMARY_FILE
from mmurace.report.progress import Progress
from mmurace.report.schedules import other_plugins
from mmurace.report.screen import say, stderr, stdout, write_out

if TYPE_CHECKING:
    from mmurace.explorer.explain.why import Explanation


def replay(source: Path, on: On, out: Path | None, as_json: bool) -> int:
    """Run a recorded schedule again, delivery by delivery."""
    from mmurace.explorer.run import session
    from mmurace.explorer.run.replay import replay_file
    from mmurace.explorer.run.schedule_file import is_schedule_file
    from mmurace.report.schedules import run_or_schedule

    recorded = run_or_schedule(source)
    directory = new_run(replay_name(recorded), out)
    say(f"replaying {recorded} on {on.value} in {directory}")
    try:
        with damage_of(recorded), interrupts(directory):
            again = replay_file if is_schedule_file(recorded) else session.replay
            outcome = again(recorded, on.value, directory)
    except (UserError, OSError):
        with suppress(OSError):  # it holds something: then that is worth keeping
            directory.rmdir()
        raise
    if out is None:
        point_to(directory)
    return finish(outcome, as_json)


def minimize(
    source: Path, rule: str, seconds: float, search: int, out: Path | None, as_json: bool
) -> int:
    """Find the shortest schedule with the same violation, and write it to a file."""
    from mmurace.explorer.run import schedule_file
    from mmurace.explorer.shrink import minimize as minimizer
    from mmurace.report import minimizing
    from mmurace.report.schedules import minimized_file, run_or_schedule

    file = minimized_file(source, out)
    with Progress(stderr(), minimizing.minimize_line) as progress, damage_of(source):
        loaded = schedule_file.load(run_or_schedule(source), rule)
        found = minimizer.minimize(
            loaded, lambda update: progress(minimizing.update_dict(update)), seconds, search
        )
    schedule_file.write(file, schedule_file.schedule_text(found.case, found.target))
    if as_json:
        print_json(minimizing.minimized_dict(found, str(file), seconds))
    else:
        write_out(minimizing.minimized_text(found, str(file), seconds))
    cut_short = found.interrupted and not minimizing.out_of_time(found, seconds)
    return codes.INTERRUPTED if cut_short else codes.VIOLATED


def explain(source: Path, form: Form, as_json: bool) -> int:
    """Say why a schedule fails: the interleaving, what decides it, what was owed, what cures it."""
    from mmurace.report import explaining, interleaving

    with damage_of(source):
        explanation = explaining.explanation_of(source)
    if as_json or form is Form.json:
        print_json(interleaving.as_dict(explanation))
    else:
        write_out(interleaving.written(explanation, form, stdout().width).rstrip("\n"))
    return codes.VIOLATED


def report(source: Path, shown: Shown, out: Path | None, as_json: bool) -> int:
    """Write a page that shows a violation, for a browser; or a file for another tool's viewer."""
    from mmurace.nodes.files import not_opened, write_whole
    from mmurace.report import explaining

    beside = source / "report" if source.is_dir() else source
    file = out or beside.with_suffix(f".{shown.ending}")
    status = codes.HELD if shown is Shown.html and _has_summary(source) else codes.VIOLATED
    with damage_of(source):
        made = (
            _summary_of(source)
            if status == codes.HELD
            else _shown_as(shown, explaining.explanation_of(source), source)
        )
    try:
        write_whole(file, made)
    except OSError as error:
        raise not_opened(file, error, "cannot be written", "a file") from None
    if as_json:
        print_json({"page": str(file)})
    else:
        write_out(str(file))
    return status


def _has_summary(source: Path) -> bool:
    """Whether there is no violation to show: what a search has said, or a run that held."""
    from mmurace.report.page.summary import facts_of

    if source.suffix == ".json":
        return True
    file = source / SUMMARY_FILE
    return file.is_file() and facts_of(file)["exit_code"] != codes.VIOLATED


def _summary_of(source: Path) -> bytes:
    from mmurace.report.page.summary import facts_of, summary_page

    is_run = source.is_dir()
    facts = facts_of(source / SUMMARY_FILE if is_run else source)
    commands = [formats.command(word, str(source)) for word in ("replay", "check") if is_run]
    return summary_page(facts, commands).encode()


def _shown_as(shown: Shown, explanation: Explanation, source: Path) -> bytes:
    from mmurace.report.page.model import moments_of, page_of

    if shown is Shown.shiviz:
        from mmurace.report.exports.shiviz import shiviz_of

        return shiviz_of(moments_of(explanation), explanation.case.kinds()).encode()
    commands = [formats.command(word, str(source)) for word in ("explain", "replay", "step")]
    page = page_of(explanation, commands)
    if shown is Shown.perfetto:
        from mmurace.report.exports.perfetto import perfetto_of

        return perfetto_of(page)
    from mmurace.report.page.write import html_of

    return html_of(page).encode()


def check(source: Path, as_json: bool) -> int:
    """Judge a saved run with the oracle alone."""
    from mmurace.explorer.run import session

    recorded = saved_record(source)
    with damage_of(recorded, kinds=(PeerError, EmulatorError)):  # nothing but the record is run
        outcome = session.check(recorded)
    return finish(outcome, as_json, saved=False)


@contextmanager
def damage_of(
    recorded: Path, *, kinds: tuple[type[Exception], ...] = (PeerError,)
) -> Iterator[None]:
    """What does not parse or fit in what was saved is the input's fault.  Raises ``UserError``."""
    for name in other_plugins(recorded):
        say(f"{recorded} was made with another {name}")
    try:
        yield
    except ReplayDivergence as error:
        expected = "what this version plays"
        raise UserError(str(recorded), f"does not fit: {error}", expected) from None
    except kinds as error:
        raise UserError(str(recorded), f"is damaged: {error}", "a saved run") from None
