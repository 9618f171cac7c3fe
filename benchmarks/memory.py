"""Whether the processes of a long stress run stay as small as they were.

    python benchmarks/memory.py [--seconds N] [--chaos NAME|FILE] [--arch ARCH] [--seed N]

The workload ``mixed`` runs on real processes; twice a second the resident memory of each is read,
the launcher's too, which has the oracle.  Printed are, in MB, the medians of the ten parts of the
run, and how much the last one is above the second: in the first everything is still growing.
"""

from __future__ import annotations

import argparse
import os
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import multiprocess
import psutil

from mmurace.broker.chaos import load_rules
from mmurace.explorer.run.session import run_on_processes
from mmurace.explorer.sample.statistics import median
from mmurace.nodes.kernel.variant import preset
from mmurace.scenarios.runs import mixed_run

PARTS = 10
LAUNCHER = "launcher"


class Sizes:
    """Resident memory by process, over time."""

    def __init__(self) -> None:
        self.bytes: dict[str, list[int]] = {}
        self.deliveries = self.operations = 0

    def sample(self, numbers: dict[str, Any]) -> None:
        """Read all of them."""
        self.deliveries, self.operations = numbers["deliveries"], numbers["operations"]
        alive = {process.name: process.pid for process in multiprocess.active_children()}
        for name, pid in {LAUNCHER: os.getpid(), **alive}.items():
            try:
                self.bytes.setdefault(name, []).append(psutil.Process(pid).memory_info().rss)
            except psutil.NoSuchProcess:
                continue

    def row(self, name: str) -> str:
        """One process."""
        sizes = self.bytes[name]
        cuts = [at * len(sizes) // PARTS for at in range(PARTS + 1)]
        parts = [median(sizes[a:b]) / 1e6 for a, b in pairwise(cuts)]
        columns = "".join(f"{size:>7.1f}" for size in parts)
        return f"{name:<10}{columns}{100 * (parts[-1] / parts[1] - 1):>8.1f} %"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--chaos", default="")
    parser.add_argument("--arch", default="x86")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    chaos = load_rules(given.chaos) if given.chaos else None
    spec = mixed_run(preset("v6.6.5", given.arch), given.seed, chaos=chaos)
    sizes = Sizes()
    with TemporaryDirectory() as out:
        outcome = run_on_processes(spec, Path(out), given.seconds, sizes.sample)
    print(
        f"{outcome.seconds:.0f} s, {sizes.deliveries:,} deliveries, {sizes.operations:,} operations"
    )
    print(f"{outcome.verdict.outcome}, load {os.getloadavg()[0]:.1f}")
    for name in sizes.bytes:
        print(sizes.row(name))


if __name__ == "__main__":
    main()
