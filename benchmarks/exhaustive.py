"""Exhaustive searches of the catalogue's scopes: states, deliveries, seconds, verdict.

    python benchmarks/exhaustive.py
        every kernel of every race that has a scope
    python benchmarks/exhaustive.py --race E01 --kernel v6.6 --all-orders
        and how many executions there are in all, and source-DPOR would run

Seconds are of processor time, of one process, node code run for the first time included.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable

from mmurace.explorer.exhaustive.search import Budget, Exhaustion, explore_dpor, explore_stateful
from mmurace.explorer.exhaustive.world_state import Config, Model, model_of
from mmurace.scenarios.catalogue import Race, load_all
from mmurace.scenarios.spec import RunSpec

Count = dict[Config, int]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--race", action="append", default=[], help="only these; else all")
    parser.add_argument("--kernel", default="", help="only this one")
    parser.add_argument("--scope", default="", help="another scope of that race")
    parser.add_argument("--seconds", type=float, default=120.0, help="for each search")
    parser.add_argument("--all-orders", action="store_true", help="count executions, too")
    given = parser.parse_args()
    heads = f"{'states':>9} {'deliveries':>11} {'s':>7}"
    print(f"{'race':5} {'kernel':28} {'expected':9} {'found':38} {heads}")
    for race in races(given.race):
        for case in race.kernels:
            if given.kernel in ("", case.name):
                spec = race.run_in_scope(case.name, scope=given.scope)
                search(race, case.name, spec, given.seconds)
                if given.all_orders:
                    compare(spec, given.seconds)


def races(wanted: Iterable[str]) -> list[Race]:
    """Those with a scope, or those that were asked for."""
    names = set(wanted)
    return [r for r in load_all().values() if r.scopes and (not names or r.id in names)]


def search(race: Race, kernel: str, spec: RunSpec, seconds: float) -> None:
    """One line of the table."""
    began = time.process_time()
    found = explore_stateful(spec, budget(seconds))
    took = time.process_time() - began
    expected = race.kernel_case(kernel).expect
    print(
        f"{race.id:5} {kernel:28} {expected.rule or 'held':9} {outcome(found):38} "
        f"{found.states:9,} {found.deliveries:11,} {took:7.1f}"
        + (f" of some {found.estimate:.0e} states" if found.estimate is not None else ""),
        flush=True,
    )


def budget(seconds: float) -> Budget:
    """So much processor time from now on."""
    ends = time.process_time() + seconds
    return Budget(None, lambda: time.process_time() > ends)


def outcome(found: Exhaustion) -> str:
    """The verdict in a word or two."""
    if found.violation is not None:
        rules = sorted({violation.rule for violation in found.verdict.violations})
        return f"violated: {', '.join(rules)} ({len(found.violation.entries)} deliveries)"
    word = found.verdict.outcome
    return f"{word}, exhaustive" if found.exhaustive else f"{word}, not exhaustive"


def compare(spec: RunSpec, seconds: float) -> None:
    """How many executions there are in all, and how many source-DPOR runs."""
    naive = executions(model_of(spec))
    began = time.process_time()
    found = explore_dpor(spec, budget(seconds), go_on=True)
    took = time.process_time() - began
    word = "all" if found.exhaustive else "at least"
    print(
        f"      naive: {naive:.3e} executions; dpor: {word} {found.executions:,} of them, "
        f"{found.deliveries:,} deliveries, {took:.1f} s"
    )


def executions(model: Model) -> int:
    """Complete executions in every order: paths through the graph of states, level by level."""
    level: Count = {model.first(): 1}
    total = 0
    while level:
        following: Count = {}
        for config, paths in level.items():
            total += 0 if config.heads() else paths
            for message in config.heads():
                at = model.index[message.dst]
                for move in model.machines[at].moves_of(config.nodes[at], message):
                    reached, _ = model.step(config, message, move)
                    following[reached] = following.get(reached, 0) + paths
        level = following
    return total


if __name__ == "__main__":
    main()
