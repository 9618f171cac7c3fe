"""Tables held against runs: operation by operation, what agrees and what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from mmurace.conform.events import played
from mmurace.conform.known import CONTRACT, reason_for
from mmurace.conform.measured import Kind, kind_of
from mmurace.conform.program import Unsaid, said
from mmurace.conform.table import Called, Row, Table
from mmurace.nodes.kernel.variant import Kernel


@dataclass(frozen=True, slots=True)
class Difference:
    """One operation that came out otherwise."""

    row: Row
    called: Called
    measured: tuple[str, ...]
    ours: tuple[str, ...]
    reason: str
    """Empty: not explained."""


@dataclass(slots=True)
class Agreement:
    """What came of a table."""

    table: Table
    kernel: Kernel
    rows: int = 0
    """That could be said."""
    rows_whole: int = 0
    """All of whose operations agree."""
    operations: int = 0
    same: int = 0
    """Agree in every word."""
    same_contract: int = 0
    """Agree in what the notifier's contract is about."""
    differences: list[Difference] = field(default_factory=list)
    unsaid: Counter[str] = field(default_factory=Counter)
    """Why a row could not be said -> how many."""

    @property
    def unexplained(self) -> list[Difference]:
        """Those that nobody has explained."""
        return [one for one in self.differences if not one.reason]

    def add(self, compared: Sequence[Difference | None]) -> None:
        """A row that was run: for each operation the difference, if there is one."""
        found = [one for one in compared if one is not None]
        self.rows += 1
        self.rows_whole += not found
        self.operations += len(compared)
        self.same += len(compared) - len(found)
        self.same_contract += sum(
            one is None or contract(one.measured) == contract(one.ours) for one in compared
        )
        self.differences += found


def compare(table: Table, kernel: Kernel) -> Agreement:
    """Run every row that can be said."""
    found, kind = Agreement(table, kernel), kind_of(table)
    for row in table.rows:
        try:
            program = said(row, table, kernel)
        except Unsaid as why:
            found.unsaid[str(why)] += 1
            continue
        found.add(list(_differences(row, kind, played(program).seen)))
    return found


def _differences(row: Row, kind: Kind, seen: Iterable[list[str]]) -> Iterator[Difference | None]:
    for called, tokens, words in zip(row.operations, row.order, seen, strict=True):
        measured = in_order(kind.words_of(tokens))
        ours = in_order(kind.words_here(words))
        if measured == ours:
            yield None
            continue
        reason = reason_for(row.memory, called.name, differing(measured, ours))
        yield Difference(row, called, tuple(measured), tuple(ours), reason)


def in_order(words: Sequence[str]) -> list[str]:
    """Pages that are freed together are freed in any order: those in a row are sorted."""
    found: list[str] = []
    freed: list[str] = []
    for word in [*words, ""]:
        if word.startswith("free:"):
            freed.append(word)
            continue
        found += sorted(freed)
        freed.clear()
        found += [word] if word else []
    return found


def contract(words: Iterable[str]) -> list[str]:
    """Only those that the notifier's contract is about."""
    return [word for word in words if word.partition(":")[0] in CONTRACT]


def differing(one: Sequence[str], other: Sequence[str]) -> set[str]:
    """Kinds of the words in which two differ."""
    kinds: set[str] = set()
    for tag, a, b, c, d in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if tag != "equal":
            kinds |= {word.partition(":")[0] for word in (*one[a:b], *other[c:d])}
    return kinds
