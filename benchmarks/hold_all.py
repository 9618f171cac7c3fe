"""Every good kernel of every race under many schedules in the simulator: none may break a rule.

    python benchmarks/hold_all.py [--schedules N] [--race ID]... [--strategy NAME] [--no-recipe]

A line for each kernel: schedules that were run, that violated something, that entered the window,
and seconds of processor time.  The recipe makes every schedule come close to the race.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest

import multiprocess

from mmurace.explorer.sample.explore import Options, explore
from mmurace.explorer.sample.policies import CYCLES
from mmurace.scenarios.catalogue import find, load_all
from mmurace.scenarios.spec import RunSpec

SEED = 7


def good_kernels(names: list[str], recipe: bool) -> Iterator[RunSpec]:
    """Every kernel on which nothing may happen; one of each race first, as all take hours."""
    races = [find(name) for name in names] or list(load_all().values())
    of_races = [[case for case in race.kernels if case.expect.verdict == "held"] for race in races]
    for cases in zip_longest(*of_races):
        for race, case in zip(races, cases, strict=True):
            if case is not None:
                spec = race.run(case.name, SEED)
                yield spec if recipe else replace(spec, chaos=None)


def hold(job: tuple[RunSpec, Options]) -> tuple[str, bool]:
    """A line of the table, and whether it held."""
    spec, options = job
    began = time.process_time()
    found = explore(spec, options)
    took = time.process_time() - began
    counts = f"{found.schedules:>10,}{found.violated:>10,}{found.entered:>10,}"
    return f"{spec.name:<34}{counts}{took:>10.1f}", not found.violated


def main() -> int:
    """Print the table; 1 if a rule was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--schedules", type=int, default=20_000)
    parser.add_argument("--strategy", default="random", choices=CYCLES)
    parser.add_argument("--race", action="append", default=[], help="only these")
    parser.add_argument("--no-recipe", action="store_true", help="without the race's chaos rules")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="kernels at a time")
    given = parser.parse_args()
    options = Options(given.strategy, given.schedules)
    jobs = [(spec, options) for spec in good_kernels(given.race, not given.no_recipe)]
    print(f"{'race':<34}{'schedules':>10}{'violated':>10}{'entered':>10}{'seconds':>10}")
    held = True
    with multiprocess.get_context("spawn").Pool(given.jobs) as pool:
        for line, fine in pool.imap(hold, jobs):
            held &= fine
            print(line, flush=True)
    return int(not held)


if __name__ == "__main__":
    sys.exit(main())
