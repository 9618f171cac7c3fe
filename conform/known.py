"""Differences that are known, and why: what the model lacks, and what the measuring had besides."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Known:
    """A kind of difference."""

    memory: str
    """Kinds of memory, a pattern."""
    operations: str
    """Names of operations, a pattern."""
    words: frozenset[str]
    """Kinds of words that may differ, and no other."""
    reason: str

    def explains(self, memory: str, operation: str, differ: Collection[str]) -> bool:
        """Whether it is of this kind."""
        return (
            re.fullmatch(self.memory, memory) is not None
            and re.fullmatch(self.operations, operation) is not None
            and self.words.issuperset(differ)
        )


LOCKS: Final = frozenset({"lock", "unlock"})
CONTRACT: Final = frozenset({
    "start", "end", "endonly", "ir", "as", "flush", "tlbi", "free", "migset", "migdone",
})  # fmt: skip
"""Kinds of words that the notifier's contract is about."""
KNOWN: Final = (
    Known("fshared|fprivate", "truncate|(host|guest|mremap)_.*|madvise_.*|munmap|mmap", CONTRACT,
          "fault-around: a fault on a page of a file maps those beside it, too"),
    Known("anon", "fork", frozenset({"start", "end"}),
          "VMAs that have an anon_vma each do not merge; here any two of a kind do"),
    Known("anon", "guest_write", LOCKS,
          "mmap_lock once before the fault, in one row with two processors; nobody knows why"),
    Known("fshared|fprivate", "host_.*|guest_.*", LOCKS,
          "a page that is read from the disk is waited for with mmap_lock held"),
)  # fmt: skip


def reason_for(memory: str, operation: str, differ: Collection[str]) -> str:
    """Why these words differ in that operation; empty if nobody knows."""
    for known in KNOWN:
        if known.explains(memory, operation, differ):
            return known.reason
    return ""
