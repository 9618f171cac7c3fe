"""Names as people type them: in any case, the beginning of one, or nearly one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

SUGGESTED: Final = 3
"""How many names an error suggests."""


def meant(word: str, known: Iterable[str]) -> list[str]:
    """The name that ``word`` is, whatever the case; else those that it is the beginning of."""
    small = word.lower()
    names = list(dict.fromkeys(known))
    exact = [name for name in names if name.lower() == small]
    return exact[:1] or [name for name in names if small and name.lower().startswith(small)]


def perhaps(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """What was probably meant (``perhaps munmap, mmap``), for an error; else ``otherwise``."""
    names = list(dict.fromkeys(known))
    begun = meant(word, names)[:SUGGESTED]
    small = {name.lower(): name for name in reversed(names)}
    near = begun or [small[name] for name in get_close_matches(word.lower(), small, SUGGESTED)]
    return f"perhaps {', '.join(near)}" if near else otherwise
