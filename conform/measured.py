"""The tokens of the tables as the words of ``events``, for each kind of table.

What only one side can show is left out on both: locks within KVM, walks, and whatever the tables
call by the name of a function that has no word here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from mmurace.conform.table import Table

ARM64_EVENTS: Final = {
    "CLEAR": "clear", "UNMAP": "unmap", "PROT_VMA": "protvma", "PROT_PAGE": "protpage",
    "SOFT_DIRTY": "softdirty", "MIGRATE": "migrate",
}  # fmt: skip
HOST_TLBI: Final = re.compile(r"r?va(l)?e1is|aside1is")
"""TLBIs of user addresses of the host; the others are KVM's, of the VMID."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of table."""

    suite: str
    """What ``conform`` calls such tables."""
    measured: Callable[[str], str]
    """A token -> its word; empty: none."""
    ours: Callable[[str], str]
    """A word of a run -> as this kind of table has it; empty: it does not show that."""

    def words_of(self, tokens: Iterable[str]) -> list[str]:
        """What was measured."""
        return merged(filter(None, map(self.measured, tokens)))

    def words_here(self, words: Iterable[str]) -> list[str]:
        """What was run."""
        return merged(filter(None, map(self.ours, words)))


def merged(words: Iterable[str]) -> list[str]:
    """Flushes that follow each other are one: a real kernel may flush more pages at a time."""
    found: list[str] = []
    for word in words:
        if word.startswith(("flush", "tlbi", "dsb")) and found[-1:] == [word]:
            continue
        found.append(word)
    return found


def _x86(token: str) -> str:
    """Braces, the caller and what says only how are left out; a flush put off is one of all."""
    word = token.rstrip("{").replace("^", "").replace("+", "")
    kind, _, rest = word.partition(":")
    if kind == "start":
        return "start:" + "/".join(rest.split("/")[:2])
    if kind in ("flush", "flushpt"):
        return f"flush:{rest}"
    if kind == "archbatch":
        return "flush:all"
    return word if kind in _SHOWN else ""


_SHOWN: Final = frozenset({
    "end", "endonly", "ir", "as", "free", "migset", "migdone", "lock", "unlock", "spte",
})  # fmt: skip


def _arm64(token: str) -> str:
    """Ranges of TLBIs are not visible; DSBs of the host follow its TLBIs."""
    word = token.partition("*")[0].partition("@")[0]
    kind, _, rest = word.partition(":")
    if kind == "start":
        range_, _, event = rest.partition("/")
        return f"start:{range_}/{ARM64_EVENTS.get(event, event)}"
    if kind == "end":
        return f"{'endonly' if token.endswith('/only') else 'end'}:{rest}"
    if kind == "arch" and token.endswith("@copy_process"):
        return "as:all"  # flush_tlb_mm, of which the table shows the part that is mapped
    if kind in ("inv", "arch"):
        return f"{'ir' if kind == 'inv' else 'as'}:{rest}"
    if kind == "tlbi":
        return "tlbi" if HOST_TLBI.fullmatch(rest) else ""
    return word if kind in ("free", "lock", "unlock") else ""


def _as_arm64(word: str) -> str:
    kind, _, _ = word.partition(":")
    if kind == "flush":
        return "tlbi"
    return word if kind not in ("migset", "migdone", "spte") else ""


def _order(token: str) -> str:
    """``../kvm-order``: tracepoints; the class of a start is the function that called."""
    kind, _, _ = token.partition(":")
    if kind == "start":
        return token.partition("/")[0]
    return token if kind in ("free", "migset", "migdone", "lock", "unlock", "spte", "flush") else ""


def _as_order(word: str) -> str:
    kind, _, _ = word.partition(":")
    if kind == "start":
        return word.partition("/")[0]
    if kind == "flush":
        return "flush"
    return word if kind in ("free", "migset", "migdone", "lock", "unlock", "spte") else ""


FUNCTIONS_X86: Final = Kind("functions", _x86, str)
FUNCTIONS_ARM64: Final = Kind("functions", _arm64, _as_arm64)
KVM_ORDER: Final = Kind("kvm", _order, _as_order)


def kind_of(table: Table) -> Kind:
    """By its machine and by what it shows."""
    if table.machine == "arm64":
        return FUNCTIONS_ARM64
    shown = {token.partition(":")[0] for row in table.rows for part in row.order for token in part}
    return FUNCTIONS_X86 if shown & {"end", "endonly"} else KVM_ORDER
