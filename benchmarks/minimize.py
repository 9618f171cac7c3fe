"""How far a long stress run on real processes is cut down, and how fast.

    python benchmarks/minimize.py [--race ID] [--kernel K] [--runs N] [--operations N]
                                  [--chaos FILE] [--seconds N]

The workload ``mixed`` runs on the kernel of a race, on real processes, recorded.  The violation
that the race is about is then cut down, and so is the race itself, run in the simulator with its
recipe.  What the one comes to is given as a multiple of what the other comes to.  A run
without that violation is counted and left out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mmurace.broker.chaos import load_rules
from mmurace.explorer.run.schedule_file import Loaded, load
from mmurace.explorer.run.session import run_on_processes, simulate
from mmurace.explorer.shrink.minimize import Minimized, minimize
from mmurace.protocol.errors import UserError
from mmurace.report.minimizing import size_text
from mmurace.scenarios.catalogue import find
from mmurace.scenarios.runs import mixed_run
from mmurace.scenarios.spec import RunSpec

RECIPE_SEED = 1
FEED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Race:
    """What is looked for, and what it comes to."""

    spec: RunSpec
    rule: str
    best: Minimized


def cut_race(name: str, kernel: str, seconds: float) -> Race:
    """The race in the simulator with its recipe, cut down."""
    spec = find(name).run(kernel, RECIPE_SEED)
    assert spec.expectation is not None
    with TemporaryDirectory() as directory:
        simulate(spec.save(Path(directory)), Path(directory))
        loaded = load(Path(directory))
    return Race(spec, spec.expectation.rule, minimize(loaded, seconds_max=seconds))


def stressed(race: Race, seed: int, operations: int, chaos: str) -> Loaded | None:
    """The same violation in a stress run on processes; None if it did not happen."""
    rules = load_rules(chaos) if chaos else None
    kernel = race.spec.world.kernel
    spec = mixed_run(kernel, seed, chaos=rules, operations_max=operations)
    with TemporaryDirectory() as name:
        directory = Path(name)
        run_on_processes(spec.save(directory), directory, FEED_SECONDS)
        try:
            loaded = load(directory, race.rule)
        except UserError:
            return None
    return loaded if loaded.target == race.best.target else None


def row(race: Race, seed: int, loaded: Loaded, seconds: float) -> str:
    """One stress run, cut down."""
    found = minimize(loaded, seconds_max=seconds)
    factor = found.after.deliveries / race.best.after.deliveries
    late = ", time was up" if found.interrupted else ""
    return (
        f"seed {seed}: {size_text(found.before)} -> {size_text(found.after)} "
        f"in {found.seconds:.1f} s, {found.tries:,} tries{late}: {factor:.2f} times the race"
    )


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--race", default="E01")
    parser.add_argument("--kernel", default="v5.7")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--operations", type=int, default=60)
    parser.add_argument("--chaos", default="", help="rules for the stress run")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each minimisation")
    arguments = parser.parse_args(words)
    print(f"load {os.getloadavg()[0]:.1f}")
    race = cut_race(arguments.race, arguments.kernel, arguments.seconds)
    print(f"{race.spec.name}, {race.best.target.text()}: {size_text(race.best.after)}")
    for seed in range(1, arguments.runs + 1):
        loaded = stressed(race, seed, arguments.operations, arguments.chaos)
        if loaded is None:
            print(f"seed {seed}: the race did not show")
        else:
            print(row(race, seed, loaded, arguments.seconds), flush=True)


if __name__ == "__main__":
    main()
