"""An exploration as people and programs read it: the verdict, how it was reached, what was seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

import msgspec
from rich.console import Console

from mmurace.explorer.run.outcome import Outcome
from mmurace.explorer.sample.explore import Bound, Exploration
from mmurace.explorer.sample.statistics import wilson
from mmurace.oracle.sometimes import describe
from mmurace.oracle.violation import Violation
from mmurace.report import formats
from mmurace.report.catalogue import expected
from mmurace.report.machine import kernel_dict
from mmurace.report.screen import put
from mmurace.report.terminal import STYLES, WORDS, chosen_violation, earlier_text, repeat_command
from mmurace.report.trail import trail_of
from mmurace.report.violation import violation_report

LABEL_WIDTH: Final = 12
VIOLATIONS_LISTED: Final = 5
Lines = Iterator[tuple[str, str]]


# ---- for people --------------------------------------------------------------------------------


def print_exploration(console: Console, found: Exploration) -> None:
    """The headline and the facts."""
    word = WORDS.get(found.exit_code, "ENDED")
    put(console, headline(found), STYLES.get(word, "bold red"))
    put(console, facts(found))


def print_violation(console: Console, outcome: Outcome) -> None:
    """The report of the violation that was found."""
    violation = chosen_violation(outcome)
    if violation is not None:
        trail = trail_of(violation, outcome.run_dir)
        put(console, "\n" + violation_report(violation, trail, repeat_command(outcome)))


def headline(found: Exploration) -> str:
    """The verdict and how it was reached, on one line, without anything that a clock says."""
    word = WORDS.get(found.exit_code, "ENDED")
    if found.exit_code == 0:
        word += ", not exhaustive"
    if found.as_expected is False:
        word += ", NOT as expected"
    reasons = found.verdict().reasons
    why = f"{reasons[0]}; " if reasons and not found.violations else ""
    broken = f"{_rules(found)}; " if found.violations else ""
    return formats.plain(f"{word}: {broken or why}{_how(found)}")


def _rules(found: Exploration) -> str:
    wanted = found.spec.expectation
    meant = wanted.expected() if wanted is not None else None
    broken = sorted(found.violations.values(), key=lambda v: meant is None or not meant.matches(v))
    return formats.listed(dict.fromkeys(f"{v.rule} by {v.agent}" for v in broken))


def _how(found: Exploration) -> str:
    schedules = formats.many(found.schedules, "schedule")
    deliveries = formats.many(found.deliveries, "delivery", "deliveries")
    return f"{schedules} ({found.options.strategy}), {deliveries}, seed {found.spec.seed:#x}"


def facts(found: Exploration) -> str:
    """Everything below the headline, a line each."""
    lines, last = [], ""
    for label, text in _facts(found):
        shown = "" if label == last else label
        lines.append(f"  {shown:<{LABEL_WIDTH}}{formats.plain(text)}")
        last = label
    return "\n".join(lines)


def _facts(found: Exploration) -> Lines:
    yield "kernel", found.spec.name
    if found.violated:
        low, high = found.interval
        yield (
            "violated",
            f"{found.violated} of {formats.many(found.schedules, 'schedule')} "
            f"(95 %: {low:.2%} to {high:.2%})",
        )
    yield from _expectation(found)
    yield from _finding(found)
    for violation in list(found.violations.values())[:VIOLATIONS_LISTED]:
        yield "broken", _violation(violation)
    for policy, tally in found.tallies.items():
        runs = formats.many(tally.schedules, "schedule")
        yield "policy", f"{policy:<8}{runs:>17}, {tally.violated:,} violated"
    for bound in found.bounds():
        yield "bound", bound_text(bound)
    yield "window", f"entered in {found.entered:,} of {formats.many(found.schedules, 'schedule')}"
    for at, condition in enumerate(found.spec.sometimes):
        yield "window", f"{formats.many(found.met.get(at, 0), 'time'):>13}  {describe(condition)}"
    coverage = found.coverage
    yield (
        "coverage",
        f"{formats.many(coverage.distinct, 'distinct trace')} in a sample of "
        f"{formats.many(coverage.signed, 'schedule')}; the next one is new with probability "
        f"{coverage.unseen:.3f}",
    )
    for point, count in sorted(coverage.points.items()):
        yield "coverage", f"{formats.many(count, 'schedule'):>17} with {point}"
    if found.seconds:
        rate, speed = found.schedules / found.seconds, found.deliveries / found.seconds
        took = formats.seconds(found.seconds)
        yield "took", f"{took}: {rate:,.0f} schedules/s, {speed:,.0f} deliveries/s"


def _expectation(found: Exploration) -> Lines:
    """Whether it came out as the race's file says of this kernel."""
    wanted, broken = found.spec.expectation, tuple(found.violations.values())
    if wanted is None:
        return
    seen = {True: "as expected", False: "NOT as expected", None: "not seen"}[found.as_expected]
    why = earlier_text(wanted, broken)
    if found.as_expected is None and broken and found.options.stop_on:
        why += f"; the search ended there, --keep-going goes on to {wanted.rule or 'the rest'}"
    yield "expected", f"{expected(wanted)}: {seen}{why}"


