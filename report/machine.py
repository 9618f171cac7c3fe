"""A run as one JSON object, for other programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Final

import msgspec

from mmurace.explorer.run.outcome import OperationCount, Outcome
from mmurace.nodes.files import unwritten
from mmurace.nodes.kernel.variant import Kernel
from mmurace.report.facts import switches_set
from mmurace.report.screen import say
from mmurace.report.terminal import headline, repeat_command

SUMMARY_FILE: Final = "summary.json"


def outcome_dict(outcome: Outcome) -> dict[str, Any]:
    """Everything about a run, as builtins."""
    spec, ending = outcome.spec, outcome.ending
    return {
        "exit_code": outcome.exit_code,
        "headline": headline(outcome),
        "verdict": verdict_dict(outcome),
        "status": outcome.status,
        "detail": outcome.detail,
        "stopped": outcome.stopped,
        "on": outcome.on,
        "name": spec.name,
        "workload": spec.workload.kind,
        "kernel": kernel_dict(spec.world.kernel),
        "seed": spec.seed,
        "nodes": list(spec.world.nodes()),
        "seconds": round(outcome.seconds, 3),
        "ending": msgspec.to_builtins(ending),
        "operations": {k: operation_dict(c) for k, c in sorted(outcome.operations.items())},
        "latency": {cache: asdict(found) for cache, found in outcome.latencies.items()},
        "counts": outcome.counts,
        "rejected": outcome.rejected,
        "chaos": outcome.chaos,
        "log": outcome.notes,
        "expectation": msgspec.to_builtins(spec.expectation),
        "as_expected": outcome.expected,
        "violations": [violation.as_dict() for violation in outcome.violations],
        "record": outcome.record,
        "unwritten": list(outcome.unwritten),
        "run_dir": str(outcome.run_dir) if outcome.run_dir else None,
        "repeat": repeat_command(outcome) or None,
    }


def save_summary(outcome: Outcome) -> None:
    """Write ``summary.json`` into the run's directory, whole or not at all.

    If that cannot be (the disk is full), it is said, and the run is still told on the screen.
    """
    if outcome.run_dir is None:
        return
    path = outcome.run_dir / SUMMARY_FILE
    problem = unwritten(path, as_json(outcome_dict(outcome)) + "\n")
    if problem:
        say(f"{path} cannot be written{problem.removeprefix(str(path))}")


def verdict_dict(outcome: Outcome) -> dict[str, Any]:
    """The verdict, why, and how it was reached: conditions met and missing, statistics."""
    verdict = outcome.verdict.as_dict()
    del verdict["violations"]
    return verdict


def kernel_dict(kernel: Kernel) -> dict[str, Any]:
    """The kernel: its preset, what differs from that, and every switch."""
    return {
        "release": kernel.release,
        "arch": kernel.machine,
        "drivers": list(kernel.profiles),
        "set": switches_set(kernel),
        "switches": kernel.switches(),
    }


def operation_dict(count: OperationCount) -> dict[str, Any]:
    """How often an operation was done, and with which errors (by errno)."""
    return {"done": count.done, "errors": {str(e): n for e, n in sorted(count.errors.items())}}


def as_json(value: dict[str, Any]) -> str:
    """One object."""
    return json.dumps(value, indent=2, ensure_ascii=True, default=str)
