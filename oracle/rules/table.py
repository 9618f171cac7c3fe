"""Which rules speak of harm, and which of what somebody owed (catalogue section 5)."""

from __future__ import annotations

from typing import Final

from protocol.errors import UserError

OBLIGATIONS: Final = frozenset({"O", "S2", "S4", "S5", "S10", "S11", "S14", "Q1", "Q2"})
"""Somebody has not done what they owe; nobody need have been hurt yet."""
HARM: Final = frozenset({
    "S1", "S3", "S6", "S7", "S8", "S9", "S12", "S13", "S15", "S16",
    "L1", "L2", "L3", "L4", "L5", "L6", "L7", "Q3",
})  # fmt: skip
"""Memory was reached that should not have been, a store was lost, or somebody waits for ever."""
MEASURES: Final = frozenset({"P1", "P2", "P3", "P4"})
"""Right, but needlessly expensive."""
RULES: Final = OBLIGATIONS | HARM | MEASURES


def chosen_rules(names: frozenset[str], where: str = "rules") -> frozenset[str]:
    """The same names.  Raises ``UserError`` if one of them is no rule."""
    unknown = sorted(names - RULES)
    if unknown:
        raise UserError(where, f"no rule {unknown[0]!r}", f"one of {', '.join(sorted(RULES))}")
    return names
