"""Where schedules come from and go to, as people name them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from explorer.schedule_file import SUFFIX, is_schedule_file
from report.directory import saved_run

MINIMIZED: Final = f"min{SUFFIX}"
"""The file that a minimised schedule goes to: in the run's directory, or beside the schedule."""


def run_or_schedule(source: Path) -> Path:
    """A schedule file as it is, anything else as a saved run.  Raises ``UserError``."""
    return source if is_schedule_file(source) else saved_run(source)


def minimized_file(source: Path, out: Path | None) -> Path:
    """The file that the minimised schedule of ``source`` goes to.  Raises ``UserError``."""
    if out is not None:
        return out
    if is_schedule_file(source):
        return source.with_name(f"{source.name.removesuffix(SUFFIX)}-{MINIMIZED}")
    return saved_run(source) / MINIMIZED
