"""What ends the feeding of a live run: a time, a rule, or the size of its journals."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mmurace.protocol.errors import UserError

UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
"""Suffixes of a size in bytes."""
SIZE: Final = re.compile(r"([0-9]{1,999})([KMG]?)")
"""``int`` reads no more digits than some thousands."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """When to stop feeding; whatever is in flight then is finished, and nothing of it is lost."""

    seconds: float | None = None
    stop_on: str = ""
    """A rule that was broken; ``any``: some rule."""
    journal_bytes: int | None = None
    """Of all journals of the run together."""


def size_from(text: str, where: str) -> int:
    """``500M`` in bytes.  Raises ``UserError``."""
    found = SIZE.fullmatch(text)
    size = int(found[1]) * UNITS[found[2]] if found else 0
    if size < 1:
        raise UserError(where, f"is {text!r}", "bytes, such as 500M or 2G")
    return size


def bytes_in(paths: Iterable[Path]) -> int:
    """How large these files are together; those that are not there yet count nothing."""
    total = 0
    for path in paths:
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
