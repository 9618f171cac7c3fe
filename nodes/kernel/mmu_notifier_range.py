"""include/linux/mmu_notifier.h: ``struct mmu_notifier_range``, what is invalidated and why."""

from __future__ import annotations

from dataclasses import dataclass

from mmurace.protocol.events import MmuNotifierEvent


@dataclass(frozen=True, slots=True)
class MmuNotifierRange:
    """``struct mmu_notifier_range``: [start, end) of an mm and why."""

    mm: str
    start: int
    end: int
    event: MmuNotifierEvent
    owner: str = ""
    """Whose doing it is (v5.9, 998427b3ad2c): a driver may pass its own over."""
    blockable: bool = True
    """``MMU_NOTIFIER_RANGE_BLOCKABLE`` (v5.1): callbacks may sleep."""
