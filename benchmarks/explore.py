"""How fast explorations are, and how soon each strategy finds each race.

    python benchmarks/explore.py [--seeds N] [--schedules N] [--race ID]... [--strategy NAME]...
                                 [--until-first | --speed]

The first-bug table has a row for each race and strategy, the random walk always among them.  Under
every seed an exploration runs the same number of schedules; recipes are not injected.

- *named* of a thousand schedules showed the violation that the race names, with the Wilson 95 %
  interval, and *any* showed that or another one, which is what ``explore`` stops at;
- *schedules* and *seconds* until the first such one are medians over the seeds.  Where fewer than
  half of the explorations found one, they are computed from the rate and marked with ``~``; ``-``
  if there was none at all.  Seconds are processor time
  of the search; ``--speed`` prints the time to start.

The policies of the portfolio have rows of their own below it, made of its schedules.

With ``--until-first`` every exploration ends with its first violation, as ``explore`` does, or
after ``--schedules``: one row for each race with the medians, and how many found none.

Speed is measured on E01 with one CPU, one VM and two vCPUs, alternating, each schedule by
its best round: nodes and broker alone, with the clocks of happens-before, with the oracle, and with
the signatures that tell distinct traces apart.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import log, log1p
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Step
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Observer, Simulator
from mmurace.explorer.run.garbage_collector import collector_at_rest
from mmurace.explorer.sample.explore import (
    COLLECT_EVERY,
    Exploration,
    Options,
    explore,
    run_schedule,
)
from mmurace.explorer.sample.policies import CYCLES
from mmurace.explorer.sample.statistics import median, wilson
from mmurace.nodes.build import build_all
from mmurace.nodes.secondaries.kvm.part import Vm
from mmurace.oracle.state.order import Order
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.scenarios.catalogue import Race, find, load_all
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script

SPEED_RACE = "E01"
SPEED_ROUNDS = 10
SPEED_SCHEDULES = 20
STARTS = 5
ROOT = Path(__file__).parents[1]
LOAD_MAX = 1.0


# ---- first bug ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Row:
    """One race under one strategy."""

    name: str
    strategy: str
    schedules: int = 0
    named: int = 0
    """Schedules with the violation that the race names."""
    any: int = 0
    first: list[int] = field(default_factory=list)
    """Schedules until the first violation, by seed; those that found none are not in it."""
    explored: int = 0
    """Seeds."""
    seconds: float = 0.0

    def add(self, found: Exploration, seconds: float) -> None:
        """One more seed."""
        self.schedules += found.schedules
        self.named += found.expected
        self.any += found.violated
        self.explored += 1
        self.seconds += seconds
        if found.finding is not None:
            self.first.append(found.finding.index + 1)

    def until_first(self) -> tuple[float, str]:
        """The median number of schedules, and how it is marked."""
        missed = self.explored - len(self.first)
        if self.explored and len(self.first) > missed:
            return median([*self.first, *[self.schedules] * missed]), ""
        if not self.any:
            return 0.0, "-"
        rate = self.any / self.schedules
        return (1.0 if rate == 1 else max(1.0, -log(2) / log1p(-rate))), "~"

    def text(self) -> str:
        """A line of the table."""
        low, high = (1000 * bound for bound in wilson(self.named, self.schedules))
        per = 1000 / max(1, self.schedules)
        line = (
            f"{self.name:<34}{self.strategy:<11}{self.named * per:>7.1f} [{low:>6.1f},{high:>7.1f}]"
            f"{self.any * per:>8.1f}"
        )
        if not self.explored:
            return line
        count, mark = self.until_first()
        if mark == "-":
            return f"{line}{mark:>10}{mark:>9}"
        took = f"{mark}{count * self.seconds / self.schedules:.2f}"
        return f"{line}{f'{mark}{count:,.0f}':>10}{took:>9}"


HEAD = (
    f"{'race':<34}{'strategy':<11}{'named/1000  (95 %)':>24}"
    f"{'any':>8}{'schedules':>10}{'seconds':>9}"
)


def bad_kernels(races: list[Race]) -> list[RunSpec]:
    """Every kernel on which a race happens, without recipes."""
    return [
        replace(race.run(case.name), chaos=None)
        for race in races
        for case in race.kernels
        if case.expect.verdict == "violated"
    ]


def measure(spec: RunSpec, strategy: str, seeds: int, schedules: int) -> list[Row]:
    """Explore under every seed; the row, and for the portfolio one for each of its policies."""
    row, policies = Row(spec.name, strategy), dict[str, Row]()
    for seed in range(seeds):
        began = time.process_time()
        found = explore(spec.with_seed(seed), Options(strategy, schedules, stop_on=""))
        row.add(found, time.process_time() - began)
        for name, tally in found.tallies.items():
            part = policies.setdefault(name, Row("", f"  {name}"))
            part.schedules += tally.schedules
            part.named += tally.expected
            part.any += tally.violated
    return [row, *policies.values()] if strategy == "portfolio" else [row]


def first_bugs(races: list[Race], strategies: list[str], seeds: int, schedules: int) -> None:
    """Print the table."""
    print(f"first bug, {seeds} seeds, {schedules} schedules each\n{HEAD}")
    for spec in bad_kernels(races):
        for strategy in strategies:
            for row in measure(spec, strategy, seeds, schedules):
                print(row.text(), flush=True)


def until_first(races: list[Race], strategy: str, seeds: int, schedules: int) -> None:
    """Print how soon explorations end."""
    print(
        f"until the first violation, {strategy}, {seeds} seeds, at most {schedules} schedules each"
    )
    print(f"{'race':<34}{'none':>5}{'schedules':>10}{'seconds':>9}{'per 1000 (95 %)':>28}")
    for spec in bad_kernels(races):
        counts, times, hits = [], [], 0
        for seed in range(seeds):
            began = time.process_time()
            found = explore(spec.with_seed(seed), Options(strategy, schedules))
            times.append(time.process_time() - began)
            counts.append(found.schedules)
            hits += found.finding is not None
        low, high = (1000 * bound for bound in wilson(hits, sum(counts)))
        rate = f"{1000 * hits / sum(counts):.1f} [{low:.1f}, {high:.1f}]"
        medians = f"{median(counts):>10,.0f}{median(times):>9.2f}"
        print(f"{spec.name:<34}{seeds - hits:>5}{medians}{rate:>28}", flush=True)


def start() -> None:
    """Print how long a command takes that explores one schedule."""
    options = ["--schedules", "1", "--seed", "1", "--no-explain"]
    command = [sys.executable, "launch.py", "explore", SPEED_RACE, *options]
    seconds: list[float] = []
    with TemporaryDirectory() as out:
        for _ in range(STARTS):
            began = time.perf_counter()
            subprocess.run(
                [*command, "--out", f"{out}/{len(seconds)}"],
                cwd=ROOT, capture_output=True, check=False, timeout=60,
            )  # fmt: skip
            seconds.append(time.perf_counter() - began)
    print(f"Python's start, imports and one schedule: {median(seconds):.2f} s (median of {STARTS})")


# ---- speed -------------------------------------------------------------------------------------


def two_vcpus(spec: RunSpec) -> RunSpec:
    """The same race with the CPU that migrates, one VM, and two vCPUs that do the same."""
    cpu, _, vcpu = spec.programs()
    alone = replace(vcpu, steps=[step for step in vcpu.steps if not _waits_for(step, "cpu1")])
    other = replace(alone, name="vcpu1", node="vcpu1")
    vm = msgspec.structs.replace(spec.world.parts_of(Vm)[0], vcpus=("vcpu0", "vcpu1"))
    world = msgspec.structs.replace(spec.world.with_parts(Vm, (vm,)), cpus=("cpu0",))
    return replace(spec, world=world, workload=Script((cpu, alone, other)))


def _waits_for(step: Step, program: str) -> bool:
    return any(operation.partition("/")[0] == program for operation in step.after)


def bare(spec: RunSpec, seed: int, observer: Observer | None = None) -> int:
    """One random walk, without the oracle; its deliveries."""
    exchange = Exchange(Feeder(spec.programs()))
    drivers = build_all(spec.world, seed)
    deliveries = Simulator(drivers, exchange, RandomWalk(seed), observer).run().deliveries
    for driver in drivers.values():
        driver.close()
    return deliveries


def ordered(spec: RunSpec, seed: int) -> int:
    """One random walk with nothing but the clocks; its deliveries."""
    order = Order(spec.world.nodes())

    def observe(envelope: Envelope, handled: Handled) -> None:
        order.deliver(handled.n, order.index[envelope.dst], envelope.causes)

    return bare(spec, seed, observe)


def explored(spec: RunSpec, seed: int, signed: bool) -> int:
    """One random walk as explorations run it; its deliveries."""
    run = run_schedule(spec.with_seed(seed), RandomWalk(seed), signed=signed)
    return run.deliveries


def timed(run: Callable[[int], int], seed: int) -> tuple[int, float]:
    """(deliveries, seconds of processor time) of one schedule."""
    began = time.process_time()
    deliveries = run(seed)
    if seed % COLLECT_EVERY == 0:  # as explorations do
        gc.collect()
    return deliveries, time.process_time() - began


def speed() -> None:
    """Print deliveries and schedules per second on one core."""
    spec = two_vcpus(replace(find(SPEED_RACE).run(), chaos=None))
    runs: dict[str, Callable[[int], int]] = {
        "nodes and broker alone": lambda seed: bare(spec, seed),
        "with clocks": lambda seed: ordered(spec, seed),
        "with the oracle": lambda seed: explored(spec, seed, signed=False),
        "with signatures too": lambda seed: explored(spec, seed, signed=True),
    }
    best: dict[str, dict[int, tuple[float, int]]] = {name: {} for name in runs}
    with collector_at_rest():
        for name, run in [*runs.items()] * SPEED_ROUNDS:
            gc.collect()  # nobody pays for what the others left
            for seed in range(SPEED_SCHEDULES):
                deliveries, seconds = timed(run, seed)
                known = best[name].get(seed, (seconds, deliveries))
                best[name][seed] = min(known, (seconds, deliveries))
    nodes = ", ".join(spec.world.nodes())
    print(f"{spec.name} ({nodes}): {bare(spec, 0)} deliveries a schedule, one core")
    for name, of_seed in best.items():
        took = sum(seconds for seconds, _ in of_seed.values())
        per_second = sum(deliveries for _, deliveries in of_seed.values()) / took
        schedules = len(of_seed) / took
        print(f"  {name:<24}{per_second:>9,.0f} deliveries/s {schedules:>7,.0f} schedules/s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--schedules", type=int, default=100)
    parser.add_argument("--strategy", action="append", default=[], choices=CYCLES)
    parser.add_argument("--race", action="append", default=[], help="only these")
    parser.add_argument("--until-first", action="store_true", help="end with the first violation")
    parser.add_argument("--speed", action="store_true", help="the speed instead of the table")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"python {sys.version.split()[0]}, load {load:.1f}")
    if load > LOAD_MAX:
        print(f"  the machine is busy (load above {LOAD_MAX:g}): seconds are too long")
    if arguments.speed:
        start()
        speed()
        return
    races = [find(name) for name in arguments.race] or list(load_all().values())
    if arguments.until_first:
        for strategy in arguments.strategy or ["portfolio"]:
            until_first(races, strategy, arguments.seeds, arguments.schedules)
        return
    strategies = list(dict.fromkeys(["random", *(arguments.strategy or CYCLES)]))
    first_bugs(races, strategies, arguments.seeds, arguments.schedules)


if __name__ == "__main__":
    main()
