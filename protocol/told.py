"""How reports tell of a message: what a driver says of its own, so that no report knows drivers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from mmurace.protocol import pte as ptes
from mmurace.protocol.limits import ULONG_MAX

DECISIVE: Final = 0
"""An event that the violation names."""
ESSENTIAL: Final = 1
"""One that its explanation names, or without which the others make no sense."""
HELPFUL: Final = 2
MINOR: Final = 3
DETAIL: Final = 4
NEVER: Final = 9

Values = Mapping[str, Any]
"""Fields of a message or record; ``reply`` holds those of the answer."""
Wording = Callable[[Values, str], str]
"""(values, the node that it went to) -> one row of an interleaving in words."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a message says of itself."""

    function: str = ""
    """The kernel function in which it is sent, or what hardware does."""
    called: str = ""
    """What it is called where it is missing or spoken of, if not by ``function``."""
    wording: Wording | None = None
    weight: int = NEVER
    """How much it matters to a violation of its receiver, or of a part of it."""
    whoever: bool = False
    """It matters there whoever sends it, and not only for an operation of the violation."""
    row: Literal["sender", "receiver", "arrow"] = "sender"
    """Whose doing it is; ``arrow``: the sender's, and the receiver is told."""
    whole: bool = False
    """It says all that the records of its handling say."""
    fills: bool = False
    """It puts a translation into a cache."""


def says(text: str) -> Wording:
    """The same whatever the values."""
    return lambda _values, _target: text


def over_range(name: str) -> Wording:
    """``tlbie [0x10000, 0x11000)``."""
    return lambda values, _target: f"{name} [{range_text(values)})"


def finds_entry(name: str) -> Wording:
    """What an answer says of a page-table entry."""
    return lambda values, _target: f"{name}: {ptes.describe(reply(values, 'pte'))}"


def reply(values: Values, name: str, missing: int = 0) -> int:
    """A field of the answer."""
    found: int = values.get("reply", {}).get(name, missing)
    return found


def limit(value: int) -> str:
    """An end of a range as kernel people write it: ``~0`` for ULONG_MAX."""
    return "~0" if value == ULONG_MAX else f"{value:#x}"


def range_text(values: Values) -> str:
    """Start and end."""
    return f"{limit(values['start'])}, {limit(values['end'])}"
