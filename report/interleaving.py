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

from mmurace.explorer.explain.deaths import Fate
from mmurace.explorer.explain.interleaving import DECISIVE, DETAIL, ESSENTIAL, Row
from mmurace.explorer.explain.places import Spot
from mmurace.explorer.explain.why import Cure, Explanation, Missed, Ordering
from mmurace.oracle.rules.table import rule_of
from mmurace.protocol.envelope import BROKER, REPLY_MARK
from mmurace.report import words
from mmurace.report.arguments import Form
from mmurace.report.condense import condensed
from mmurace.report.facts import kernel_text
from mmurace.report.functions import OPERATIONS
from mmurace.report.steps import function_text, operation_text, text_of

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
MARK: Final = "> "


# ---- as text -----------------------------------------------------------------------------------


def terminal(explanation: Explanation, width: int = TERMINAL_WIDTH) -> str:
    """For a terminal; at most ``LINES_MAX`` lines."""
    return "\n".join(_lines(explanation, min(width, TERMINAL_WIDTH)))


def markdown(explanation: Explanation) -> str:
    """For a commit message or a page: 75 columns, the table indented as code."""
    head, table, rest = _parts(explanation, MARKDOWN_WIDTH)
    fenced = ["```", *table, "```"]
    return "\n".join([*head, "", *fenced, "", *rest]) + "\n"


def written(explanation: Explanation, form: Form) -> str:
    """The explanation in a form for people."""
    if form is Form.mermaid:
        return mermaid(explanation)
    return markdown(explanation) if form is Form.markdown else terminal(explanation)


def _lines(explanation: Explanation, width: int) -> list[str]:
    head, table, rest = _parts(explanation, width)
    return [*head, "", *table, "", *rest]


def _parts(explanation: Explanation, width: int) -> tuple[list[str], list[str], list[str]]:
    head, rest = _head(explanation, width), _reasons(explanation, width)
    room = max(LINES_MAX - len(head) - len(rest) - 4, TABLE_LINES_MIN)
    return head, table(explanation, width, room), rest


def _head(explanation: Explanation, width: int) -> list[str]:
    violation, kernel = explanation.violation, explanation.case.spec.world.kernel
    rule = rule_of(violation.rule)
    kind = rule.name if rule else ""
    size = words.many(explanation.deliveries, "delivery", "deliveries")
    switched = words.many(explanation.switches, "switch", "switches")
    title = (
        f"{violation.rule} {kind} on {kernel_text(kernel)}: {violation.detail} ({size}, {switched})"
    )
    kinds = explanation.case.kinds()
    before = ", ".join(f"{kinds[op]} {op}" for op in explanation.setup)
    return [*_wrap(title, width), *(_wrap(f"Before: {before}", width) if before else [])]


def _wrap(text: str, width: int, indent: str = "  ") -> list[str]:
    return textwrap.wrap(words.plain(text), width, subsequent_indent=indent, break_on_hyphens=False)


# ---- the table ---------------------------------------------------------------------------------


def parties(rows: Iterable[Row]) -> list[str]:
    """The columns, in order of appearance."""
    return list(dict.fromkeys(row.party for row in rows))


def table(explanation: Explanation, width: int, lines_max: int) -> list[str]:
    """The interleaving; details go first where it would be too long."""
    for weight in range(DETAIL, DECISIVE - 1, -1):
        rows = chosen_rows(explanation.rows, weight)
        lines = _table(rows, titles(explanation, rows), width)
        if len(lines) <= (DETAILED_LINES_MAX if weight == DETAIL else lines_max) and rows:
            return lines
    rows = chosen_rows(explanation.rows, ESSENTIAL)
    lines = _table(rows, titles(explanation, rows), width)
    return lines if len(lines) <= lines_max else [*lines[: lines_max - 1], "  ..."]


def chosen_rows(rows: Sequence[Row], weight: int) -> list[Row]:
    """Rows that matter so much; a party that only begins and ends has no column."""
    heavy = [row for row in rows if row.weight <= weight]
    acting = {row.party for row in heavy if row.kind not in ("OpBegin", "OpEnd")}
    return condensed([row for row in heavy if row.party in acting])


