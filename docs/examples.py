"""Write the examples of explained races: ``docs/examples/*.md``.

``python docs/examples.py`` writes them, ``--check`` only says whether they are up to date (exit
status 1 if not).  Each page is what these commands print: ``repro --on simulator --seed 1``, then
``minimize``, then ``explain --format markdown``.
"""

from __future__ import annotations

import difflib
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from mmurace.explorer.explain.why import Explanation, explain
from mmurace.explorer.run.schedule_file import Loaded, load
from mmurace.explorer.run.session import simulate
from mmurace.explorer.shrink.minimize import Minimized, minimize
from mmurace.report import interleaving
from mmurace.report.minimizing import size_text
from mmurace.scenarios.catalogue import find

ROOT = Path(__file__).resolve().parents[1]

EXAMPLES: Final = (("E01", "v5.7"), ("E08", "v6.2-end-only"))
"""(race, kernel)."""
SEED: Final = 1
SECONDS_MAX: Final = 600.0
"""Far more than it takes: the page must not depend on how fast a machine is."""
PAGE: Final = """\
<!-- Made by docs/examples.py.  Do not edit. -->

# {race} on {kernel}: {title}

Found with `python launch.py repro {race} --kernel {kernel} --on simulator --seed {seed}`, which
took {before}; cut down by `python launch.py minimize`
to {after}; explained by
`python launch.py explain --format markdown`, which prints what follows.  `>` marks the events
that the violation is made of, letters those of which the text below speaks.

{explanation}
The same as a sequence diagram (`--format mermaid`):

```mermaid
{diagram}```
"""


@cache
def minimized(race: str, kernel: str, seed: int = SEED) -> Minimized:
    """The race, run in the simulator with its recipe and cut down."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        simulate(find(race).run(kernel, seed).save(directory), directory)
        loaded = load(directory)
    return minimize(loaded, seconds_max=SECONDS_MAX, search_runs=0)


@cache
def explained(race: str, kernel: str) -> Explanation:
    """Its explanation."""
    found = minimized(race, kernel)
    return explain(Loaded(found.case, found.target, found.played))


def page(race: str, kernel: str) -> str:
    """The whole page."""
    found = minimized(race, kernel)
    explanation = explained(race, kernel)
    return PAGE.format(
        race=race,
        kernel=kernel,
        title=find(race).title,
        seed=SEED,
        before=size_text(found.before),
        after=size_text(found.after),
        explanation=interleaving.markdown(explanation),
        diagram=interleaving.mermaid(explanation),
    )


def path_of(race: str, kernel: str) -> Path:
    """The page's file."""
    return ROOT / "docs" / "examples" / f"{race.lower()}-{kernel}.md"


def differences() -> list[str]:
    """What is out of date, as lines to print."""
    lines: list[str] = []
    for race, kernel in EXAMPLES:
        path, new = path_of(race, kernel), page(race, kernel)
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if old != new:
            difference = difflib.unified_diff(old.splitlines(), new.splitlines(), n=1)
            name = path.relative_to(ROOT)
            lines += [f"{name} is out of date: run python docs/examples.py", *difference]
    return lines


def main(arguments: list[str]) -> int:
    """Write or check; the exit status."""
    if arguments not in ([], ["--check"]):
        print(f"usage: {Path(__file__).name} [--check]", file=sys.stderr)
        return 2
    if arguments:
        lines = differences()
        print("\n".join(lines[:60]), file=sys.stderr)
        return int(bool(lines))
    for race, kernel in EXAMPLES:
        path_of(race, kernel).parent.mkdir(exist_ok=True)
        path_of(race, kernel).write_text(page(race, kernel), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
