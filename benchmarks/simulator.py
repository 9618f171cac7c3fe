"""Deliveries per second of the simulator on one core, with the oracle on, and where they go.

    python benchmarks/simulator.py [--operations N] [--profile]

The load is the default ``mixed`` workload on v6.6.5 under the random walk.  The same run is timed
with and without the oracle, alternating, so that the shares are ratios within one run.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.explorer.run.garbage_collector import collector_at_rest
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel.variant import preset
from mmurace.oracle.oracle import Oracle
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.limits import LOW_WATER_EVERY
from mmurace.scenarios.mixed import Mixed

ROUNDS = 5


def run(operations: int, with_oracle: bool, seed: int = 1) -> tuple[int, float]:
    """One run: (deliveries, seconds)."""
    mixed = Mixed()
    world = mixed.world(preset("v6.6.5"))
    exchange = Exchange(Feeder(mixed.programs(world, seed), operations))
    oracle = Oracle(world)

    def observe(envelope: Envelope, handled: Handled) -> None:
        oracle.observe(envelope, handled)
        if handled.n % LOW_WATER_EVERY == 0:
            oracle.forget_before(exchange.low_water())

    observer = observe if with_oracle else None
    simulator = Simulator(build_all(world, seed), exchange, RandomWalk(seed), observer)
    with collector_at_rest():
        began = time.perf_counter()
        ending = simulator.run()
        return ending.deliveries, time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operations", type=int, default=2000)
    parser.add_argument("--profile", action="store_true", help="also print the top functions")
    arguments = parser.parse_args()
    rates: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(ROUNDS):
        for with_oracle in (True, False):
            deliveries, seconds = run(arguments.operations, with_oracle)
            rates[with_oracle].append(deliveries / seconds)
    best, bare = max(rates[True]), max(rates[False])
    print(f"deliveries per run        {deliveries:>9,}")
    print(f"with the oracle           {best:>9,.0f} per second (best of {ROUNDS})")
    print(f"without                   {bare:>9,.0f} per second")
    print(f"the oracle's share        {1 - best / bare:>9.0%}")
    if arguments.profile:
        profile = cProfile.Profile()
        profile.runcall(run, arguments.operations, True)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
