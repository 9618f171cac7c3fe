"""``repro``, ``explore``, ``matrix``: races of the catalogue, run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmurace.report.arguments import On
from mmurace.report.commands.run import perform, print_json
from mmurace.report.commands.values import seed_from
from mmurace.report.progress import Progress
from mmurace.report.screen import say, stderr, stdout
from mmurace.scenarios import catalogue


def repro(
    race: str, kernel: str, patch: str, on: On, seed: str | None, out: Path | None, as_json: bool
) -> int:
    """Provoke one race of the catalogue with its recipe."""
    spec = catalogue.find(race).run(kernel, seed_from(seed)).patched(patch)
    return perform(spec, on, out, as_json)


def explore(
    race: str,
    kernel: str,
    patch: str,
    strategy: str,
    exhaust: bool,
    scope: str,
    schedules: int | None,
    seconds: float | None,
    keep_going: bool,
    recipe: bool,
    explanation: bool,
    seed: str | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """Run many schedules of one race in the simulator."""
    from mmurace.explorer.sample import explore as exploration
    from mmurace.report import exploration as explored
    from mmurace.report import searches

    known = catalogue.find(race)
    engine = searches.engine_from(strategy, exhaust, keep_going, recipe, scope)
    if engine:
        spec = known.run_in_scope(kernel, seed_from(seed), scope).patched(patch)
        return searches.search(spec, engine, schedules, seconds, out, as_json, explanation)
    strategy = strategy or "portfolio"
    spec = known.run(kernel, seed_from(seed)).patched(patch)
    spec = spec if recipe else replace(spec, chaos=None)
    options = exploration.Options(strategy, schedules, seconds, "" if keep_going else "any")
    say(f"exploring {spec.name} with {strategy}, seed {spec.seed:#x}")
    with Progress(stderr(), explored.explore_line) as progress:
        found = exploration.explore(spec, options, progress)
    outcome = None if found.finding is None else searches.record(found, out)
    if as_json:
        told = searches.told_dict(outcome, explanation)
        print_json(explored.exploration_dict(found) | told)
    else:
        explored.print_exploration(stdout(), found)
        searches.tell(outcome, explanation)
    return found.exit_code


def matrix(
    races: list[str],
    patch: str,
    schedules: int | None,
    jobs: int,
    junit: Path | None,
    seed: str | None,
    as_json: bool,
) -> int:
    """Run every race on every kernel: beside what is expected, or stock beside patched."""
    from mmurace.report.matrix import matrix as run_all

    return run_all(races, patch, schedules, jobs, seed_from(seed), as_json, junit)
