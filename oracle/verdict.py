"""Verdicts: held, violated or inconclusive, and how it was reached."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from mmurace.oracle.violation import Violation

Outcome = Literal["held", "violated", "inconclusive"]


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A breach that a scenario names; what it leaves out may be anything."""

    rule: str
    agent: str = ""
    cache: str = ""
    mm: str = ""
    address: int = -1

    def matches(self, violation: Violation) -> bool:
        """Whether this is the breach that was meant."""
        return all(
            getattr(self, name) in ("", -1, getattr(violation, name))
            for name in ("rule", "agent", "cache", "mm", "address")
        )


class How(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a verdict was reached."""

    deliveries: int
    operations: int
    schedules: int = 1
    entered: int = 0
    """Schedules in which every *sometimes* condition was met."""
    exhaustive: bool = False
    """Every schedule within the bounds was run."""
    met: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """*Sometimes* conditions that were never met."""
    statistics: dict[str, Any] = {}
    windows: dict[str, dict[str, int]] = {}
    """Of a workload: kind of operation -> cache -> how many had somebody with such a cache in
    their window (``oracle/windows.py``).  What cannot be met in the world is not here."""


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The result of one run or of many."""

    outcome: Outcome
    reasons: tuple[str, ...]
    """Why: the rules broken, or what is missing; empty if it held."""
    violations: tuple[Violation, ...]
    how: How

    def as_dict(self) -> dict[str, Any]:
        """Builtins for JSON."""
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built


def decide(violations: Iterable[Violation], how: How, complete: bool) -> Verdict:
    """The verdict of one run; ``complete``: every operation that was fed has finished."""
    broken = tuple(violations)
    if broken:
        return Verdict("violated", _rules(broken), broken, how)
    reasons = [f"never met: {condition}" for condition in how.missing]
    if not complete:
        reasons.append("the run ended with operations in flight")
    outcome: Outcome = "inconclusive" if reasons else "held"
    return Verdict(outcome, tuple(reasons), (), how)


def _rules(violations: Iterable[Violation]) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for violation in violations:
        counts[violation.rule] = counts.get(violation.rule, 0) + 1
    return tuple(f"{rule}: {count}" for rule, count in sorted(counts.items()))


def combine(verdicts: Iterable[Verdict], exhaustive: bool = False) -> Verdict:
    """The verdict of many schedules of one scenario.

    Violated if one is; held if at least one that entered the window held (``how.entered`` says
    how many did); else inconclusive.  Of the violations each is listed once.
    """
    total = _Total()
    for verdict in verdicts:
        total.add(verdict)
    return total.verdict(exhaustive)


class _Total:
    """Adds verdicts up without keeping them."""

    def __init__(self) -> None:
        self.deliveries = self.operations = self.schedules = self.entered = 0
        self.held = 0
        self.met: dict[str, None] = {}
        self.named: dict[str, None] = {}
        self.reasons: dict[str, None] = {}
        self.violations: dict[tuple[str, ...], Violation] = {}

    def add(self, verdict: Verdict) -> None:
        """One more."""
        how = verdict.how
        self.deliveries += how.deliveries
        self.operations += how.operations
        self.schedules += how.schedules
        self.entered += how.entered
        self.held += verdict.outcome == "held"
        self.met.update(dict.fromkeys(how.met))
        self.named.update(dict.fromkeys((*how.met, *how.missing)))
        if verdict.outcome == "inconclusive":
            self.reasons.update(dict.fromkeys(verdict.reasons))
        for violation in verdict.violations:
            self.violations.setdefault(violation.identity(), violation)

    def verdict(self, exhaustive: bool) -> Verdict:
        """The sum."""
        missing = tuple(name for name in self.named if name not in self.met)
        how = How(
            self.deliveries, self.operations, self.schedules, self.entered, exhaustive,
            tuple(self.met), missing,
        )  # fmt: skip
        broken = tuple(self.violations.values())
        if broken:
            return Verdict("violated", _rules(broken), broken, how)
        if self.held:
            return Verdict("held", (), (), how)
        reasons = tuple(self.reasons) or ("no schedule was run",)
        return Verdict("inconclusive", reasons, (), how)
