"""An explanation for people: the table that kernel people put into commit messages, and why.

One column per party.  For a terminal, as Markdown of 75 columns to paste into a commit message,
as a Mermaid diagram, or as JSON.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from mmurace.explorer.explain.cures import Cure
from mmurace.explorer.explain.deaths import Fate
from mmurace.explorer.explain.interleaving import Row
from mmurace.explorer.explain.missed import owes_invalidation
from mmurace.explorer.explain.why import Explanation, Ordering
from mmurace.nodes.secondary import secondaries
from mmurace.oracle.rules.table import rule_of
from mmurace.protocol.told import DECISIVE, DETAIL
from mmurace.report import formats
from mmurace.report.arguments import Form
from mmurace.report.condense import condensed
from mmurace.report.facts import kernel_text
from mmurace.report.in_words import closing, deadline_text, detail_of
from mmurace.report.kernel_functions import kind_of, operation_of_kind
from mmurace.report.labels import Labels, missed_text
from mmurace.report.steps import operation_text, text_of

MARKDOWN_WIDTH: Final = 75
TERMINAL_WIDTH: Final = 100
LINES_MAX: Final = 50
"""An explanation fits a screen."""
DETAILED_LINES_MAX: Final = 22
"""A table with every detail is not worth more than so many."""
TABLE_LINES_MIN: Final = 16
ORDERINGS_SHOWN_MAX: Final = 4
CURES_SHOWN_MAX: Final = 8
COLUMN_MIN: Final = 18
NO_MARK: Final = "   "
"""Room for what marks a row: ``>`` if the violation names it, a letter if the text below does."""
BEFORE_SHOWN_MAX: Final = 8
WIDTH_MIN: Final = 60
"""A table has no room in less."""


# ---- as text -----------------------------------------------------------------------------------


def terminal(explanation: Explanation, width: int = TERMINAL_WIDTH) -> str:
    """For a terminal; at most ``LINES_MAX`` lines."""
    return "\n".join(_lines(explanation, max(min(width, TERMINAL_WIDTH), WIDTH_MIN)))


def markdown(explanation: Explanation) -> str:
    """For a commit message or a page: 75 columns, the table as code, paragraphs apart.

    No line begins with ``#``: git takes that for a comment.
    """
    labels = Labels(explanation.rows)
    head = _head(explanation, MARKDOWN_WIDTH)
    reasons = reasons_of(explanation, labels)
    rest = [line for reason in reasons for line in ("", *_paragraph(reason, MARKDOWN_WIDTH))]
    room = max(LINES_MAX - sum(map(len, head)) - len(rest) - len(head) - 3, TABLE_LINES_MIN)
    fenced = ["```", *table(explanation, labels, MARKDOWN_WIDTH, room), "```"]
    top = [line for block in head for line in (*block, "")]
    return "\n".join([*top, *fenced, *rest]) + "\n"


def written(explanation: Explanation, form: Form, width: int = TERMINAL_WIDTH) -> str:
    """The explanation in a form for people; only a terminal has a width."""
    if form is Form.mermaid:
        return mermaid(explanation)
    if form is Form.markdown:
        return markdown(explanation)
    return terminal(explanation, width)


def _lines(explanation: Explanation, width: int) -> list[str]:
    labels = Labels(explanation.rows)
    head = [line for block in _head(explanation, width) for line in block]
    rest = [line for r in reasons_of(explanation, labels) for line in _paragraph(r, width)]
    room = max(LINES_MAX - len(head) - len(rest) - 2, TABLE_LINES_MIN)
    return [*head, "", *table(explanation, labels, width, room), "", *rest]


def _head(explanation: Explanation, width: int) -> list[list[str]]:
    """What is broken on which kernel; what only prepared the ground."""
    violation, kernel = explanation.violation, explanation.case.spec.world.kernel
    rule = rule_of(violation.rule)
    kind = rule.name if rule else ""
    size = formats.many(explanation.deliveries, "delivery", "deliveries")
    switched = formats.many(explanation.switches, "switch", "switches")
    title = f"{violation.rule} {kind} on {kernel_text(kernel)}: {detail_of(violation)}"
    blocks = [_wrap(f"{title} ({size}, {switched})", width)]
    kinds = explanation.case.kinds()
    counts = Counter(
        f"{operation_text(kinds[op])} by {op.rpartition('/')[0]}" for op in explanation.setup
    )
    before = [f"{text} ({n} times)" if n > 1 else text for text, n in counts.items()]
    if before:
        more = len(before) - BEFORE_SHOWN_MAX
        rest = f" and {more} more" if more > 0 else ""
        told = ", ".join(before[:BEFORE_SHOWN_MAX])
        blocks.append(_wrap(f"Before: {told}{rest}", width))
    return blocks


def _paragraph(reason: Sequence[str], width: int) -> list[str]:
    """Its lines, wrapped; those after the first are items."""
    first, *items = reason
    return [*_wrap(first, width), *(line for i in items for line in _wrap(f"- {i}", width))]


def _wrap(text: str, width: int, indent: str = "  ") -> list[str]:
    return textwrap.wrap(
        formats.plain(text), width, subsequent_indent=indent, break_on_hyphens=False
    )


# ---- the table ---------------------------------------------------------------------------------


def parties(rows: Iterable[Row]) -> list[str]:
    """The columns, in order of appearance."""
    return list(dict.fromkeys(row.party for row in rows))


def table(explanation: Explanation, labels: Labels, width: int, lines_max: int) -> list[str]:
    """The interleaving; details go first where it would be too long."""

    def drawn(rows: Sequence[Row]) -> list[str]:
        told = chosen_rows(rows)
        return _table(told, titles(explanation, told), labels, width)

    rows = explanation.rows
    for weight in range(DETAIL, DECISIVE - 1, -1):
        kept = [row for row in rows if row.weight <= weight or row.named]
        lines = drawn(kept)
        if kept and len(lines) <= (DETAILED_LINES_MAX if weight == DETAIL else lines_max):
            break
    for kind in dict.fromkeys(_group(row) for row in rows if row.weight == weight + 1 < DETAIL):
        there = set(map(id, kept))
        more = [
            row
            for row in rows
            if id(row) in there or (row.weight == weight + 1 and _group(row) == kind)
        ]
        if len(drawn(more)) <= lines_max:
            kept, lines = more, drawn(more)
    return _cut(lines, lines_max)


def _group(row: Row) -> str:
    """What is told together or not at all: begins and ends, locks and unlocks."""
    return "Op" if row.kind in ("OpBegin", "OpEnd") else row.kind.replace("Unlock", "Lock")


def _cut(lines: list[str], lines_max: int) -> list[str]:
    """The beginning and the end: what is broken comes last."""
    tail = (lines_max - 3) // 2
    if len(lines) <= lines_max:
        return lines
    return [*lines[: lines_max - tail - 1], "   ...", *lines[-tail:]]


def chosen_rows(rows: Sequence[Row]) -> list[Row]:
    """Without a column for a party that only begins and ends, unless that is what is meant."""
    ends = ("OpBegin", "OpEnd")
    acting = {row.party for row in rows if row.kind not in ends or row.marks or row.named}
    return condensed([row for row in rows if row.party in acting])


def titles(explanation: Explanation, rows: Iterable[Row]) -> dict[str, str]:
    """Column -> ``cpu0 (move_pages)``: the node, and what it was asked to do in these rows."""
    case = explanation.case
    nodes = {program.name: program.node for program in (*case.programs, *case.aftermath)}
    cpus, by_workers = case.spec.world.cpus, _by_workers()
    doing: dict[str, list[str]] = {}
    for row in rows:
        mine = nodes.get(row.operation.rpartition("/")[0]) == row.party
        of = [operation_text(row.operation_kind)] * mine
        if not mine and row.party in cpus and row.operation_kind in by_workers:
            of = [operation_of_kind(row.operation_kind).FUNCTION]
        doing.setdefault(row.party, []).extend(of)
    return {
        party: f"{party} ({', '.join(dict.fromkeys(of))})" if of else party
        for party, of in doing.items()
    }


def _by_workers() -> frozenset[str]:
    """Accesses whose faults a worker thread of some processor serves, in a function known."""
    served = (access for one in secondaries() if one.work for access in one.accesses)
    return frozenset(access.__name__ for access in served if access.FUNCTION)


def _table(rows: Sequence[Row], titles: dict[str, str], labels: Labels, width: int) -> list[str]:
    columns = parties(rows)
    if not columns:
        return []
    room = max((width - len(NO_MARK)) // len(columns), COLUMN_MIN)
    lines = _cells(NO_MARK, columns, room, titles)
    lines += _cells(NO_MARK, columns, room, _rules(titles, room))
    for row in rows:
        mark = f"{'>' if row.weight == DECISIVE else ' '}{labels.letter(row):<2}"
        lines += _cells(mark, columns, room, {row.party: text_of(row)})
    return lines


def _cells(mark: str, columns: Sequence[str], room: int, texts: dict[str, str]) -> list[str]:
    """One row: as many lines as its longest text needs."""
    wrapped = {
        column: textwrap.wrap(formats.plain(text), room - 2, subsequent_indent="  ")
        for column, text in texts.items()
    }
    lines = []
    for at in range(max(map(len, wrapped.values()), default=0)):
        cells = "".join(
            "".join(wrapped.get(column, [])[at : at + 1]).ljust(room) for column in columns
        )
        lines.append(f"{NO_MARK if at else mark}{cells}".rstrip())
    return lines


def _rules(titles: dict[str, str], room: int) -> dict[str, str]:
    return {column: "-" * min(len(title), room - 2) for column, title in titles.items()}


# ---- the reasons -------------------------------------------------------------------------------


def reasons_of(explanation: Explanation, labels: Labels) -> list[list[str]]:
    """Paragraphs: a sentence or two, and for some of them items.  The last one sums up."""
    return [
        *_orderings(explanation.orderings, explanation.races, labels),
        *([_fate(fate, labels)] for fate in explanation.deaths),
        *_swap(explanation, labels),
        *_owed(explanation, labels),
        [_cures(explanation.cures, explanation.contradictory)],
        [closing(explanation)],
    ]


def _orderings(orderings: Sequence[Ordering], races: int, labels: Labels) -> list[list[str]]:
    """Nothing if no order is necessary by itself."""
    if not orderings:
        return []
    reversed_ = formats.many(races, "race was", "races were")
    runs = formats.many(min(ordering.runs for ordering in orderings), "way")
    counts = Counter(f"{labels.of(o.early)} before {labels.of(o.late)}" for o in orderings)
    items = [text + (f" ({n} times)" if n > 1 else "") for text, n in counts.items()]
    more = len(items) - ORDERINGS_SHOWN_MAX
    items = items[:ORDERINGS_SHOWN_MAX] + ([f"and {more} more"] if more > 0 else [])
    head = (
        f"Orders that are necessary ({reversed_} reversed; these passed in all of {runs} to go on):"
    )
    return [[head, *items]]


def _fate(fate: Fate, labels: Labels) -> str:
    after = "before anything else" if fate.after is None else f"after {labels.of(fate.after)}"
    if not fate.necessary:
        return (
            f"The death of {fate.node} {after} is not necessary: left out, it fails all the same."
        )
    return (
        f"The death of {fate.node} {after} is necessary: without it all of "
        f"{formats.many(fate.runs, 'way')} to go on passed."
    )


def _swap(explanation: Explanation, labels: Labels) -> list[list[str]]:
    """Nothing if none was found."""
    swap = explanation.swap
    if swap is None:
        return []
    return [[
        f"The swap that decides (found in {swap.runs} runs from a passing one): "
        f"{labels.of(swap.first)}, then {labels.of(swap.second)}, fails; the other way round "
        "passes."
    ]]  # fmt: skip


def _owed(explanation: Explanation, labels: Labels) -> list[list[str]]:
    violation = explanation.violation
    if not owes_invalidation(violation):
        return []
    due = deadline_text(explanation)
    by = f" before {due}" if due else ""
    held = f"{violation.agent}'s {violation.cache} entry of "
    where = formats.place(violation.mm, violation.address)
    text = f"Owed by {violation.owed}: to end {held}{where}{by}. "
    return [[text + missed_text(explanation.missed, labels)]]


def _cures(cures: Sequence[Cure], contradictory: int) -> str:
    tried = formats.many(len(cures), "other value")
    refused = f", {contradictory} contradict this kernel" if contradictory else ""
    safe = [cure for cure in cures if cure.safe]
    if not safe:
        return f"Cures: none of {tried} of a switch makes this schedule safe{refused}."
    lasting = [cure for cure in safe if cure.held]
    passing = [cure for cure in safe if not cure.held]
    held = f"Cures, held in {formats.many(min((c.held for c in lasting), default=0), 'schedule')}"
    parts = [f"{held}: {_named(lasting)}."] if lasting else []
    parts += [f"Safe under this very schedule only: {_named(passing)}."] if passing else []
    return " ".join([*parts, f"Tried: {tried}{refused}."])


def _beside(cure: Cure) -> str:
    return f"another breaks {cure.breaks}" if cure.breaks else f"here {value(cure.usual)}"


def _named(cures: Sequence[Cure]) -> str:
    named = [f"{c.switch} = {value(c.value)} ({_beside(c)})" for c in cures]
    more = len(named) - CURES_SHOWN_MAX
    return "; ".join(named[:CURES_SHOWN_MAX]) + (f"; and {more} more" if more > 0 else "")


def value(of: Any) -> str:
    """A switch's value as TOML has it."""
    return str(of).lower() if isinstance(of, bool) else str(of)


