"""Every bug of ``docs/known-bugs.md`` is seen where it was, and not where it is cured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from mmurace.explorer.sample.explore import Exploration, Options, explore
from mmurace.scenarios.catalogue import Race, find

PAGE = Path(__file__).parents[1] / "docs" / "known-bugs.md"
FILES = Path(__file__).parent / "data" / "known_bugs"
LINK = re.compile(r"\[[^]]*\]\((?P<path>[^)]*)\)")
COMMIT = re.compile(r"\b[0-9a-f]{12}\b")
SCHEDULES_GOOD, SCHEDULES_BAD = 40, 1500


class Bug(NamedTuple):
    """A row of the page."""

    what: str
    releases: str
    rule: str
    introduced: str
    cured: str
    race: str
    bad: str
    good: str

    def load(self) -> Race:
        """Its race."""
        link = LINK.match(self.race)
        return find(str((PAGE.parent / link["path"]).resolve()) if link else self.race)

    def explored(self, kernel: str, schedules: int) -> Exploration:
        """Its race with its recipe, if it has one."""
        spec = self.load().run(kernel, 1)
        return explore(spec, Options(schedules=schedules, stop_on=self.rule))


def rows() -> list[Bug]:
    """All of them."""
    cells = (
        [cell.strip() for cell in line.strip("| ").split(" | ")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| what")
    )
    return [Bug(*row) for row in cells]


BUGS = rows()
IDS = [f"{LINK.sub(lambda m: Path(m['path']).stem, bug.race)}-{bug.bad}" for bug in BUGS]


@pytest.mark.parametrize("bug", BUGS, ids=IDS)
def test_the_release_that_has_it_is_violated(bug: Bug) -> None:
    assert bug.load().kernel_case(bug.bad).expect.verdict == "violated"
    found = bug.explored(bug.bad, SCHEDULES_BAD)
    assert bug.rule in {violation.rule for violation in found.violations.values()}


@pytest.mark.parametrize("bug", BUGS, ids=IDS)
def test_one_that_has_it_not_holds(bug: Bug) -> None:
    assert bug.load().kernel_case(bug.good).expect.verdict == "held"
    found = bug.explored(bug.good, SCHEDULES_GOOD)
    assert found.violated == 0, found.violations


def test_each_says_where_it_came_from_or_went_to() -> None:
    assert [bug.what for bug in BUGS if not COMMIT.search(f"{bug.introduced} {bug.cured}")] == []
    named = {Path(LINK.match(bug.race)["path"]).name for bug in BUGS if LINK.match(bug.race)}  # type: ignore[index]  # matched
    assert {path.name for path in FILES.glob("*.toml")} <= named
