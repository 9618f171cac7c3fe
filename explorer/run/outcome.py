"""How a run came out, and what that means for the exit status."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from mmurace.explorer.run.latency import Latency
from mmurace.oracle.verdict import Verdict
from mmurace.oracle.violation import Violation
from mmurace.protocol.trace import Ending
from mmurace.scenarios.spec import RunSpec

Status = Literal["finished", "interrupted", "broken", "diverged"]

HELD: Final = 0
VIOLATED: Final = 1
USAGE: Final = 2
INCONCLUSIVE: Final = 3
BROKEN: Final = 4
NO_PROGRESS: Final = 5
INTERRUPTED: Final = 130


@dataclass(slots=True)
class OperationCount:
    """Operations of one kind: how many ended, and with which errors."""

    done: int = 0
    errors: dict[int, int] = field(default_factory=dict)
    """errno -> how often."""


@dataclass(slots=True)
class Outcome:
    """One run and its verdict."""

    spec: RunSpec
    on: Literal["processes", "simulator", "file"]
    status: Status
    detail: str
    """Why, if it did not finish."""
    verdict: Verdict
    ending: Ending
    operations: dict[str, OperationCount]
    counts: dict[str, int]
    """What became of every message."""
    rejected: dict[str, int]
    """Frames that were rejected, by reason."""
    chaos: dict[str, Any]
    """What the chaos rules did."""
    notes: dict[str, int]
    """Lines of a log that were not executed, by name."""
    seconds: float
    run_dir: Path | None = None
    stopped: str = ""
    """Which bound ended the feeding; empty: none, or the run was not live."""
    latencies: dict[str, Latency] = field(default_factory=dict)
    """What an invalidation took, by cache."""
    record: str = ""
    """Where the record of a run that was cut short ends, or how it differs from what was run."""
    unwritten: tuple[str, ...] = ()
    """Files that could not be written: path and reason."""

    @property
    def violations(self) -> tuple[Violation, ...]:
        """What was broken, in the order in which it was found."""
        return self.verdict.violations

    @property
    def expected(self) -> bool | None:
        """Whether the scenario's expectation of this kernel was met; None without one."""
        wanted = self.spec.expectation
        if wanted is None:
            return None
        breach = wanted.expected()
        if breach is None:
            return self.verdict.outcome == "held"
        return any(breach.matches(violation) for violation in self.violations)

    @property
    def exit_code(self) -> int:
        """The exit status of the command that made this run (design.md section 10)."""
        if self.status == "interrupted":
            return INTERRUPTED
        if self.status == "diverged":
            return BROKEN
        if self.violations:
            return NO_PROGRESS if self._stalled_after_chaos else VIOLATED
        if self.status == "broken":
            return BROKEN
        return INCONCLUSIVE if self.verdict.outcome == "inconclusive" else HELD

    @property
    def _stalled_after_chaos(self) -> bool:
        """Nothing but liveness was broken, under chaos, and the run did not get to its end."""
        liveness = all(v.rule.startswith("L") for v in self.violations)
        return liveness and self.spec.chaos is not None and not self.ending.complete
