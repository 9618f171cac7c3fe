"""Where a run is put: ``runs/<time>-<name>/``, and ``runs/latest`` that points to the newest."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from mmurace.broker.recorder import SCHEDULE_FILE
from mmurace.nodes.disk import disk
from mmurace.nodes.files import not_opened
from mmurace.protocol.errors import UserError
from mmurace.report.screen import say
from mmurace.scenarios.spec import RUN_FILE

RUNS: Final = Path("runs")
LATEST: Final = "latest"
NAME_LENGTH_MAX: Final = 60
SCHEDULE_SUFFIX: Final = ".schedule.toml"
MADE_BEFORE: Final = re.compile(r"^((\d{8}-\d{6}-)?replay-|\d{8}-\d{6}-)+")
"""What names of runs begin with: when it was, and that it was a replay."""
TRIES_MAX: Final = 1000
"""Runs of one name that may begin within one second."""


def new_run(name: str, out: Path | None, runs: Path = RUNS) -> Path:
    """A new, empty directory for a run: ``out``, or one under ``runs`` (see ``point_latest``).

    Raises ``UserError`` if ``out`` holds something, or if nothing can be made there.
    """
    try:
        return _fresh(name, runs) if out is None else _given(out)
    except OSError as error:
        where = Path(error.filename or out or runs)
        raise not_opened(where, error, "cannot be made", "a new directory") from None


def _given(out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise UserError("--out", f"{out} is not empty", "a new or an empty directory")
    return out


def _fresh(name: str, runs: Path) -> Path:
    runs.mkdir(parents=True, exist_ok=True)
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug(name)}"
    for attempt in range(1, TRIES_MAX + 1):
        directory = runs / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            directory.mkdir()
        except FileExistsError:
            continue
        return directory
    raise UserError(str(runs / stem), "exists", "a name that is not taken")


def saved_run(source: Path) -> Path:
    """The directory of a saved run, given as itself or as its ``run.toml`` or ``schedule``.

    Raises ``UserError`` if it is none.
    """
    inside = source.is_file() and source.name in (RUN_FILE, SCHEDULE_FILE)
    directory = source.parent if inside else source
    if not (directory / RUN_FILE).is_file():
        raise UserError(str(source), f"is no run: it has no {RUN_FILE}", "a run's directory")
    return directory


def replay_name(recorded: Path) -> str:
    """``replay-NAME`` for a run, its replay or the replay of that: when is said anew."""
    whole = recorded.resolve()
    name = (whole.parent if is_schedule(whole) else whole).name.removesuffix(SCHEDULE_SUFFIX)
    return f"replay-{MADE_BEFORE.sub('', name) or name}"


def saved_schedule(source: Path) -> Path:
    """A saved run's directory, or the very ``schedule`` in it if that was given.

    Raises ``UserError``.
    """
    directory = saved_run(source)
    return source if is_schedule(source) else directory


def saved_record(source: Path) -> Path:
    """A saved run's directory, of which the journals are read.  Raises ``UserError``."""
    if is_schedule(source):
        problem = "is an order of deliveries, which can be replayed and not judged"
        raise UserError(str(source), problem, "a run's directory")
    return saved_run(source)


def is_schedule(source: Path) -> bool:
    """Whether this is the ``schedule`` of a run."""
    return source.is_file() and source.name == SCHEDULE_FILE


def slug(name: str) -> str:
    """A name as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:NAME_LENGTH_MAX] or "run"


def point_latest(directory: Path) -> None:
    """Let ``latest`` beside the directory point to it.

    Replaced in one step, so that whoever reads it meanwhile sees the old or the new one.  Raises
    ``UserError`` if something else is in its place.
    """
    link = directory.parent / f".{LATEST}-{directory.name}-{os.getpid()}"
    latest = directory.parent / LATEST
    try:
        disk().link(link, directory.name)
        disk().replace(link, latest)
    except OSError as error:
        with suppress(OSError):
            link.unlink()
        raise not_opened(latest, error, "cannot be replaced", "a link") from None


def point_to(directory: Path) -> None:
    """The same; a full disk is said and is no error, as a run is none the worse for want of it."""
    try:
        point_latest(directory)
    except OSError as error:
        say(f"{error.filename} cannot be replaced: {error.strerror}")
