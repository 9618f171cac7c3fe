"""Notifier events by the kernel's names (``enum mmu_notifier_event``).

Source: include/linux/mmu_notifier.h.
"""

from __future__ import annotations

from enum import StrEnum


class MmuNotifierEvent(StrEnum):
    """Why a range is invalidated (v5.2 and later; catalogue 4.3)."""

    UNMAP = "UNMAP"
    CLEAR = "CLEAR"
    PROTECTION_VMA = "PROTECTION_VMA"
    PROTECTION_PAGE = "PROTECTION_PAGE"
    SOFT_DIRTY = "SOFT_DIRTY"
    RELEASE = "RELEASE"
    MIGRATE = "MIGRATE"
    EXCLUSIVE = "EXCLUSIVE"
    PROTECTION_UPGRADE = "PROTECTION_UPGRADE"
    """A right was added (proposed in May 2023, never merged)."""
