"""Rows that say nothing new: a callback in which nothing happened, a loop that goes round again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from mmurace.explorer.explain.interleaving import Row
from mmurace.protocol.told import DECISIVE
from mmurace.report.steps import text_of

BLOCK_MAX: Final = 16
"""Rows of one round of a loop that is recognised."""
ROUNDS_MIN: Final = 3
"""Two rounds are told in full."""
ALIKE_MIN: Final = 8
"""So many rounds that differ in their numbers alone are one loop as well."""
NUMBER: Final = re.compile(r"0x[0-9a-f]+|[0-9]+")
REPEATED: Final = "Repeated"
"""Kind of the row that stands for the rounds left out."""
Key = tuple[str, str]


def condensed(rows: Sequence[Row]) -> list[Row]:
    """The rows without those, in order."""
    told = _without_empty_calls(rows)
    told = _folded(told, [_key(row) for row in told], ROUNDS_MIN)
    return _folded(told, [_alike(row) for row in told], ALIKE_MIN)


def _without_empty_calls(rows: Sequence[Row]) -> list[Row]:
    """A callback that returns at once need not be said to return."""
    kept: list[Row] = []
    for row in rows:
        begun = kept[-1] if kept else None
        if begun is None or row.weight == DECISIVE or not _ends_call(begun, row):
            kept.append(row)
    return kept


def _ends_call(begun: Row, row: Row) -> bool:
    both = row.kind == begun.kind == "NotifierCall" and row.party == begun.party
    return both and row.values["phase"] == "end" and begun.values["phase"] == "begin"


def _folded(rows: list[Row], keys: list[Key], rounds_min: int) -> list[Row]:
    """Each run of equal rounds as one round and how often it came again."""
    kept: list[Row] = []
    at = 0
    while at < len(rows):
        length, rounds = _longest_loop(keys, at)
        if rounds < rounds_min or _in_the_middle(keys, at, length):
            kept.append(rows[at])
            at += 1
            continue
        kept += [*rows[at : at + length], _again(rows[at + length], rounds - 1)]
        at += length * rounds
    return kept


def _key(row: Row) -> Key:
    """What makes two rows say the same; one that decides is never one of many."""
    return row.party, f"{row.n} {text_of(row)}" if row.weight == DECISIVE else text_of(row)


def _alike(row: Row) -> Key:
    """The same, whatever the numbers are."""
    party, text = _key(row)
    return party, text if row.weight == DECISIVE else NUMBER.sub("0", text)


def _in_the_middle(keys: Sequence[Key], at: int, length: int) -> bool:
    """Whether a round of several parties would begin amid what one of them does."""
    several = len({party for party, _ in keys[at : at + length]}) > 1
    return several and at > 0 and keys[at - 1][0] == keys[at][0]


def _longest_loop(keys: Sequence[Key], at: int) -> tuple[int, int]:
    """(rows of a round, rounds) that begin here and cover most."""
    best = (1, 1)
    for length in range(1, min(BLOCK_MAX, (len(keys) - at) // ROUNDS_MIN) + 1):
        block, rounds = keys[at : at + length], 1
        while keys[at + length * rounds : at + length * (rounds + 1)] == block:
            rounds += 1
        if rounds >= ROUNDS_MIN and length * rounds > best[0] * best[1]:
            best = (length, rounds)
    return best


def _again(row: Row, times: int) -> Row:
    return Row(row.n, row.party, REPEATED, "", "", {"times": times}, row.weight)
