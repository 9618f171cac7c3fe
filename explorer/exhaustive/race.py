"""An exhaustive search of one race, from its spec to a run that can be replayed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mmurace.broker.schedules import Recorded
from mmurace.explorer.exhaustive.search import Budget, Exhaustion, explore_dpor, explore_stateful
from mmurace.explorer.exhaustive.trace_verdicts import Counterexample
from mmurace.explorer.run.outcome import Outcome
from mmurace.explorer.run.session import simulate
from mmurace.scenarios.spec import RunSpec

Table = Mapping[str, Any]
Engine = Callable[[RunSpec, Budget], Exhaustion]
_ENGINES: Final[dict[str, Engine]] = {"dpor": explore_dpor, "stateful": explore_stateful}


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a search may go; None: to the end."""

    executions: int | None = None
    seconds: float | None = None


PROGRESS_SECONDS: Final = 0.2
"""Between two words on how far a search is."""


def search(
    spec: RunSpec, engine: str, limits: Limits, progress: Callable[[Table], None] | None = None
) -> Exhaustion:
    """Search ``spec`` with one of ``policies.ENGINES``; no chaos is injected.

    ``progress`` gets ``seconds``, ``done`` (executions or states), ``deliveries`` and ``engine``.
    """
    began = said = time.monotonic()
    seconds = limits.seconds

    def expired() -> bool:
        return seconds is not None and time.monotonic() - began >= seconds

    def watch(done: int, deliveries: int) -> None:
        nonlocal said
        now = time.monotonic()
        if progress is not None and now - said >= PROGRESS_SECONDS:
            said = now
            state = {"seconds": now - began, "done": done, "deliveries": deliveries}
            progress(state | {"engine": engine})

    return _ENGINES[engine](spec, Budget(limits.executions, expired, watch))


def record(spec: RunSpec, found: Counterexample, directory: Path) -> Outcome:
    """Run a counterexample again, with its files in ``directory`` (which must exist)."""
    plain = replace(spec, chaos=None).save(directory)
    choices = {n: given for n, given in enumerate(found.choices, 1) if given}
    return simulate(plain, directory, Recorded(found.entries), choices=choices)
