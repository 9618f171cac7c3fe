"""Write a page for each race, and the index: ``docs/races/*.md``.

    python docs/races.py [ID ...]           write all pages, or those; and the index
    python docs/races.py --check [ID ...]   say whether they are up to date (exit status 1 if not)
    python docs/races.py --words [ID ...]   write all but what was run, which takes no time

A page is the race's file in words, and the interleaving that ``repro --on simulator``, ``minimize``
and ``explain --format markdown`` find on the first kernel that has it: some seconds for each.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import examples

from mmurace.protocol.errors import UserError
from mmurace.report import interleaving
from mmurace.report.catalogue import expected
from mmurace.report.facts import kernel_text
from mmurace.report.minimizing import size_text
from mmurace.scenarios.catalogue import KernelCase, Race, find, load_all
from mmurace.scenarios.index import Terms, cures_of, terms_of

ROOT: Final = Path(__file__).resolve().parents[1]
PAGES: Final = ROOT / "docs" / "races"
BEGIN: Final = "## How it happens\n"
END: Final = "## What the good kernel that is most like it does otherwise\n"
"""Between them stands what was run."""
TRIED: Final = re.compile(r"\s+Tried:\s[^.]*\.")
"""How many values of switches were tried as cures: that changes with each that is new."""
FEW: Final = 4
"""Switches: with more it is another release, and which of them cures it is said above."""
HEAD: Final = "<!-- Made by docs/races.py.  Do not edit. -->\n\n"


def page(race: Race, happens: str) -> str:
    """The whole page, with what was run."""
    return "\n".join((*_before(race), BEGIN, happens, END, *_after(race)))


def _before(race: Race) -> Iterator[str]:
    terms = terms_of(race)
    yield f"{HEAD}# {race.id} {race.name}: {race.title}\n"
    yield f"Subsystems: {', '.join(terms.subsystems)}.  Breaks: {', '.join(terms.rules)}."
    if terms.cves:
        yield f"CVE: {', '.join(terms.cves)}."
    yield f"\n{race.story}\n"
    yield "| kernel | is | expected | |\n|---|---|---|---|"
    yield from (_row(case) for case in race.kernels)
    yield ""


def _row(case: KernelCase) -> str:
    told = (case.name, kernel_text(case.kernel), expected(case.expect), case.expect.description)
    return f"| {' | '.join(told)} |"


def _after(race: Race) -> Iterator[str]:
    for case in race.kernels:
        cures = cures_of(race, case)
        if len(cures) > FEW:
            yield f"- {case.name}: much; `launch.py kernels` says how two releases differ"
        elif cures:
            where = (f"`{one.name}` in {one.switch.function} ({one.switch.file})" for one in cures)
            yield f"- {case.name}: {', '.join(where)}"
    yield "\n## Run it\n"
    first = bad_case(race).name
    yield f"    python launch.py repro {race.id} --kernel {first}"
    yield f"    python launch.py explore {race.id} --kernel {first}"
    good = next(case.name for case in race.kernels if case.expect.verdict == "held")
    scope = " --exhaustive" if race.scopes else ""
    yield f"    python launch.py explore {race.id} --kernel {good}{scope}"
    yield "\n## Sources\n"
    yield from (f"- {source}" for source in race.source)
    yield ""


def bad_case(race: Race) -> KernelCase:
    """The first kernel that has the race."""
    return next(case for case in race.kernels if case.expect.verdict == "violated")


def happening(race: Race) -> str:
    """What was run: the interleaving, why, and in words."""
    kernel = bad_case(race).name
    found = examples.minimized(race.id, kernel)
    told = interleaving.markdown(examples.explained(race.id, kernel))
    return (
        f"On {kernel}; cut down from {size_text(found.before)} to {size_text(found.after)}.  `>` "
        "marks the\nevents that the violation is made of.\n\n"
        f"{TRIED.sub('', told)}"
    )


def index() -> str:
    """All races, and under which words they are found."""
    races = {race.id: terms_of(race) for race in load_all().values()}
    lines = [f"{HEAD}# Races\n", "| race | | subsystems | breaks | on |\n|---|---|---|---|---|"]
    for race in load_all().values():
        terms = races[race.id]
        words = (", ".join(w) for w in (terms.subsystems, terms.rules, terms.releases))
        lines.append(f"| {_link(race.id)} {race.name} | {race.title} | {' | '.join(words)} |")
    kinds: tuple[tuple[str, Callable[[Terms], Iterable[str]]], ...] = (
        ("subsystem", lambda terms: terms.subsystems),
        ("rule", lambda terms: terms.rules),
        ("release", lambda terms: terms.releases),
        ("CVE", lambda terms: terms.cves),
    )
    for kind, words_of in kinds:
        lines += [f"\n## By {kind}\n", *_listed(races, words_of)]
    return "\n".join((*lines, ""))


def _listed(races: dict[str, Terms], words_of: Callable[[Terms], Iterable[str]]) -> Iterator[str]:
    words = {word for terms in races.values() for word in words_of(terms)}
    for word in sorted(words, key=_natural):
        yield f"- {word}: " + ", ".join(_link(n) for n, t in races.items() if word in words_of(t))


def _natural(word: str) -> list[tuple[int, str]]:
    """v5.8 comes before v5.10."""
    return [
        (int(part or 0), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", word)
    ]


def _link(race: str) -> str:
    return f"[{race}]({race.lower()}.md)"


def path_of(race: Race) -> Path:
    """Its page."""
    return PAGES / f"{race.id.lower()}.md"


def stale(races: Iterable[Race], again: bool) -> Iterator[Path]:
    """The pages that are out of date; ``again``: what was run is run again, too."""
    if _text_of(PAGES / "README.md") != index():
        yield PAGES / "README.md"
    for race in races:
        happens = happening(race) if again else as_it_was(race)
        if page(race, happens) != _text_of(path_of(race)):
            yield path_of(race)


def as_it_was(race: Race) -> str:
    """What was run when the page was made."""
    return _text_of(path_of(race)).partition(BEGIN)[2].partition(END)[0][1:-1]


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def main(arguments: list[str]) -> int:
    """Write or check; the exit status."""
    parser = argparse.ArgumentParser(description="The pages of the races.")
    parser.add_argument("races", nargs="*", metavar="ID")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--words", action="store_true")
    given = parser.parse_args(arguments)
    try:
        races = [find(name) for name in given.races] or list(load_all().values())
    except UserError as error:
        parser.error(str(error))
    if given.check:
        old = list(stale(races, again=True))
        for path in old:
            print(f"{path.relative_to(ROOT)} is out of date: run python docs/races.py")
        return int(bool(old))
    PAGES.mkdir(exist_ok=True)
    for race in races:
        happens = as_it_was(race) if given.words else happening(race)
        path_of(race).write_text(page(race, happens), encoding="utf-8")
    (PAGES / "README.md").write_text(index(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