# ---- other forms -------------------------------------------------------------------------------


def mermaid(explanation: Explanation) -> str:
    """A sequence diagram."""
    rows = chosen_rows([row for row in explanation.rows if row.weight < DETAIL or row.named])
    lines = ["sequenceDiagram"]
    named = titles(explanation, rows)
    lines += [f"    participant {p} as {_mermaid_text(named[p])}" for p in parties(rows)]
    known = set(parties(rows))
    for row in rows:
        text = _mermaid_text(text_of(row))
        message = kind_of(row.kind)
        if message is not None and message.TOLD.row == "arrow" and row.target in known:
            lines.append(f"    {row.party}->>{row.target}: {text}")
        else:
            lines.append(f"    Note over {row.party}: {'* ' if row.marks else ''}{text}")
    return "\n".join(lines) + "\n"


def _mermaid_text(text: str) -> str:
    """Without what ends a line or begins an entity in Mermaid."""
    return formats.plain(text).replace("#", "no. ").replace(";", ",")


def as_dict(explanation: Explanation) -> dict[str, Any]:
    """For JSON."""
    e = explanation
    built: dict[str, Any] = {
        "target": msgspec.to_builtins(e.target),
        "violation": e.violation.as_dict(),
        "deliveries": e.deliveries,
        "switches": e.switches,
        "setup": e.setup,
        "rows": [_row_dict(row) for row in e.rows],
        "races_reversed": e.races,
        "necessary": msgspec.to_builtins(e.orderings),
        "deaths": msgspec.to_builtins(e.deaths),
        "swap": None if e.swap is None else msgspec.to_builtins(e.swap),
        "missed": msgspec.to_builtins(e.missed),
        "cures": msgspec.to_builtins(e.cures),
        "contradictory": e.contradictory,
    }
    return built


def _row_dict(row: Row) -> dict[str, Any]:
    return {
        "n": row.n, "party": row.party, "text": text_of(row), "kind": row.kind,
        "operation": row.operation, "marks": list(row.marks), "weight": row.weight,
        "delivery": row.name, "named": row.named,
    }  # fmt: skip
