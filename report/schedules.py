"""Where schedules come from and go to, as people name them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from mmurace.explorer.run.schedule_file import SUFFIX, is_schedule_file
from mmurace.nodes.plugins import Plugin, others
from mmurace.protocol.errors import UserError
from mmurace.report.directory import saved_schedule
from mmurace.scenarios.spec import RUN_FILE
from mmurace.scenarios.tables import read_toml

MINIMIZED: Final = f"min{SUFFIX}"
"""The file that a minimised schedule goes to: in the run's directory, or beside the schedule."""
QUICKLY: Final = f"minimal{SUFFIX}"
"""The one that a search leaves in the directory of what it has found."""


def run_or_schedule(source: Path) -> Path:
    """A schedule file as it is, of a race's file the one beside it, else a saved run's.

    Raises ``UserError``.
    """
    source = beside_race(source)
    return source if is_schedule_file(source) else saved_schedule(source)


def beside_race(source: Path) -> Path:
    """The schedule file beside a race's file, if there is one; else what was given."""
    if not source.is_file() or source.suffix != ".toml" or source.name == RUN_FILE:
        return source
    beside = source.with_suffix(SUFFIX)
    return beside if not is_schedule_file(source) and beside.is_file() else source


def minimal_of(given: Path) -> Path:
    """The minimal schedule of a run that ``minimize`` or a search has left; else what is given."""
    for name in (MINIMIZED, QUICKLY) if given.is_dir() else ():
        if (given / name).is_file():
            return given / name
    return given


def minimized_file(source: Path, out: Path | None) -> Path:
    """The file that the minimised schedule of ``source`` goes to.

    Raises ``UserError``, and does so before the work if nothing could be written after it.
    """
    source = beside_race(source)
    if out is not None:
        file, where = out, "--out"
    elif is_schedule_file(source):
        file = source.with_name(f"{source.name.removesuffix(SUFFIX)}-{MINIMIZED}")
        where = str(file)
    else:
        found = saved_schedule(source)
        file = (found if found.is_dir() else found.parent) / MINIMIZED
        where = str(file)
    _check_file(file, where)
    return file


def _check_file(file: Path, where: str) -> None:
    """Whether a schedule can be written there, and be read again by its name."""
    if not file.name.endswith(SUFFIX):
        raise UserError(where, f"is {str(file)!r}", f"a name that ends with {SUFFIX}")
    if file.is_dir() or not file.parent.is_dir():
        problem = "is a directory" if file.is_dir() else "is in no directory that there is"
        raise UserError(where, f"{file} {problem}", "a new file")
    if not os.access(file.parent, os.W_OK) or (file.exists() and not os.access(file, os.W_OK)):
        raise UserError(where, f"{file} cannot be written", "a directory that can, or --out")


def other_plugins(source: Path) -> list[str]:
    """Files of plug-ins with which a run or schedule was made, and whose text is another now."""
    try:
        recorded = run_or_schedule(source)
        schedule = is_schedule_file(recorded)
        table = read_toml(recorded if schedule else _directory(recorded) / RUN_FILE)
        run = table["run"] if schedule else table
        wanted = msgspec.convert(run.get("plugin", []), list[Plugin])
    except (UserError, msgspec.ValidationError, LookupError, AttributeError):
        return []  # whoever reads it for good says what is wrong
    changed = set(others(wanted))
    return [_text_of(plugin) for plugin in wanted if plugin.name in changed]


def _text_of(plugin: Plugin) -> str:
    """What is another one now: a file, or what is installed under a name."""
    file = f"{plugin.name}.py"
    is_file = Path(plugin.path).name == file
    return file if is_file else f"version of the plug-in {plugin.name!r}"


def _directory(recorded: Path) -> Path:
    return recorded if recorded.is_dir() else recorded.parent