def _finding(found: Exploration) -> Lines:
    finding, outcome = found.finding, found.recorded
    if finding is None:
        return
    yield "found by", f"schedule {finding.index + 1}, a {finding.policy} one"
    if outcome is not None and outcome.run_dir is not None:
        yield "run", str(outcome.run_dir)
        yield "repeat", repeat_command(outcome)
    if found.options.stop_on:
        yield "ended", "at the first violation; --keep-going goes on"


def _violation(violation: Violation) -> str:
    place = formats.place(violation.mm, violation.address)
    cache = f" ({violation.cache})" if violation.cache else ""
    return f"{violation.rule} by {violation.agent}{cache} at {place}: {violation.detail}"


def bound_text(bound: Bound) -> str:
    """What the schedules of one policy without a violation show."""
    text = f"{bound.policy:<8}a violation in at most {bound.at_most:.2%} of schedules (95 %)"
    if bound.depth:
        text += (
            f"; a bug of depth {bound.depth} shows in at least {bound.finds:.1e} of them, "
            f"so all missed it with at most {bound.missed:.1%}"
        )
    return text


def explore_line(state: Mapping[str, Any]) -> str:
    """``3.1 s: 410 schedules (132/s), 56 of 59 traces distinct, unseen mass 0.95, ...``."""
    return (
        f"{formats.seconds(float(state['seconds']))}: {state['schedules']:,} schedules "
        f"({state['rate']:,.0f}/s), {state['distinct']:,} of {state['signed']:,} traces distinct, "
        f"unseen mass {state['unseen']:.3f}, window entered in {state['entered']:,}, "
        f"{state['violated']:,} violated"
    )


# ---- for programs ------------------------------------------------------------------------------


def result_dict(found: Exploration) -> dict[str, Any]:
    """What was found; two explorations with the same seed give the same."""
    low, high = found.interval
    coverage, finding = found.coverage, found.finding
    return {
        "exit_code": found.exit_code,
        "headline": headline(found),
        "verdict": msgspec.to_builtins(found.verdict()),
        "name": found.spec.name,
        "kernel": kernel_dict(found.spec.world.kernel),
        "seed": found.spec.seed,
        "strategy": found.options.strategy,
        "recipe": found.spec.chaos is not None,
        "schedules": found.schedules,
        "deliveries": found.deliveries,
        "violated": found.violated,
        "expected": found.expected,
        "as_expected": found.as_expected,
        "interval": [low, high],
        "policies": {name: _tally(found, name) for name in found.tallies},
        "bounds": [asdict(bound) for bound in found.bounds()],
        "entered": found.entered,
        "incomplete": found.incomplete,
        "conditions": {
            describe(c): found.met.get(at, 0) for at, c in enumerate(found.spec.sometimes)
        },
        "distinct_traces": coverage.distinct,
        "signed": coverage.signed,
        "unseen_mass": coverage.unseen,
        "coverage": dict(sorted(coverage.points.items())),
        "found_by": None if finding is None else [finding.index, finding.policy],
    }


def _tally(found: Exploration, policy: str) -> dict[str, Any]:
    tally = found.tallies[policy]
    return asdict(tally) | {"interval": list(wilson(tally.violated, tally.schedules))}


def exploration_dict(found: Exploration) -> dict[str, Any]:
    """The result, and what differs from one time to the next: the wall clock, the directory."""
    outcome, seconds = found.recorded, found.seconds
    return result_dict(found) | {
        "wall": {
            "seconds": round(seconds, 3),
            "schedules_per_second": round(found.schedules / seconds) if seconds else None,
            "deliveries_per_second": round(found.deliveries / seconds) if seconds else None,
        },
        "run_dir": str(outcome.run_dir) if outcome is not None else None,
        "repeat": repeat_command(outcome) if outcome is not None else None,
    }
