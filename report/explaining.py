"""What ``explain`` explains: the minimal schedule that there is, or one that it makes first.

An explanation plays a schedule many times over, and a table of a long one tells nobody anything.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from mmurace.explorer.explain.why import Explanation, explain
from mmurace.explorer.run.schedule_file import Loaded, is_schedule_file, load, schedule_text, write
from mmurace.explorer.shrink.minimize import Minimized, minimize
from mmurace.report import minimizing
from mmurace.report.progress import Progress
from mmurace.report.schedules import minimal_of, minimized_file, run_or_schedule
from mmurace.report.screen import say, stderr

LONG_DELIVERIES: Final = 400
"""A schedule file that is longer is cut down first; a run is, however long."""
SECONDS_MAX: Final = 60.0
"""How long that may take."""


def explanation_of(source: Path) -> Explanation:
    """The explanation of a run or a schedule file, with progress on stderr.

    Of a run, that of its minimal schedule, which is made and kept if ``minimize`` has not done so.
    Raises ``UserError`` and ``ReplayDivergence``.
    """
    whole = run_or_schedule(source)
    given = minimal_of(whole)
    if given != whole:
        say(f"explaining {given}, the minimal schedule of that run")
    with Progress(stderr(), minimizing.minimize_line) as progress:
        loaded = load(given)
        if loaded.diverged:
            say(f"{given} no longer fits to the letter, same violation found: {loaded.diverged}")
        if not is_schedule_file(given) or len(loaded.case.order) > LONG_DELIVERIES:
            loaded = _cut_down(given, loaded, progress)
        return explain(loaded, lambda phase: progress(minimizing.explaining_dict(phase)))


def _cut_down(given: Path, loaded: Loaded, progress: Progress) -> Loaded:
    """The minimal schedule, kept beside what it was made of if that can be written."""
    say(f"cutting {given} down first; minimize does it for itself")
    found = minimize(
        loaded, lambda update: progress(minimizing.update_dict(update)), SECONDS_MAX, 0
    )
    if found.interrupted and not minimizing.out_of_time(found, SECONDS_MAX):
        raise KeyboardInterrupt
    say(f"cut down: {_sizes(found)}{_kept(given, found)}")
    return Loaded(found.case, found.target, found.played)


def _sizes(found: Minimized) -> str:
    return f"{minimizing.size_text(found.before)}, to {minimizing.size_text(found.after)}"


def _kept(given: Path, found: Minimized) -> str:
    """Where the schedule is now; empty if it is nowhere."""
    parent = given.parent if given.is_file() else given
    if not os.access(parent, os.W_OK):
        return ""
    file = minimized_file(given, None)
    write(file, schedule_text(found.case, found.target))
    return f"; in {file}"
