"""Every kernel of every race with its recipe on real processes, under many seeds.

    python benchmarks/repro_all.py [--seeds N] [--first SEED] [--race ID]... [--jobs N]

A run is right if its verdict, rule, agent and object are what the race's file says, and on a good
kernel only if the window was entered.  A line for each kernel: how many runs were right, and the
median of their seconds, from the first process to the last one gone (processes are forked off a
server; a single ``repro`` starts interpreters).  ``--keep DIR`` keeps what was wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from mmurace.explorer.run.outcome import HELD, VIOLATED
from mmurace.explorer.run.session import run_on_processes
from mmurace.explorer.sample.statistics import median
from mmurace.scenarios.catalogue import KernelCase, Race, find, load_all


def run(race: Race, case: KernelCase, keep: Path | None, seed: int) -> tuple[bool, float]:
    """Whether it came out as the file says, and its seconds."""
    began = time.monotonic()
    with TemporaryDirectory() as directory:
        spec = race.run(case.name, seed).save(Path(directory))
        outcome = run_on_processes(spec, Path(directory))
        wanted = HELD if case.expect.verdict == "held" else VIOLATED
        right = bool(outcome.expected) and outcome.exit_code == wanted
        if keep is not None and not right:
            shutil.copytree(directory, keep / f"{spec.name}-{seed}", dirs_exist_ok=True)
    return right, time.monotonic() - began


def line(race: Race, case: KernelCase, right: int, seconds: list[float]) -> str:
    """A line of the table."""
    verdict = f"{case.expect.verdict} {case.expect.rule}"
    count = f"{right} of {len(seconds)}"
    return f"{race.id:5} {case.name:28} {verdict:13} {count:>9} {median(seconds):6.2f} s"


def main() -> int:
    """Print the table; 1 if a run was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--race", action="append", default=[], help="only these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--keep", type=Path, help="where to copy runs that were wrong")
    given = parser.parse_args()
    print(f"python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f}, {given.jobs} at a time")
    races = [find(name) for name in given.race] or list(load_all().values())
    seeds = range(given.first, given.first + given.seeds)
    wrong = runs = 0
    with ThreadPoolExecutor(given.jobs) as pool:
        for race, case in [(one, case) for one in races for case in one.kernels]:
            done = list(pool.map(partial(run, race, case, given.keep), seeds))
            right = sum(ok for ok, _ in done)
            wrong, runs = wrong + len(done) - right, runs + len(done)
            print(line(race, case, right, [took for _, took in done]), flush=True)
    print(f"{runs - wrong} of {runs} runs as expected")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
