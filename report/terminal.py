"""The summary of a run: the verdict first, then all that is needed to judge it, in ten seconds."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Console

from mmurace.broker.chaos_config import GATES, KILL
from mmurace.explorer.run import outcome as codes
from mmurace.explorer.run.latency import Latency
from mmurace.explorer.run.outcome import OperationCount, Outcome
from mmurace.oracle.verdict import How
from mmurace.oracle.violation import Violation
from mmurace.report import formats, windows
from mmurace.report.catalogue import expected
from mmurace.report.facts import kernel_text, ran_on
from mmurace.report.next_steps import steps_after
from mmurace.report.screen import put
from mmurace.report.trail import trail_of
from mmurace.report.violation import violation_report
from mmurace.scenarios.spec import Expectation

WORDS: Final = {
    codes.HELD: "HELD",
    codes.VIOLATED: "VIOLATED",
    codes.INCONCLUSIVE: "INCONCLUSIVE",
    codes.BROKEN: "BROKE",
    codes.NO_PROGRESS: "NO PROGRESS",
    codes.INTERRUPTED: "INTERRUPTED",
}
STYLES: Final = {"HELD": "bold green", "INCONCLUSIVE": "bold yellow", "INTERRUPTED": "bold yellow"}
LABEL_WIDTH: Final = 12
LINE_WIDTH: Final = 100
LINE_WIDTH_MIN: Final = 40
VIOLATION_LINES_MAX: Final = 12
PASTED: Final = frozenset({"run", "repeat", "next", "windows"})
"""Lines that are to be copied, or have columns, so they are never broken."""
FATES: Final = ("duplicated", "retransmitted", "dropped", "rejected", "undeliverable", "pending")

Lines = Iterator[tuple[str, str]]
"""(label, text) pairs; a label that repeats is shown once."""


def print_outcome(console: Console, outcome: Outcome) -> None:
    """The headline, the summary, and the report of the violation that matters most."""
    word = WORDS.get(outcome.exit_code, "ENDED")
    put(console, headline(outcome), STYLES.get(word, "bold red"))
    put(console, summary(outcome, max(min(console.width, LINE_WIDTH), LINE_WIDTH_MIN)))
    chosen = chosen_violation(outcome)
    if chosen is not None:
        trail = trail_of(chosen, outcome.run_dir)
        put(console, "\n" + violation_report(chosen, trail, repeat_command(outcome)))


def chosen_violation(outcome: Outcome) -> Violation | None:
    """The expected one if it is there, else the first."""
    expectation = outcome.spec.expectation
    wanted = expectation.expected() if expectation else None
    meant = [v for v in outcome.violations if wanted is not None and wanted.matches(v)]
    return next(iter((*meant, *outcome.violations)), None)


def repeat_command(outcome: Outcome) -> str:
    """The command that runs the recorded schedule again; empty if nothing was recorded."""
    if outcome.run_dir is None or not outcome.ending.deliveries:
        return ""
    return formats.command("replay", outcome.run_dir)


# ---- the verdict and how it was reached --------------------------------------------------------


def headline(outcome: Outcome) -> str:
    """The verdict and how it was reached, on one line."""
    word = WORDS.get(outcome.exit_code, "ENDED")
    word += ", NOT as expected" if outcome.expected is False else ""
    why = _why(outcome)
    return formats.plain(f"{word}: {why + '; ' if why else ''}{_how(outcome)}")


def _why(outcome: Outcome) -> str:
    if outcome.violations:
        return rules_text(outcome.violations, outcome.spec.expectation)
    if outcome.exit_code in (codes.BROKEN, codes.INTERRUPTED):
        return outcome.detail
    reasons = outcome.verdict.reasons or (windows.never_entered(outcome.verdict.how),)
    more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    return reasons[0] + more if reasons else ""


def rules_text(violations: Iterable[Violation], wanted: Expectation | None) -> str:
    """``S1 by cpu1 (2), O by cpu1``: what was expected first, all else as it was found."""
    meant = wanted.expected() if wanted is not None else None
    found = sorted(violations, key=lambda v: meant is None or not meant.matches(v))
    counts = Counter(f"{v.rule} by {v.agent}" for v in found)
    return formats.listed(f"{who} ({n})" if n > 1 else who for who, n in counts.items())


def _how(outcome: Outcome) -> str:
    ending, schedules = outcome.ending, outcome.verdict.how.schedules
    runs = formats.many(schedules, "schedule")
    complete = ", exhaustive" if outcome.verdict.how.exhaustive else ""
    deliveries = formats.many(ending.deliveries, "delivery", "deliveries")
    operations = formats.many(ending.finished, "operation")
    took = formats.seconds(outcome.seconds)
    where, seed = ran_on(outcome), f"seed {outcome.spec.seed:#x}"
    return f"{runs} {where}{complete}, {deliveries}, {operations}, {took}, {seed}"


# ---- the summary -------------------------------------------------------------------------------


def summary(outcome: Outcome, width: int = LINE_WIDTH) -> str:
    """Everything below the headline, without the report of a violation."""
    lines: list[str] = []
    last = ""
    for label, text in _facts(outcome):
        lines += _wrapped("" if label == last else label, label, formats.plain(text), width)
        last = label
    return "\n".join(lines)


def _wrapped(shown: str, label: str, text: str, width: int) -> list[str]:
    head = f"  {shown:<{LABEL_WIDTH}}"
    if label in PASTED:
        return [head + text]
    rest = " " * (len(head) + 2)
    return textwrap.wrap(
        text, width, initial_indent=head, subsequent_indent=rest,
        break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip


def _facts(outcome: Outcome) -> Lines:
    yield from _ending(outcome)
    yield from _what_ran(outcome)
    yield from _operations(outcome.operations)
    yield from _messages(outcome)
    yield from _window(outcome.verdict.how)
    yield from _statistics(outcome.verdict.how.statistics)
    yield from _latencies(outcome.latencies)
    yield from _chaos(outcome)
    yield from _notes(outcome.notes)
    yield from _violations(outcome.violations)
    yield from _expectation(outcome)
    if outcome.run_dir is not None:
        yield "run", str(outcome.run_dir)
    if repeat_command(outcome):
        yield "repeat", repeat_command(outcome)
    for line in steps_after(outcome, chosen_violation(outcome)):
        yield "next", line


def _ending(outcome: Outcome) -> Lines:
    if outcome.status != "finished":
        yield "ended", f"{outcome.status}: {outcome.detail or 'no reason is known'}"
    if outcome.record:
        yield "record", outcome.record
    if outcome.stopped and outcome.status == "finished":
        yield "stopped", f"feeding ({outcome.stopped})"
    if outcome.ending.waiting:
        waiting = outcome.ending.waiting
        first = formats.listed(f"{src} for {kind} at {dst}" for _, kind, src, dst in waiting[:3])
        yield "waiting", f"{formats.many(len(waiting), 'request')} unanswered: {first}"


def _what_ran(outcome: Outcome) -> Lines:
    spec = outcome.spec
    chaos = formats.many(len(spec.chaos.rule), "chaos rule") if spec.chaos else "no chaos"
    yield (
        "ran",
        f"{spec.name}: workload {spec.workload.kind}, kernel {kernel_text(spec.world.kernel)}, "
        f"{chaos}, seed {spec.seed:#x}",
    )
    nodes = spec.world.nodes()
    yield "nodes", f"{len(nodes)}: {' '.join(nodes)}"


def _operations(operations: Mapping[str, OperationCount]) -> Lines:
    total = sum(count.done for count in operations.values())
    failed = sum(sum(count.errors.values()) for count in operations.values())
    if operations:
        kinds = formats.listed(
            _operation(kind, count)
            for kind, count in sorted(operations.items(), key=lambda item: (-item[1].done, item[0]))
        )
        yield "operations", f"{formats.number(total)}, {formats.number(failed)} failed: {kinds}"


def _operation(kind: str, count: OperationCount) -> str:
    """``Touch 40 (3 EFAULT)``."""
    errors = (f"{n} {formats.errno_name(error)}" for error, n in sorted(count.errors.items()))
    failed = formats.listed(errors, "")
    return f"{kind} {formats.number(count.done)}" + (f" ({failed})" if failed else "")


def _messages(outcome: Outcome) -> Lines:
    counts = outcome.counts
    fates = (f"{formats.number(counts[fate])} {fate}" for fate in FATES if counts.get(fate))
    text = [
        f"{formats.number(counts[key])} {key}" for key in ("sent", "delivered") if key in counts
    ]
    if text:
        yield "messages", formats.listed([*text, *fates])
    for reason, count in sorted(outcome.rejected.items()):
        yield "rejected", f"{formats.number(count)} frames: {reason}"


def _window(how: How) -> Lines:
    """The *sometimes* conditions: without them all, green is not green."""
    for condition in how.missing:
        yield "window", f"NEVER MET {condition}"
    for condition in how.met:
        if not condition.startswith(windows.ENTERED):  # these are in the table
            yield "window", f"met {condition}"
    if how.windows:
        yield from (("windows", line) for line in windows.table_lines(how.windows))


def _statistics(statistics: Mapping[str, Any]) -> Lines:
    """What the secondaries did."""
    live = _per_key(statistics.get("invalidated"))
    if live:
        yield "secondaries", f"operations that invalidated what was cached: {live}"
    accesses = _per_key(statistics.get("accesses"))
    if accesses:
        yield "secondaries", f"accesses through caches: {accesses}"
    retries = _per_key(statistics.get("retries"))
    if retries:
        yield "secondaries", f"retries: {retries}"
    single = {
        "frames_reused": "cached frames freed and used again",
        "walks_discarded": "walks discarded",
        "accesses_trapped": "accesses trapped",
        "accesses_not_trapped": "accesses NOT trapped",
        "out_of_memory": "allocations that found no free frame",
        "oom_kills": "processes killed by the OOM killer",
    }
    said = [f"{told} {formats.number(statistics[key])}" for key, told in single.items()
            if statistics.get(key)]  # fmt: skip
    if said:
        yield "secondaries", formats.listed(said)


def _per_key(counts: Any) -> str:
    if not isinstance(counts, Mapping):
        return ""
    return formats.listed((f"{key} {formats.number(n)}" for key, n in sorted(counts.items())), "")


def _latencies(latencies: Mapping[str, Latency]) -> Lines:
    """How long invalidations took."""
    told = formats.listed(
        f"{cache} {'/'.join(map(formats.number, (found.p50, found.p99, found.max)))} "
        f"({formats.number(found.count)})"
        for cache, found in latencies.items()
    )
    if latencies:
        yield "latency", f"deliveries per invalidation, p50/p99/max: {told}"


def _chaos(outcome: Outcome) -> Lines:
    for rule in outcome.chaos.get("rules", ()):
        if rule["matched"]:
            yield "chaos", f"{rule['name']}: {rule['fault']}, {_what_it_did(rule)}"
    unmatched = outcome.chaos.get("unmatched", ())
    if unmatched:
        yield "chaos", f"matched nothing: {formats.listed(unmatched)}"


def _what_it_did(rule: Mapping[str, Any]) -> str:
    """Gates count windows, other rules count messages."""
    hits, matched = formats.number(rule["hits"]), formats.number(rule["matched"])
    if rule["fault"] in GATES:
        early = f", {formats.number(rule['gave_up'])} cut short" if rule["gave_up"] else ""
        return f"closed {formats.many(rule['hits'], 'time')}, stopped {matched}{early}"
    if rule["fault"] == KILL:
        return f"killed {hits} of {formats.many(rule['matched'], 'node')}"
    unmet = "unmet" if rule["fault"] == "hold" else "early"
    gave_up = f", {formats.number(rule['gave_up'])} let go {unmet}" if rule["gave_up"] else ""
    return f"hit {hits} of {matched}{gave_up}"


def _notes(notes: Mapping[str, int]) -> Lines:
    """What became of the lines of a log: per reason, which calls and how often."""
    groups: dict[str, list[tuple[str, int]]] = {}
    for note, count in sorted(notes.items(), key=lambda item: (-item[1], item[0])):
        reason, _, name = note.rpartition(": ")
        groups.setdefault(reason, []).append((name, count))
    for reason, calls in groups.items():
        total = formats.many(sum(count for _, count in calls), "line")
        listed = formats.listed(f"{name} {formats.number(count)}" for name, count in calls)
        yield "log", f"{total} {reason or 'not run'}: {listed}"


def _violations(violations: Iterable[Violation]) -> Lines:
    """One line per rule, agent and object."""
    counts = Counter(map(_object, violations))
    for line, count in list(counts.items())[:VIOLATION_LINES_MAX]:
        yield "violations", f"{line} x{count}" if count > 1 else line
    if len(counts) > VIOLATION_LINES_MAX:
        yield "violations", f"and {len(counts) - VIOLATION_LINES_MAX} more objects"


def _object(violation: Violation) -> str:
    cache = f" {violation.cache}" if violation.cache else ""
    where = formats.place(violation.mm, violation.address)
    return f"{violation.rule} by {violation.agent}{cache} {where or violation.detail}".rstrip()


def _expectation(outcome: Outcome) -> Lines:
    wanted = outcome.spec.expectation
    if wanted is not None:
        seen = "as expected" if outcome.expected else "NOT as expected"
        yield "expected", f"{expected(wanted)}: {seen}{earlier_text(wanted, outcome.violations)}"


def earlier_text(wanted: Expectation, violations: Sequence[Violation]) -> str:
    """Why another rule was broken before the one that was asked for; empty if none was."""
    meant, first = wanted.expected(), next(iter(violations), None)
    if meant is None or first is None or first.rule == meant.rule or not meant.rule:
        return ""
    if first.rule == "O":
        return f"; O was broken first: an invalidation is overdue before {meant.rule} comes of it"
    return f"; {first.rule} was broken first"
