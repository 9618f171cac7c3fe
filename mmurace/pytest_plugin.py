"""The pytest plug-in: files in ``races/`` are tests, one for each kernel; races in Python.

It is loaded by every pytest that is installed beside this package, so it imports nothing of it
until a race is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mmurace.scenarios.catalogue import Race
    from mmurace.testing import Raced, Racer

MARKER = "notifier_race"
FILES = "races_files"
PLUGINS = "races_plugins"
SUMMARY = "notifier_race"
"""Under this name a report has what was raced."""
SIGNS = (b"[[kernel]]", b"[[program]]")
"""A TOML file without any of these is somebody else's."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options and settings."""
    group = parser.getgroup("mmu_notifier races")
    group.addoption(
        "--races-schedules", type=int, default=None, metavar="N",
        help="run so many schedules of each race; else 100, and 20 with its recipe",
    )  # fmt: skip
    group.addoption(
        "--races-seed", type=lambda text: int(text, 0), default=None, metavar="SEED",
        help="an integer or hex; else 1, so that what fails fails again",
    )  # fmt: skip
    parser.addini(FILES, "files that are races, as patterns", type="args", default=["races/*.toml"])
    parser.addini(PLUGINS, "plug-ins of the emulator that races need", type="paths", default=[])


def pytest_configure(config: pytest.Config) -> None:
    """The marker."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(schedules=100, seed=1): a test with races; fails if it raced nothing",
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """A race's file; schedule files and what is no race are left alone."""
    if file_path.suffix != ".toml" or file_path.name.endswith(".schedule.toml"):
        return None
    if not any(file_path.match(pattern) for pattern in parent.config.getini(FILES)):
        return None
    text = file_path.read_bytes()
    if not any(sign in text for sign in SIGNS):
        return None
    return RaceFile.from_parent(parent, path=file_path)


class RaceFile(pytest.File):
    """A race: a test for each of its kernels."""

    def collect(self) -> Iterable[pytest.Item]:
        """Read it; what is wrong in it is told by file and key path."""
        from mmurace.protocol.errors import UserError
        from mmurace.scenarios.catalogue import find

        try:
            load_plugins(self.config)
            race = find(str(self.path))
        except UserError as error:
            raise self.CollectError(str(error)) from None
        for case in race.kernels:
            yield RaceItem.from_parent(self, name=case.name, race=race)


class RaceItem(pytest.Item):
    """A race on one kernel."""

    def __init__(self, *, race: Race, **given: Any) -> None:
        super().__init__(**given)
        self.race = race
        self.add_marker(MARKER)

    def runtest(self) -> None:
        """Race, and fail if it does not come out as its file says."""
        racer = racer_of(self)
        try:
            racer(self.race, self.name)
        finally:
            self.user_properties += told(racer.raced)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Why, without a traceback: it is no fault of the test's code."""
        from mmurace.protocol.errors import PluginError, UserError
        from mmurace.testing import RaceFailed

        if isinstance(excinfo.value, RaceFailed | UserError | PluginError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """How it is called."""
        return self.path, None, f"{self.race.id} on {self.name}: {self.race.title}"


@pytest.fixture
def notifier_race(request: pytest.FixtureRequest) -> Iterator[Racer]:
    """Runs races in a test: ``notifier_race("races/my.toml", "v6.2")`` (``mmurace.testing``).

    A test that has it and races nothing fails.
    """
    load_plugins(request.config)
    racer = racer_of(request.node)
    yield racer
    request.node.user_properties += told(racer.raced)
    if not racer.raced:
        pytest.fail("nothing was raced: the test has never called notifier_race", pytrace=False)


def racer_of(item: pytest.Item) -> Racer:
    """With what the marker says, else the options, else as usual."""
    from mmurace.report.racing import SCHEDULES, SEED
    from mmurace.testing import Racer

    marker, option = item.get_closest_marker(MARKER), item.config.getoption
    given = marker.kwargs if marker is not None else {}
    schedules = given.get("schedules", option("--races-schedules") or SCHEDULES)
    asked = option("--races-seed")
    return Racer(item.config.rootpath, schedules, given.get("seed", SEED if asked is None else asked))


def load_plugins(config: pytest.Config) -> None:
    """The emulator's plug-ins that the settings name.  Raises ``UserError``."""
    from mmurace.nodes.plugins import load

    load(map(str, config.getini(PLUGINS)))


def told(raced: Iterable[Raced]) -> list[tuple[str, object]]:
    """What a report keeps, which may come from another process."""
    return [(SUMMARY, [one.schedules, one.entered, one.deliveries]) for one in raced]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How much was raced: green without schedules is not green."""
    reports = [r for kept in terminalreporter.stats.values() for r in kept]
    rows = [
        value
        for report in reports
        if getattr(report, "when", "") == "teardown"  # by then all that a test has raced is told
        for name, value in getattr(report, "user_properties", ())
        if name == SUMMARY
    ]
    if rows:
        schedules, entered, deliveries = map(sum, zip(*rows, strict=True))
        terminalreporter.write_line(
            f"races: {len(rows)} on a kernel each, {schedules:,} schedules, {deliveries:,} "
            f"deliveries; the window was entered in {entered:,} schedules"
        )
