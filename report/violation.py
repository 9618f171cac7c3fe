"""The report of one violation, in the shape of KCSAN's, which kernel people read daily.

It names the rule and the two functions, then the two accesses whose order decides, then what was
cached and from where, who owed its invalidation and by when, and ends with the command that
repeats the run.
"""

from __future__ import annotations

from typing import Final

from mmurace.oracle.rules.table import rule_of
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.envelope import BROKER, operation_of
from mmurace.report import formats
from mmurace.report.kernel_functions import DATA, RECLAIMED, filled_by, function_of
from mmurace.report.trail import Trail

RULER: Final = "=" * 66


def violation_report(violation: Violation, trail: Trail, repeat: str = "") -> str:
    """The whole report; ``repeat`` is the command that repeats the run, or empty."""
    blocks = [
        [_title(violation, trail)],
        *(_access(event, trail) for event in violation.racing),
        _cached(violation),
        _owed(violation),
        _value(violation),
        [violation.detail],
        [f"reproduce: {repeat}"] if repeat else [],
    ]
    body = "\n\n".join("\n".join(block) for block in blocks if block)
    return "\n".join((RULER, *map(formats.plain, body.split("\n")), RULER))


def _title(violation: Violation, trail: Trail) -> str:
    rule = rule_of(violation.rule)
    kind = rule.name if rule else "broken-rule"
    functions = list(dict.fromkeys(filter(None, _functions(violation, trail))))
    where = f" in {' / '.join(functions)}" if functions else ""
    return f"BUG: mmu_notifier: {violation.rule}: {kind}{where}"


def _functions(violation: Violation, trail: Trail) -> list[str]:
    """Who took the translation away, and who went on with it."""
    changed, racing = violation.changed, violation.racing
    first = changed or (racing[0] if racing else None)
    due = violation.deadline
    reclaim = RECLAIMED.get(trail.kinds.get(due.n, "")) if due is not None else None
    names = [reclaim or _function(first, trail)] if first else []
    used = next((e for e in reversed(racing) if trail.kinds.get(e.n) in DATA), None)
    if used is not None:
        return [*names, _function(used, trail)]
    if violation.cache:
        return [*names, filled_by(violation.cache)]
    return [*names, *(_function(event, trail) for event in racing[1:])]


def _function(event: Event, trail: Trail) -> str:
    return function_of(trail.kinds.get(event.n, ""), _operation_kind(event, trail))


def _operation_kind(event: Event, trail: Trail) -> str:
    return trail.operations.get(operation_of(event.id), "")


def _access(event: Event, trail: Trail) -> list[str]:
    """Who did what where, for which operation, and in which function."""
    sender = trail.senders.get(event.n, "")
    by = f" by {sender}" if sender not in ("", event.node, BROKER) else ""
    operation = f"{_operation_kind(event, trail)} {operation_of(event.id)}".strip()
    function = _function(event, trail)
    kind = trail.kinds.get(event.n, "")
    parts = [part for part in (function, f"{kind} {event.id}".strip()) if part]
    return [
        f"{event.what}{by}, delivery {event.n} at {event.node}, doing {operation}:",
        f" {': '.join(parts)}",
    ]


def _cached(violation: Violation) -> list[str]:
    """What was cached by whom, and filled from what."""
    if not violation.cache:
        return []
    where = formats.place(violation.mm, violation.address)
    frame = f" -> frame {violation.frame:#x}" if violation.frame >= 0 else ""
    lines = [f"cached by {violation.agent} ({violation.cache}): {where}{frame}"]
    if violation.filled:
        lines.append(f" filled in delivery {violation.filled.n} ({violation.filled.id})")
    if violation.read:
        saw = f", which saw: {violation.pte}" if violation.pte else ""
        lines.append(f" from the read in delivery {violation.read.n} ({violation.read.id}){saw}")
    return lines


def _owed(violation: Violation) -> list[str]:
    """Who should have invalidated it, and by when."""
    if not violation.owed:
        return []
    due = violation.deadline
    lines = [f"owed by {violation.owed}"]
    if violation.changed:
        changed = violation.changed
        lines.append(f" since the change in delivery {changed.n} ({changed.id})")
    if due:
        lines.append(f" before: {due.what} at {due.node}, delivery {due.n} ({due.id})")
    return lines


def _value(violation: Violation) -> list[str]:
    return [f"value changed: {violation.change}"] if violation.change else []
