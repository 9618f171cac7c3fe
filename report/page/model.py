"""What a page shows, as plain data: the script draws it and decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from mmurace.explorer.explain.interleaving import Row
from mmurace.explorer.explain.why import Explanation
from mmurace.explorer.shrink.play import How, Moment, play
from mmurace.oracle.rules.table import rule_of
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.envelope import BROKER, operation_of
from mmurace.protocol.told import DECISIVE, DETAIL
from mmurace.report import formats
from mmurace.report.facts import kernel_text
from mmurace.report.in_words import closing, detail_of
from mmurace.report.interleaving import chosen_rows, reasons_of, terminal, titles
from mmurace.report.labels import Labels
from mmurace.report.steps import function_text, lock_of, operation_text, text_of


class Told(msgspec.Struct, frozen=True):
    """A row: what a party did in some delivery."""

    n: int
    lane: int
    text: str
    hover: str
    letter: str
    decisive: bool
    to: int
    """The lane that it reaches, or -1."""


class Bar(msgspec.Struct, frozen=True):
    """Something that lasts: a lock, or a translation in a cache; from one delivery to another."""

    lane: int
    kind: str
    """``lock``, ``waits``, ``cached``, or ``late``: cached when it should not be any more."""
    name: str
    first: int
    last: int


class Lane(msgspec.Struct, frozen=True):
    """A party: its node, and what it was asked to do."""

    name: str
    title: str


class Page(msgspec.Struct, frozen=True):
    """All of it."""

    title: str
    rule: str
    sentence: str
    look_at: str
    kernel: str
    size: str
    before: list[str]
    reasons: list[list[str]]
    closing: str
    as_text: str
    lanes: list[Lane]
    rows: list[Told]
    """What matters."""
    bars: list[Bar]
    deliveries: list[tuple[int, int, int, str]]
    """Every delivery: number, lane, lane that sent it (or -1), text."""
    commands: list[str]


def page_of(explanation: Explanation, commands: Sequence[str]) -> Page:
    """The page of an explanation; ``commands`` show it again."""
    violation, case = explanation.violation, explanation.case
    rule = rule_of(violation.rule)
    moments = moments_of(explanation)
    rows = chosen_rows([r for r in explanation.rows if r.weight <= DETAIL or r.named])
    named = titles(explanation, rows)
    lanes = list(dict.fromkeys([*named, *(m.envelope.dst for m in moments)]))
    at = {name: number for number, name in enumerate(lanes)}
    labels = Labels(explanation.rows)
    kinds = case.kinds()
    reasons = reasons_of(explanation, labels)[:-1]
    return Page(
        title=f"{violation.rule} {rule.name if rule else ''}: {detail_of(violation)}",
        rule=violation.rule,
        sentence=rule.sentence if rule else "",
        look_at=rule.look_at if rule else "",
        kernel=kernel_text(case.spec.world.kernel),
        size=_size(explanation),
        before=[f"{operation_text(kinds[o])} by {o.rpartition('/')[0]}" for o in explanation.setup],
        reasons=reasons,
        closing=formats.plain(closing(explanation)),
        as_text=terminal(explanation),
        lanes=[Lane(name, named.get(name, name)) for name in lanes],
        rows=[_told(row, at, labels) for row in rows],
        bars=[*_locks(explanation.rows, at, moments), *_life(violation, at, moments)],
        deliveries=list(_deliveries(moments, at, kinds)),
        commands=list(commands),
    )


def moments_of(explanation: Explanation) -> list[Moment]:
    """Its deliveries, played again."""
    how = How(explanation.target, stop=False, keep=True)
    return play(explanation.case, how).moments


def _size(explanation: Explanation) -> str:
    deliveries = formats.many(explanation.deliveries, "delivery", "deliveries")
    return f"{deliveries}, {formats.many(explanation.switches, 'switch', 'switches')}"


def _told(row: Row, at: Mapping[str, int], labels: Labels) -> Told:
    function = function_text(row.kind, row.operation_kind)
    values = ", ".join(f"{name} {value}" for name, value in row.values.items() if name != "reply")
    hover = f"delivery {row.n}, {row.operation}: {function}{f' ({values})' if values else ''}"
    lane, to = at[row.party], at.get(row.target, -1)
    return Told(
        row.n, lane, text_of(row), hover, labels.letter(row), row.weight == DECISIVE,
        -1 if to == lane else to,
    )  # fmt: skip


def _locks(rows: Iterable[Row], at: Mapping[str, int], moments: Sequence[Moment]) -> Iterator[Bar]:
    """From lock to unlock; what is not unlocked lasts to the end."""
    end = moments[-1].n if moments else 0
    held: dict[tuple[str, str], int] = {}
    waiting: dict[tuple[str, str], int] = {}
    for row in rows:
        lock = lock_of(row)
        if lock is None:
            continue
        what, key = lock[0], (row.party, lock[1])
        if what == "waits":
            waiting[key] = row.n
            continue
        if key in waiting:
            yield Bar(at[row.party], "waits", lock[1], waiting.pop(key), row.n)
        if what == "takes":
            held[key] = row.n
        elif key in held:
            yield Bar(at[row.party], "lock", lock[1], held.pop(key), row.n)
    for kind, left in (("lock", held), ("waits", waiting)):
        for (party, name), first in left.items():
            yield Bar(at[party], kind, name, first, end)


def _life(violation: Violation, at: Mapping[str, int], moments: Sequence[Moment]) -> Iterator[Bar]:
    """The translation that it is about: from when it was cached; too long from its deadline on."""
    filled, due = violation.filled, violation.deadline or violation.changed
    if filled is None or violation.agent not in at:
        return
    lane, end = at[violation.agent], moments[-1].n if moments else filled.n
    name = f"{violation.cache} entry of {formats.place(violation.mm, violation.address)}"
    yield Bar(lane, "cached", name, filled.n, min(due.n, end) if due else end)
    if due is not None and due.n < (last := _last(violation.racing, end)):
        yield Bar(lane, "late", f"{name}, too late", due.n, last)


def _last(events: Sequence[Event], end: int) -> int:
    return max((event.n for event in events), default=end)


def _deliveries(
    moments: Iterable[Moment], at: Mapping[str, int], kinds: Mapping[str, str]
) -> Iterator[tuple[int, int, int, str]]:
    for moment in moments:
        envelope = moment.envelope
        operation = kinds.get(operation_of(moment.name), "")
        source = -1 if envelope.src == BROKER else at.get(envelope.src, -1)
        yield moment.n, at[envelope.dst], source, _plain(envelope.kind, operation, moment.name)


def _plain(kind: str, operation: str, name: str) -> str:
    """A delivery in a few words: the function, or the answer to it."""
    answer = kind.endswith("~")
    text = function_text(kind.rstrip("~"), operation)
    return f"{text}: answer" if answer else f"{text}  {operation_of(name)}"
