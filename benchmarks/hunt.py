"""How many of the catalogue's bad kernels does a hunt find, without being told their programs?

    python benchmarks/hunt.py --seconds 60 [--race E08]... [--schedules 60] [--seed 1]

Each race's bad kernels are hunted in one process, so many seconds of one core each, against a
kernel of that race which is right.  *Found* is a violation that the right one does not show; *as
expected* one with the rule and the kind of cache that the race's file says.  The hunt of a kernel
ends with the latter.  A plain release has other bugs than the race's, so only *as expected* counts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmurace.campaign.hunt.hunt import Hunt, Options
from mmurace.nodes.kernel.variant import Kernel
from mmurace.scenarios import catalogue
from mmurace.scenarios.catalogue import KernelCase, Race


@dataclass(frozen=True, slots=True)
class Row:
    """One bad kernel."""

    race: str
    kernel: str
    expected: str
    found: float | None
    """Seconds to the first violation that the right kernel does not show; None: none."""
    as_expected: float | None
    """Seconds to the first one as expected."""
    programs: int
    first: str
    """What the first one was."""


def bad_kernels(wanted: list[str]) -> Iterator[tuple[Race, KernelCase]]:
    """Every kernel of the catalogue on which something is expected to break."""
    for race in catalogue.load_all().values():
        for case in race.kernels:
            if case.expect.verdict == "violated" and (not wanted or race.id in wanted):
                yield race, case


def right_kernel(race: Race, bad: KernelCase) -> Kernel | None:
    """A kernel of the race, on the same machine, on which it holds; best: of that release."""
    held = [c.kernel for c in race.kernels if c.expect.verdict == "held"]
    same = [k for k in held if k.machine == bad.kernel.machine]
    return next((k for k in same if k.release == bad.kernel.release), same[0] if same else None)


def hunted(race: Race, bad: KernelCase, options: Options) -> Row:
    """Hunt one."""
    wanted = bad.expect
    began, found, as_expected, first = time.process_time(), None, None, ""
    hunt = Hunt(bad.kernel, options, clock=time.process_time)
    for finding in hunt:
        now = time.process_time() - began
        found = now if found is None else found
        first = first or f"{finding.rule} {finding.cache} {finding.operation}"
        if finding.rule == wanted.rule and finding.cache == wanted.cache:
            as_expected = now
            break
    expected = f"{wanted.rule} {wanted.cache}"
    return Row(race.id, bad.name, expected, found, as_expected, hunt.tally.programs, first)


def line(row: Row) -> str:
    """A row of the table."""
    times = [f"{t:.1f} s" if t is not None else "-" for t in (row.as_expected, row.found)]
    cells = (row.race, row.kernel, row.expected, *times, str(row.programs), row.first)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """The table, and how many."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--schedules", type=int, default=60)
    parser.add_argument("--race", action="append", default=[])
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print("| race | kernel | expected | as expected | found | programs | first |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    rows = []
    for race, bad in bad_kernels(given.race):
        against = right_kernel(race, bad)
        options = Options(given.seed, None, given.seconds, given.schedules, 1, against)
        rows.append(hunted(race, bad, options))
        print(line(rows[-1]), flush=True)
    met = sum(row.as_expected is not None for row in rows)
    some = sum(row.found is not None for row in rows)
    print(f"\nas expected: {met} of {len(rows)}; something: {some} of {len(rows)}")


if __name__ == "__main__":
    main()
