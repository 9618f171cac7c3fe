"""How fast explorations are, and how soon each strategy finds each race.

    python benchmarks/explore.py [--seeds N] [--schedules N] [--race ID]... [--speed]

The first-bug table has a row for each race and strategy, the random walk always among them: of
all schedules that were run, how many in a thousand showed the violation that the race names,
with the Wilson 95 % interval; and over the seeds the median schedules and seconds until the first
one.  Recipes are not injected.  An exploration that found nothing within its budget is counted as
such, and stands in the medians with its whole budget.

Speed is measured on E01 with one CPU, one VM and two vCPUs, with the oracle, with and without the
signatures that tell distinct traces apart, alternating, so that the shares are ratios within one
run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec

from broker.exchange import Exchange
from broker.programs import Feeder, Step
from broker.schedules import RandomWalk
from broker.simulator import Simulator
from explorer.collector import collector_at_rest
from explorer.explore import Options, explore, run_schedule
from explorer.policies import CYCLES
from explorer.statistics import median, wilson
from nodes.build import build_all
from oracle.oracle import Oracle
from scenarios.catalogue import Race, find, load_all
from scenarios.spec import RunSpec
from scenarios.workloads import Script

SPEED_RACE = "E01"
SPEED_ROUNDS = 10
SPEED_SCHEDULES = 20
HIT_SCHEDULES = 500
"""Schedules that the hits per thousand are counted over, for each race and strategy."""
LOAD_MAX = 1.0


# ---- first bug ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Row:
    """One race under one strategy."""

    name: str
    strategy: str
    schedules: int = 0
    hits: int = 0
    first: list[int] = field(default_factory=list)
    """Schedules until the first one, by seed."""
    seconds: list[float] = field(default_factory=list)
    """The same in seconds; Python's start not included."""
    missed: int = 0
    """Seeds with nothing within the budget."""

    def text(self) -> str:
        """A line of the table."""
        low, high = (1000 * bound for bound in wilson(self.hits, self.schedules))
        rate = 1000 * self.hits / max(1, self.schedules)
        return (
            f"{self.name:<22}{self.strategy:<11}{rate:>8.1f} [{low:>6.1f},{high:>6.1f}]"
            f"{median(self.first):>9,.0f}{median(self.seconds):>9.2f} s{self.missed:>8}"
        )


def bad_kernels(races: list[Race]) -> list[RunSpec]:
    """Every kernel on which a race happens, without recipes."""
    return [
        replace(race.run(case.name), chaos=None)
        for race in races
        for case in race.kernels
        if case.expect.verdict == "violated"
    ]


def measure(spec: RunSpec, strategy: str, seeds: int, schedules: int) -> Row:
    """Explore under every seed until the violation that the race names."""
    row = Row(spec.name, strategy)
    rule = spec.expectation.rule if spec.expectation else "any"
    for seed in range(seeds):
        options = Options(strategy, schedules, stop_on=rule)
        found = explore(spec.with_seed(seed), options)
        row.first.append(found.schedules)
        row.seconds.append(found.seconds)
        row.missed += found.finding is None
    counted = explore(spec.with_seed(seeds), Options(strategy, HIT_SCHEDULES, stop_on=""))
    tallies = [tally for name, tally in counted.tallies.items() if _own(strategy, name)]
    row.schedules = sum(tally.schedules for tally in tallies)
    row.hits = sum(tally.expected for tally in tallies)
    return row


def _own(strategy: str, policy: str) -> bool:
    """Whether a policy is a strategy's own; walks that it began with for their counts are not."""
    return policy in CYCLES[strategy]


def first_bugs(races: list[Race], seeds: int, schedules: int) -> None:
    """Print the table."""
    print(f"first bug, {seeds} seeds, at most {schedules} schedules each; hits per 1,000 schedules")
    head = "hits/1000  (95 %)".rjust(22)
    print(f"{'race':<22}{'strategy':<11}{head}{'median':>11}{'median':>11}{'missed':>8}")
    for spec in bad_kernels(races):
        for strategy in CYCLES:
            print(measure(spec, strategy, seeds, schedules).text(), flush=True)


# ---- speed -------------------------------------------------------------------------------------


def two_vcpus(spec: RunSpec) -> RunSpec:
    """The same race with the CPU that migrates, one VM, and two vCPUs that do the same."""
    cpu, _, vcpu = spec.programs()
    alone = replace(vcpu, steps=[step for step in vcpu.steps if not _waits_for(step, "cpu1")])
    other = replace(alone, name="vcpu1", node="vcpu1")
    vm = msgspec.structs.replace(spec.world.vms[0], vcpus=("vcpu0", "vcpu1"))
    world = msgspec.structs.replace(spec.world, cpus=("cpu0",), vms=(vm,))
    return replace(spec, world=world, workload=Script((cpu, alone, other)))


def _waits_for(step: Step, program: str) -> bool:
    return any(operation.partition("/")[0] == program for operation in step.after)


def bare(spec: RunSpec, seed: int, judged: bool) -> int:
    """One random walk, with or without the oracle; its deliveries."""
    observer = Oracle(spec.world, spec.sometimes).observe if judged else None
    exchange = Exchange(Feeder(spec.programs()))
    drivers = build_all(spec.world, seed)
    return Simulator(drivers, exchange, RandomWalk(seed), observer).run().deliveries


def signed(spec: RunSpec, seed: int) -> int:
    """One random walk as explorations run it; its deliveries."""
    return run_schedule(spec.with_seed(seed), RandomWalk(seed)).deliveries


def rate(run: Callable[[int], int]) -> tuple[float, float]:
    """(deliveries, schedules) per second of processor time."""
    began, deliveries = time.process_time(), 0
    for seed in range(SPEED_SCHEDULES):
        deliveries += run(seed)
    seconds = time.process_time() - began
    return deliveries / seconds, SPEED_SCHEDULES / seconds


def speed() -> None:
    """Print deliveries and schedules per second on one core."""
    spec = two_vcpus(replace(find(SPEED_RACE).run(), chaos=None))
    runs: dict[str, Callable[[int], int]] = {
        "nodes and broker alone": lambda seed: bare(spec, seed, judged=False),
        "with the oracle": lambda seed: bare(spec, seed, judged=True),
        "with signatures too": lambda seed: signed(spec, seed),
    }
    best = dict.fromkeys(runs, (0.0, 0.0))
    with collector_at_rest():
        for _ in range(SPEED_ROUNDS):
            for name, run in runs.items():
                best[name] = max(best[name], rate(run))
    nodes = ", ".join(spec.world.nodes())
    print(f"{spec.name} ({nodes}): {bare(spec, 0, judged=False)} deliveries a schedule, one core")
    for name, (deliveries, schedules) in best.items():
        print(f"  {name:<24}{deliveries:>9,.0f} deliveries/s {schedules:>7,.0f} schedules/s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--race", action="append", default=[], help="only these")
    parser.add_argument("--speed", action="store_true", help="no first-bug table")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"python {sys.version.split()[0]}, load {load:.1f}")
    if load > LOAD_MAX:
        print(f"  the machine is busy (load above {LOAD_MAX:g}): seconds are too long")
    speed()
    if not arguments.speed:
        races = [find(name) for name in arguments.race] or list(load_all().values())
        first_bugs(races, arguments.seeds, arguments.schedules)


if __name__ == "__main__":
    main()
