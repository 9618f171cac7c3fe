"""Random runs, judged by the oracle and by a naive checker: they must agree.

    python benchmarks/second_opinion.py --runs N --seed S [--jobs J] [--from N] [--whole]
    python benchmarks/second_opinion.py --seed S --only N

Prints every disagreement with the number of its run, which ``--only`` runs again, with all that
either of them says.  They must agree about rules and agents; with ``--whole`` also about caches and
pages.  Exit status 1 if they do not.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections import Counter
from functools import partial
from pathlib import Path

import multiprocess

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.second_opinion.both import Opinions, run
from tests.second_opinion.programs import draw

CHUNK = 20
"""Runs that a worker is given at a time."""


def compare(seed: int, whole: bool, number: int) -> tuple[int, str, list[str], list[str]]:
    """Run number: its name, what they disagree about, and rules that were broken in it."""
    try:
        drawn = draw(seed, number)
        opinions = run(drawn)
    except Exception:  # a bug of either of them, or of a program: it is said, and the rest goes on
        return number, "broke", traceback.format_exc().splitlines()[-3:], []
    oracle_only, second_only = opinions.differences(whole)
    lines = [f"only the oracle:         {tuple(f)}" for f in sorted(oracle_only)]
    lines += [f"only the second opinion: {tuple(f)}" for f in sorted(second_only)]
    return number, drawn.name, lines, sorted({f.rule for f in opinions.second})


def tell(opinions: Opinions) -> None:
    """All that either says."""
    for violation in opinions.oracle:
        print("oracle:", violation.text())
        print("       ", violation.filled, violation.changed, violation.owed, violation.deadline)
    for finding in sorted(opinions.second):
        print("second:", tuple(finding))


def main() -> int:
    """Compare; 1 if they disagree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--from", type=int, default=0, dest="first", help="number of the first run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--whole", action="store_true", help="compare caches and pages, too")
    parser.add_argument("--only", type=int, help="this run alone, with all that they say")
    given = parser.parse_args()
    if given.only is not None:
        tell(run(draw(given.seed, given.only)))
        return 0
    began, disagreed, broken = time.monotonic(), 0, Counter[str]()
    numbers = range(given.first, given.first + given.runs)
    with multiprocess.get_context("spawn").Pool(given.jobs) as pool:
        todo = partial(compare, given.seed, given.whole)
        for number, name, lines, rules in pool.imap_unordered(todo, numbers, CHUNK):
            broken.update(rules or ["none"])
            disagreed += bool(lines)
            if lines:
                print(
                    f"--seed {given.seed} --only {number}: {name}", *lines, sep="\n  ", flush=True
                )
    rules_text = ", ".join(f"{rule} {count:,}" for rule, count in sorted(broken.items()))
    print(
        f"{given.runs:,} runs, {disagreed:,} disagreements, {time.monotonic() - began:.0f} s; "
        f"runs that broke: {rules_text}"
    )
    return int(disagreed > 0)


if __name__ == "__main__":
    sys.exit(main())
