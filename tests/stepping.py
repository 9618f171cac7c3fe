"""A race cut down once, for all tests that go through it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from mmurace.explorer.explain.found import story_of
from mmurace.explorer.sample.explore import Options, explore, record
from mmurace.scenarios.catalogue import find

RACE, KERNEL, SEED = "E01", "v5.7", 3


@cache
def minimal_schedule() -> str:
    """The text of the minimal schedule file of the race of the README."""
    from tempfile import TemporaryDirectory

    spec = replace(find(RACE).run(KERNEL, SEED), chaos=None)
    found = explore(spec, Options(schedules=200))
    with TemporaryDirectory() as directory:
        record(found, Path(directory))
        return story_of(Path(directory)).file.read_text()


def schedule_file(directory: Path) -> Path:
    """That schedule as a file in ``directory``."""
    file = directory / "race.schedule.toml"
    file.write_text(minimal_schedule())
    return file
