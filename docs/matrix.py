"""Write the table of every race on every kernel, run in the simulator: ``docs/matrix.md``.

    python docs/matrix.py [--jobs N] [ID ...]   run all races, or those, and write the page
    python docs/matrix.py --check               say whether its rows are those of the catalogue
                                                (exit status 1 if not), which runs nothing

What ``launch.py matrix --seed 1`` finds, as a page: some minutes for all.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from mmurace.explorer.sample import matrix as explored
from mmurace.explorer.sample.matrix import Row, expected_text
from mmurace.protocol.errors import UserError
from mmurace.report.facts import kernel_text
from mmurace.report.matrix import found_text
from mmurace.scenarios.catalogue import KernelCase, load_all

PAGE: Final = Path(__file__).resolve().parent / "matrix.md"
SEED: Final = 1
HEAD: Final = f"""\
<!-- Made by docs/matrix.py.  Do not edit. -->

# Every race on every kernel

What `python launch.py matrix --seed {SEED}` finds: each pair in {explored.RECIPE_SCHEDULES} \
schedules with the recipe of the race, and in
{explored.SCHEDULES} without it, all in the simulator.  In brackets: in how many of them something \
was broken.
A bad kernel is as expected if its agent has broken its rule; what else the same mistake breaks
stands beside it.  A good one is if nothing was broken and the window was entered.

| race | kernel | is | expected | found |
|---|---|---|---|---|
"""
ROW: Final = re.compile(r"^\| \[(\w+)\]\([^)]*\) \| (\S+) \|.* \| ([^|]*) \|$", re.MULTILINE)
Pair = tuple[str, str]
"""A race and a kernel of it."""


def pairs() -> Iterator[tuple[Pair, KernelCase, str]]:
    """(the pair, the kernel, what is expected) of all pairs, in the order of the catalogue."""
    for race in load_all().values():
        for case in race.kernels:
            yield (race.id, case.name), case, expected_text(race.run(case.name, SEED).expectation)


def page(found: dict[Pair, str]) -> str:
    """The whole page; a pair of which nothing was found is left out."""
    return HEAD + "".join(
        f"| [{race}](races/{race.lower()}.md) | {name} | {kernel_text(case.kernel)} | {expected} | "
        f"{found[race, name]} |\n"
        for (race, name), case, expected in pairs()
        if (race, name) in found
    )


def told(text: str) -> dict[Pair, str]:
    """What a page says was found, by pair."""
    return {(race, name): found for race, name, found in ROW.findall(text)}


def problems(text: str) -> Iterator[str]:
    """What a page does not say, and what it says that is not so or not as expected."""
    found = told(text)
    for pair, case, _ in pairs():
        verdict = found.get(pair, "missing").partition(":")[0]
        if verdict != case.expect.verdict:
            yield f"{' '.join(pair)}: is {verdict} (expected {case.expect.verdict})"
    if text != page(found):
        yield "a name, a kernel or what is expected is another one in the catalogue"


def run(races: Iterable[str], jobs: int) -> Iterator[Row]:
    """The rows of the named races, or of all.  Raises ``UserError``."""
    todo = explored.tasks(races, "", explored.SCHEDULES, SEED)
    for done, row in enumerate(explored.rows(todo, jobs), 1):
        print(f"{done} of {len(todo)}: {row.race} {row.kernel}", file=sys.stderr)
        yield row


def main(arguments: list[str]) -> int:
    """Write or check; the exit status: 1 if a pair is not as expected, or the page is old."""
    parser = argparse.ArgumentParser(description="The page of the matrix.")
    parser.add_argument("races", nargs="*", metavar="ID")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if not given.check:
        try:
            rows = list(run(given.races, given.jobs))
        except UserError as error:
            parser.error(str(error))
        text = page(told(text) | {(row.race, row.kernel): found_text(row.stock) for row in rows})
        PAGE.write_text(text, encoding="utf-8")
    wrong = list(problems(text))
    for line in wrong:
        print(f"docs/matrix.md: {line}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
