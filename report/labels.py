"""What is said below a table, in the table's own words: each event by the letter of its row."""

from __future__ import annotations

from collections.abc import Iterable
from string import ascii_lowercase
from typing import Final

from mmurace.explorer.explain.interleaving import Row
from mmurace.explorer.explain.missed import Came, Missed
from mmurace.explorer.explain.places import Spot
from mmurace.protocol.envelope import BROKER, REPLY_MARK
from mmurace.protocol.told import limit
from mmurace.report.steps import function_text, operation_text, text_of

_WHY: Final = {
    "other_mm": "is for another mm",
    "not_covered": "does not cover it",
    "leaves_only": "reaches leaf entries only",
    "not_done": "was not complete by then",
    "": "did not end it",
}


class Labels:
    """Letters of the rows that are spoken of, in the order of the table."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._named = {row.name: row for row in rows if row.named}
        letters = zip(self._named, _letters(len(self._named)), strict=True)
        self._letters = dict(letters)

    def letter(self, row: Row) -> str:
        """The letter of a row; empty if nothing is said of it."""
        return self._letters.get(row.name, "") if row.named else ""

    def of(self, spot: Spot) -> str:
        """A delivery in words: ``cpu0: ptep_get_and_clear (b)``."""
        row = self._named.get(spot.name)
        answer = spot.name.endswith(REPLY_MARK) and row is None
        row = row or self._named.get(spot.name.rstrip(REPLY_MARK))
        if row is None:
            return plain_label(spot)
        text = f"{row.party}: {_short(row)} ({self._letters[row.name]})"
        return f"the answer to {text}" if answer else text


def _letters(count: int) -> list[str]:
    """a to z; then aa, ab, ..."""
    singles = list(ascii_lowercase)
    return [*singles, *(a + b for a in singles for b in singles)][:count]


def _short(row: Row) -> str:
    """Without the values."""
    return text_of(row).partition(": ")[0]


def plain_label(spot: Spot) -> str:
    """A delivery that has no row."""
    if spot.src == BROKER:
        return f"the start of {spot.dst}'s {operation_text(spot.kind)}"
    answer = spot.kind.endswith(REPLY_MARK)
    who = spot.dst if answer else spot.src
    text = f"{who}: {function_text(spot.kind.rstrip(REPLY_MARK), spot.operation_kind)}"
    return f"the answer to {text}" if answer else text


# ---- what did come instead of what was owed ----------------------------------------------------


def missed_text(missed: Missed, labels: Labels) -> str:
    """The invalidations around the window, and why none of them sufficed."""
    if not missed.kinds:
        return "Nothing would have ended it."
    kind = " or ".join(function_text(kind, "") for kind in missed.kinds)
    parts = []
    if missed.before_fill:
        parts.append(f"{labels.of(missed.before_fill[-1].spot)} came before the entry was cached")
    if missed.in_time:
        parts.append(came_text(missed.in_time[0], labels))
    elif parts:
        parts.append("none came from then on in time")
    else:
        parts.append(f"no {kind} came between the change and that")
    if missed.too_late:
        parts.append(f"{labels.of(missed.too_late[0].spot)} came after it")
    text = "; ".join(parts)
    return f"{text.replace('no ', 'No ', 1) if text.startswith('no ') else text}."


def came_text(came: Came, labels: Labels) -> str:
    """One that came in time: of which range, and why it was not enough."""
    label = labels.of(came.spot)
    return f"{label} {'' if '[' in label else range_text(came)}{_WHY[came.why]}"


def range_text(came: Came) -> str:
    """``of [0x10000, 0x11000) ``; empty if it has none."""
    return "" if came.start < 0 else f"of [{limit(came.start)}, {limit(came.end)}) "
