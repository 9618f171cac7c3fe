"""Schedules found in the simulator, replayed on real processes: the traces must be equal.

    python benchmarks/replay_all.py [--count N] [--race ID]... [--seed N]

Every kernel on which a race of the catalogue happens is explored in turn, without its recipe, until
so many schedules were found.  Each is replayed on processes, and so is what a quick minimisation
makes of it; a replay counts only if every node had the same deliveries, choices and records, byte
for byte, and the same rules were broken.  Exit status 1 if one did not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from mmurace.explorer.run.outcome import Outcome
from mmurace.explorer.run.replay import replay_file
from mmurace.explorer.run.schedule_file import SUFFIX, load, schedule_text, write
from mmurace.explorer.run.session import replay
from mmurace.explorer.sample.explore import Exploration, Options, explore, record
from mmurace.explorer.shrink.minimize import minimize_quickly
from mmurace.scenarios.catalogue import Race, find, load_all
from mmurace.scenarios.spec import RunSpec

COUNT = 50
SCHEDULES = 1000
"""An exploration that has found nothing after so many is given up."""
TRIES = 100
"""Of each minimisation: what matters here is that what it makes can be replayed."""


@dataclass(slots=True)
class Row:
    """One race on one kernel."""

    name: str
    found: int = 0
    equal: int = 0
    short: int = 0
    """Minimised forms with an equal trace."""
    deliveries: list[tuple[int, int]] = field(default_factory=list)
    """(as found, minimised)."""
    problems: list[str] = field(default_factory=list)

    def line(self) -> str:
        """For the table."""
        sizes = ", ".join(f"{before}->{after}" for before, after in self.deliveries)
        return f"{self.name:<34}{self.found:>6}{self.equal:>7}{self.short:>10}  {sizes}"


def targets(races: Sequence[Race]) -> Iterator[tuple[Race, str]]:
    """(race, kernel) of those on which it happens."""
    for race in races:
        for case in race.kernels:
            if case.expect.verdict == "violated":
                yield race, case.name


def found_in(spec: RunSpec) -> Exploration | None:
    """The first schedule that fails."""
    found = explore(replace(spec, chaos=None), Options(schedules=SCHEDULES))
    return found if found.finding is not None else None


def check(row: Row, found: Exploration, directory: Path) -> None:
    """Replay one finding and its minimised form."""
    first, again, short = (directory / name for name in ("found", "again", "short"))
    for path in (first, again, short):
        path.mkdir()
    original = record(found, first)
    row.found += 1
    row.equal += _same(row, "replay", original.violations, replay(first, "processes", again))
    small = minimize_quickly(load(first), TRIES)
    file = directory / f"small{SUFFIX}"
    write(file, schedule_text(small.case, small.target))
    row.deliveries.append((small.before.deliveries, small.after.deliveries))
    outcome = replay_file(file, "processes", short)
    row.short += _same(row, "minimised", small.played.violations, outcome)


def _same(row: Row, what: str, wanted: Sequence[object], outcome: Outcome) -> bool:
    """Whether the run came to its end (replays do only with an equal trace) and broke as much."""
    rules = [getattr(violation, "rule", "") for violation in wanted]
    broken = [violation.rule for violation in outcome.violations]
    if outcome.status == "finished" and set(rules) <= set(broken):
        return True
    row.problems.append(f"{row.name}: {what}: {outcome.status} {outcome.detail}, broke {broken}")
    return False


def run(races: Sequence[Race], wanted: int, seed: int) -> list[Row]:
    """Find and check so many, going round the races."""
    rows: dict[str, Row] = {}
    hopeless: set[str] = set()
    for at in count(seed):
        for race, kernel in targets(races):
            name = f"{race.id} {kernel}"
            if sum(row.found for row in rows.values()) >= wanted:
                return list(rows.values())
            found = None if name in hopeless else found_in(race.run(kernel, at))
            if found is None:
                hopeless.add(name)
                continue
            with TemporaryDirectory() as directory:
                check(rows.setdefault(name, Row(name)), found, Path(directory))
            print(rows[name].line(), flush=True)
        if len(hopeless) == len(list(targets(races))):
            return list(rows.values())
    raise AssertionError("count() ends")


def main(words: Sequence[str] | None = None) -> int:
    """Check and print; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--race", action="append", default=[], help="only these")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(words)
    races = [find(name) for name in arguments.race] or list(load_all().values())
    began = time.monotonic()
    print(f"{'race and kernel':<34}{'found':>6}{'equal':>7}{'minimised':>10}  deliveries")
    rows = run(races, arguments.count, arguments.seed)
    found, equal = sum(row.found for row in rows), sum(row.equal for row in rows)
    short = sum(row.short for row in rows)
    problems = [problem for row in rows for problem in row.problems]
    print("\n".join(problems) or "no problem")
    print(
        f"{found} schedules of {len(rows)} races and kernels: {equal} replayed on processes with "
        f"an equal trace, {short} minimised forms; {time.monotonic() - began:.0f} s"
    )
    return 0 if equal == short == found else 1


if __name__ == "__main__":
    sys.exit(main())
