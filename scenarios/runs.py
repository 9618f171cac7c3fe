"""Runs of workloads: a spec for a log, a spec for the mixed workload."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmurace.broker.chaos import ChaosConfig
from mmurace.nodes.kernel.variant import Kernel
from mmurace.oracle.sometimes import window_conditions, workload_conditions
from mmurace.protocol.errors import UserError
from mmurace.scenarios.log_parties import TouchOptions
from mmurace.scenarios.mixed import Mixed, MixedOptions
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.strace import StraceLog
from mmurace.scenarios.world_file import WorldFile


def workload_run(
    name: str,
    kernel: Kernel,
    seed: int,
    chaos: ChaosConfig | None = None,
    operations_max: int | None = None,
    file: WorldFile | None = None,
) -> RunSpec:
    """The run of a workload by its name or log, in the world of ``file``.

    Raises ``UserError``.
    """
    file = file or WorldFile()
    if name == "mixed":
        spec = mixed_run(kernel, seed, file.options(kernel), chaos, operations_max)
        return replace(spec, world=file.resize(spec.world))
    if not Path(name).is_file():
        raise UserError("--workload", f"no workload {name!r}", "mixed, or the file of a log")
    spec = strace_run(Path(name), kernel, seed, chaos=chaos)
    return replace(spec, world=file.log_world(spec.world), operations_max=operations_max)


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
    asked = (*workload_conditions(world), *window_conditions(workload.kinds(), world))
    return RunSpec("mixed", world, seed, workload, chaos, operations_max, sometimes=asked)