def titles(explanation: Explanation, rows: Iterable[Row]) -> dict[str, str]:
    """Column -> ``cpu0 (move_pages)``: the node, and what it was asked to do in these rows."""
    case = explanation.case
    nodes = {program.name: program.node for program in (*case.programs, *case.aftermath)}
    cpus = case.spec.world.cpus
    doing: dict[str, list[str]] = {}
    for row in rows:
        mine = nodes.get(row.operation.rpartition("/")[0]) == row.party
        of = [operation_text(row.operation_kind)] * mine
        if not mine and row.operation_kind == "Dma" and row.party in cpus:
            of = [OPERATIONS["Dma"]]  # the fault of a device, by a worker
        doing.setdefault(row.party, []).extend(of)
    return {
        party: f"{party} ({', '.join(dict.fromkeys(of))})" if of else party
        for party, of in doing.items()
    }


def _table(rows: Sequence[Row], titles: dict[str, str], width: int) -> list[str]:
    columns = parties(rows)
    if not columns:
        return []
    room = max((width - len(MARK)) // len(columns), COLUMN_MIN)
    lines = [_line("  ", columns, room, titles), _line("  ", columns, room, _rules(titles, room))]
    for row in rows:
        mark = MARK if row.weight == DECISIVE else "  "
        for text in textwrap.wrap(words.plain(text_of(row)), room - 2, subsequent_indent="  "):
            lines.append(_line(mark, columns, room, {row.party: text}))
            mark = "  "
    return lines


def _rules(titles: dict[str, str], room: int) -> dict[str, str]:
    return {column: "-" * min(len(title), room - 2) for column, title in titles.items()}


def _line(mark: str, columns: Sequence[str], room: int, texts: dict[str, str]) -> str:
    cells = [texts.get(column, "")[: room - 1].ljust(room) for column in columns]
    return (mark + "".join(cells)).rstrip()


# ---- the reasons -------------------------------------------------------------------------------


def _reasons(explanation: Explanation, width: int) -> list[str]:
    return [
        *_orderings(explanation.orderings, explanation.races, width),
        *(line for fate in explanation.deaths for line in _wrap(_fate(fate), width)),
        *_swap(explanation, width),
        *_owed(explanation, width),
        *_cures(explanation.cures, explanation.contradictory, width),
    ]


def _orderings(orderings: Sequence[Ordering], races: int, width: int) -> list[str]:
    reversed_ = words.many(races, "race was", "races were")
    if not orderings:
        return _wrap(f"Orders: {reversed_} reversed one by one; no single order decides.", width)
    runs = min(ordering.runs for ordering in orderings)
    lines = _wrap(
        f"Orders that are necessary ({reversed_} reversed; these passed in all of "
        f"{words.many(runs, 'way')} to go on):",
        width,
    )
    counts = Counter(" before ".join(_spots(o.early, o.late)) for o in orderings)
    for text, count in list(counts.items())[:ORDERINGS_SHOWN_MAX]:
        lines += _wrap(f"- {text}{f' ({count} times)' if count > 1 else ''}", width)
    if len(counts) > ORDERINGS_SHOWN_MAX:
        lines.append(f"- and {len(counts) - ORDERINGS_SHOWN_MAX} more")
    return lines


def _fate(fate: Fate) -> str:
    after = "before anything else" if fate.after is None else f"after {spot(fate.after)}"
    if not fate.necessary:
        return (
            f"The death of {fate.node} {after} is not necessary: left out, it fails all the same."
        )
    return (
        f"The death of {fate.node} {after} is necessary: without it all of "
        f"{words.many(fate.runs, 'way')} to go on passed."
    )


def _spots(first: Spot, second: Spot) -> tuple[str, str]:
    """Two deliveries in words, told apart by their operations if need be."""
    one, two = spot(first), spot(second)
    return (spot(first, True), spot(second, True)) if _same_but_for(one, two) else (one, two)


def _same_but_for(one: str, two: str) -> bool:
    return one.partition(" for ")[0] == two.partition(" for ")[0]


def spot(where: Spot, whole: bool = False) -> str:
    """A delivery in words: ``cpu0's ptep_get_and_clear``; ``whole``: and for which operation."""
    answer = where.kind.endswith(REPLY_MARK)
    if where.src == BROKER:
        return f"the start of {where.dst}'s {operation_text(where.kind)}"
    who = where.dst if answer else where.src
    what = function_text(where.kind.rstrip(REPLY_MARK), where.operation_kind)
    program = where.operation.rpartition("/")[0]
    alien = whole or program != who
    doing = f" for {where.operation_kind} {where.operation}" if alien else ""
    return f"{'the end of ' if answer else ''}{who}'s {what}{doing}"


def _swap(explanation: Explanation, width: int) -> list[str]:
    swap = explanation.swap
    if swap is None:
        return _wrap("The swap that decides: none was found.", width)
    first, second = _spots(swap.first, swap.second)
    return _wrap(
        f"The swap that decides (found in {swap.runs} runs from a passing one): "
        f"{first}, then {second}, fails; the other way round passes.",
        width,
    )


def _owed(explanation: Explanation, width: int) -> list[str]:
    violation = explanation.violation
    if not violation.owed:
        return _wrap(f"Broken: {violation.text()}", width)
    due = violation.deadline
    by = f" before: {due.what} at {due.node} (delivery {due.n})" if due else ""
    held = f"{violation.agent}'s {violation.cache} entry of "
    where = words.place(violation.mm, violation.address)
    text = f"Owed by {violation.owed}: to end {held}{where}{by}. "
    return _wrap(text + missed_text(explanation.missed), width)


def missed_text(missed: Missed) -> str:
    """What did come instead of what was owed."""
    if not missed.kinds:
        return "Nothing would have ended it."
    kind = " or ".join(function_text(kind, "") for kind in missed.kinds)
    parts = []
    if missed.before_fill:
        last = missed.before_fill[-1]
        parts.append(f"The last {kind} came in delivery {last.n}, before the entry was cached")
    if not missed.in_time:
        parts.append(f"{'none' if parts else f'No {kind}'} came between the change and the end")
    else:
        parts.append(f"one came in delivery {missed.in_time[0].n} and was not enough")
    if missed.too_late:
        parts.append(f"one came after it, in delivery {missed.too_late[0].n}")
    return "; ".join(parts) + "."


def _cures(cures: Sequence[Cure], contradictory: int, width: int) -> list[str]:
    safe = [cure for cure in cures if cure.safe]
    tried = words.many(len(cures), "other value")
    refused = f", {contradictory} contradict this kernel" if contradictory else ""
    if not safe:
        return _wrap(
            f"Cures: none of {tried} of a switch makes this schedule safe{refused}.", width
        )
    named = [f"{c.switch} = {value(c.value)} (here {value(c.usual)})" for c in safe]
    shown = "; ".join(named[:CURES_SHOWN_MAX])
    more = len(named) - CURES_SHOWN_MAX
    rest = f"; and {more} more" if more > 0 else ""
    return _wrap(f"Safe under this very schedule: {shown}{rest}. Tried: {tried}{refused}.", width)


def value(of: Any) -> str:
    """A switch's value as TOML has it."""
    return str(of).lower() if isinstance(of, bool) else str(of)


# ---- other forms -------------------------------------------------------------------------------


def mermaid(explanation: Explanation) -> str:
    """A sequence diagram."""
    rows = chosen_rows(explanation.rows, DETAIL - 1)
    lines = ["sequenceDiagram"]
    named = titles(explanation, rows)
    lines += [f"    participant {p} as {_mermaid_text(named[p])}" for p in parties(rows)]
    known = set(parties(rows))
    for row in rows:
        text = _mermaid_text(text_of(row))
        if row.kind == "KvmRequest" and row.target in known:
            lines.append(f"    {row.party}->>{row.target}: {text}")
        else:
            lines.append(f"    Note over {row.party}: {'* ' if row.marks else ''}{text}")
    return "\n".join(lines) + "\n"


def _mermaid_text(text: str) -> str:
    """Without what ends a line or begins an entity in Mermaid."""
    return words.plain(text).replace("#", "no. ").replace(";", ",")


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
    }  # fmt: skip
