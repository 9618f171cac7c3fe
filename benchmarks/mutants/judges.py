"""Who is shown a mutant; each runs inside the copy of the tree that has it.

    python -m benchmarks.mutants.judges programs "v6.6.5 x86" --seconds 60

The last line that is printed is the answer, as JSON.  Seconds are of processor time.  A judge ends
when its standard input does, for its parent is gone then.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec
import pytest

from benchmarks.mutants.planted import Answer, listed
from benchmarks.mutants.programs import programs_of, world_of
from mmurace.campaign.hunt import hunt as hunting
from mmurace.campaign.hunt.finding import Finding
from mmurace.explorer.sample.explore import Exploration, Options, explore
from mmurace.nodes.kernel.variant import Kernel
from mmurace.scenarios.catalogue import find, load_all
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script

SCHEDULES: Final = 8
"""Of each random program."""
RACE_SCHEDULES: Final = 100
"""Of a race that a hunt has written, on the stock code."""
RECIPE_SCHEDULES: Final = 20
"""Of each good kernel of the catalogue."""
PROGRAMS_MAX: Final = 1_000_000
"""Of a hunt, which time ends before."""
DELIVERIES_MAX: Final = 60_000
"""Of one schedule: some ten times what it needs."""


def _explore(spec: RunSpec, schedules: int) -> tuple[str, str]:
    """The rule that a few schedules break, and how; or that the run itself broke; empty: none."""
    options = Options("portfolio", schedules, stop_on="any", deliveries_max=DELIVERIES_MAX)
    try:
        found = explore(spec, options)
    except Exception as error:  # whatever the mutant makes of the emulator
        return f"broken: {type(error).__name__}", str(error)
    return _said(found)


def _said(found: Exploration) -> tuple[str, str]:
    for violation in found.violations.values():
        return violation.rule, violation.text()
    return ("incomplete", "a schedule did not end") if found.incomplete else ("", "")


def try_program(kernel: Kernel, seed: int) -> tuple[str, str]:
    """What one random program shows."""
    world = world_of(kernel, seed)
    spec = RunSpec(f"program-{seed}", world, seed, Script(programs_of(world, seed)))
    return _explore(spec, SCHEDULES)


def programs(kernels: list[str], seconds: float, again: str = "") -> Answer:
    """Random programs on these kernels in turn; with ``again`` only the one that it names."""
    began = time.process_time()
    tries = [again.rpartition("/")] if again else _tries(kernels)
    for name, _, seed in tries:
        rule, text = try_program(listed().stock(name).kernel(), int(seed))
        took = time.process_time() - began
        if rule:
            return Answer(True, took, rule, f"{name}: {text}", f"{name}/{seed}")
        if took >= seconds:
            break
    return Answer(False, time.process_time() - began)


def _tries(kernels: list[str]) -> Iterator[tuple[str, str, str]]:
    for seed in count():
        yield from ((name, "/", str(seed)) for name in kernels)


def hunt(kernels: list[str], seconds: float, again: str = "") -> Answer:
    """``launch.py hunt`` on one kernel after the other; with ``again`` only the race it wrote."""
    began = time.process_time()
    if again:
        rule, text = try_race(again)
        return Answer(bool(rule), time.process_time() - began, rule, text)
    for name in kernels:
        try:
            for found in _hunted(name, seconds / len(kernels)):
                took = time.process_time() - began
                return Answer(True, took, found.rule, f"{name}: {found.text}", found.race)
        except Exception as error:  # whatever the mutant makes of the emulator
            took = time.process_time() - began
            return Answer(True, took, f"broken: {type(error).__name__}", f"{name}: {error}")
    return Answer(False, time.process_time() - began)


def _hunted(name: str, seconds: float) -> Iterator[Finding]:
    """In one process what is found need not wait for the programs behind it (``LAG``)."""
    hunting.LAG = 1  # type: ignore[misc]  # a constant for everybody else
    kernel, began = listed().stock(name).kernel(), time.process_time()

    def bound(_: object) -> None:
        if time.process_time() - began >= seconds:
            raise TimeoutError

    with contextlib.suppress(TimeoutError):
        options = hunting.Options(programs=PROGRAMS_MAX)
        yield from hunting.Hunt(kernel, options, progress=bound)


def try_race(text: str) -> tuple[str, str]:
    """What the race in a file of this text shows on its kernel."""
    with TemporaryDirectory() as directory:
        (file := Path(directory) / "race.toml").write_text(text)
        race = find(str(file))
        return _explore(race.run(race.kernels[0].name, 1), RACE_SCHEDULES)


def catalogue(_kernels: list[str], seconds: float, _again: str = "") -> Answer:
    """Every good kernel of every race, with its recipe: does one break a rule?"""
    began = time.process_time()
    for race in load_all().values():
        for case in race.kernels:
            if case.expect.verdict != "held":
                continue
            rule, text = _explore(find(race.id).run(case.name, 1), RECIPE_SCHEDULES)
            took = time.process_time() - began
            if rule:
                return Answer(True, took, f"{race.id} {case.name}", f"{rule}: {text}")
            if took >= seconds:
                return Answer(False, took, text="cut off")
    return Answer(False, time.process_time() - began)


def suite(files: list[str], _seconds: float, _again: str = "") -> Answer:
    """Test files, or all of them: does one fail?"""
    began = time.process_time()
    words = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not processes", "--timeout", "240"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = pytest.main([*words, *files])
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", said.getvalue(), re.MULTILINE)
    took = time.process_time() - began
    return Answer(status != pytest.ExitCode.OK, took, failed[0] if failed else "", "")


JUDGES: Final[dict[str, Callable[[list[str], float, str], Answer]]] = {
    "hunt": hunt,
    "programs": programs,
    "catalogue": catalogue,
    "suite": suite,
}


def _end_with_parent() -> None:
    ours = os.dup(0)

    def wait() -> None:
        while os.read(ours, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Ask one judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("judge", choices=JUDGES)
    parser.add_argument("what", nargs="*", help="kernels, or test files")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--again", default="")
    given = parser.parse_args()
    _end_with_parent()
    answer = JUDGES[given.judge](given.what, given.seconds, given.again)
    print(msgspec.json.encode(answer).decode(), flush=True)


if __name__ == "__main__":
    main()
