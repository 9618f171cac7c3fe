"""How fast this version samples beside others, in turn, each in a process of its own.

    git worktree add /tmp/old 7b9fcb3
    python benchmarks/versions.py /tmp/old [OTHER ...] [--rounds 24] [--race E01 --race E08]

A ratio of processor time above 1: the other takes so many times as long.  Give it a core of its own
if you can (``chrt --rr 20 taskset --cpu-list 1 python benchmarks/versions.py ...``).
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parents[1]
SCHEDULES: Final = 40
RACES: Final = ("E01", "E04", "E08")
"""E01 with two vCPUs, as ``benchmarks/explore.py --speed`` has it."""


class Version:
    """A checkout, in a process that runs schedules when it is asked."""

    def __init__(self, root: Path) -> None:
        self.name = str(root)
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(root)], text=True, cwd=root,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def seconds(self, race: str) -> float:
        """Of processor time for a delivery, with the oracle."""
        asked, told = self._process.stdin, self._process.stdout
        assert asked is not None
        assert told is not None
        print(race, file=asked, flush=True)
        line = told.readline()
        if not line:
            raise SystemExit(f"{self.name}: it does not run {race}")
        return float(json.loads(line))

    def close(self) -> None:
        """It has nothing more to do."""
        self._process.communicate()


def serve(root: Path) -> None:
    """Answer each race on stdin with the seconds of a delivery."""
    sys.path.insert(0, str(root))
    spec = importlib.util.spec_from_file_location("measured", root / "benchmarks" / "explore.py")
    assert spec is not None
    assert spec.loader is not None
    explore = importlib.util.module_from_spec(spec)
    sys.modules["measured"] = explore
    spec.loader.exec_module(explore)
    specs: dict[str, Any] = {}
    for race in map(str.strip, sys.stdin):
        if race not in specs:
            run = replace(explore.find(race).run(), chaos=None)
            specs[race] = explore.two_vcpus(run) if race == "E01" else run
        print(json.dumps(_measured(explore.explored, specs[race])), flush=True)


def _measured(explored: Callable[[Any, int, bool], int], spec: object) -> float:
    gc.collect()
    began = time.process_time()
    deliveries = sum(explored(spec, seed, False) for seed in range(SCHEDULES))
    return (time.process_time() - began) / deliveries


def compare(roots: list[Path], races: list[str], rounds: int) -> None:
    """Print a line for each race."""
    versions = [Version(root) for root in (HERE, *roots)]
    for race in races:
        taken: dict[Version, list[float]] = {version: [] for version in versions}
        for number in range(rounds + 1):
            for version in random.Random(number).sample(versions, len(versions)):
                taken[version].append(version.seconds(race))
        ours = taken[versions[0]][1:]  # in the first round all is new
        told = [f"{race}: {1 / min(ours):,.0f} deliveries/s"]
        for version in versions[1:]:
            theirs = taken[version][1:]
            ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
            told.append(f"{version.name} {ratio:.3f}")
        print("; ".join(told), flush=True)
    for version in versions:
        version.close()


def main() -> None:
    """Compare, or be one of those that are compared."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("roots", nargs="*", type=Path, metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--race", dest="races", action="append", default=[])
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
    else:
        compare([root.resolve() for root in given.roots], given.races or list(RACES), given.rounds)


if __name__ == "__main__":
    main()
