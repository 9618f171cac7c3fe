"""Runs of workloads: a spec for a log, a spec for the mixed workload."""

from __future__ import annotations

from pathlib import Path

from broker.chaos import ChaosConfig
from nodes.kernel.variant import Kernel
from oracle.sometimes import workload_conditions
from scenarios.log_programs import TouchOptions
from scenarios.mixed import Mixed, MixedOptions
from scenarios.spec import RunSpec
from scenarios.strace import StraceLog


def strace_run(
    path: Path,
    kernel: Kernel,
    seed: int = 0,
    options: TouchOptions | None = None,
    chaos: ChaosConfig | None = None,
) -> RunSpec:
    """A run of the memory calls in an strace log.  Raises ``UserError``: file:line."""
    workload = StraceLog(path, options or TouchOptions())
    world = workload.world(kernel)
    conditions = workload.conditions(world, seed)
    return RunSpec(path.stem, world, seed, workload, chaos, sometimes=conditions)


def mixed_run(
    kernel: Kernel,
    seed: int = 0,
    options: MixedOptions | None = None,
    chaos: ChaosConfig | None = None,
    operations_max: int | None = None,
) -> RunSpec:
    """A run of the mixed workload; endless unless bounded by options or ``operations_max``."""
    workload = Mixed(options or MixedOptions())
    world = workload.world(kernel)
    return RunSpec(
        "mixed", world, seed, workload, chaos, operations_max, sometimes=workload_conditions(world)
    )
