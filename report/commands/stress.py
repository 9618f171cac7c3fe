"""``stress``: a workload on real processes under chaos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from mmurace.oracle.rules.table import rules as known_rules
from mmurace.protocol.errors import UserError
from mmurace.report.arguments import On
from mmurace.report.commands.run import perform
from mmurace.report.commands.values import kernel_from, seed_from
from mmurace.scenarios.spec import RunSpec

SECONDS: Final = 30.0
"""How long ``stress`` feeds the endless workload, if nothing else is said."""
OPERATIONS: Final = 20_000
"""The same on the simulator, which has no clock."""


def stress(
    workload: str,
    kernel: str,
    arch: str,
    switches: list[str],
    drivers: list[str],
    world: Path | None,
    chaos: str | None,
    seconds: float | None,
    operations: int | None,
    stop_on: str,
    journal_max: str | None,
    on: On,
    seed: str | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """Run a workload under chaos until a time, an operation count or a violation."""
    from mmurace.broker.chaos import load_rules
    from mmurace.broker.chaos_config import check_names
    from mmurace.explorer.run.stop import size_from
    from mmurace.scenarios.runs import workload_run
    from mmurace.scenarios.world_file import load_world

    check_bounds(on, seconds, operations, stop_on, journal_max)
    file = load_world(world)
    variant = kernel_from(file, kernel, arch, switches, drivers)
    rules = None if chaos is None else load_rules(chaos)
    spec = workload_run(workload, variant, seed_from(seed), rules, operations, file)
    if rules is not None:
        check_names(rules, spec.world.nodes(), (p.name for p in spec.programs()), str(chaos))
    spec, seconds = bounded(spec, on, seconds)
    size = None if journal_max is None else size_from(journal_max, "--journal-max")
    return perform(spec, on, out, as_json, seconds, stop_on, size)


def check_bounds(
    on: On, seconds: float | None, operations: int | None, stop_on: str, journal_max: str | None
) -> None:
    """Raise ``UserError`` for bounds that exclude each other or do not exist here."""
    if seconds is not None and operations is not None:
        raise UserError("--seconds, --operations", "exclude each other", "one of them")
    if on is On.simulator and seconds is not None:
        raise UserError("--seconds", "the simulator has no clock", "--operations")
    if on is On.simulator and journal_max is not None:
        raise UserError("--journal-max", "the simulator runs to the end", "--operations")
    if on is On.simulator and stop_on:
        raise UserError("--stop-on", "the simulator runs to the end", "--on processes")
    known = [rule.id for rule in known_rules()]
    if stop_on not in ("", "any", *known):
        raise UserError("--stop-on", f"no rule {stop_on!r}", f"any, or one of {', '.join(known)}")


def bounded(spec: RunSpec, on: On, seconds: float | None) -> tuple[RunSpec, float | None]:
    """The run and the seconds of its feeding: an endless workload gets a bound."""
    if seconds is not None or spec.operations_max is not None or spec.workload.kind != "mixed":
        return spec, seconds
    if on is On.simulator:
        return replace(spec, operations_max=OPERATIONS), None
    return spec, SECONDS
