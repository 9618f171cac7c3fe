"""Page-table entries as 64-bit words, laid out like x86 (arch/x86/include/asm/pgtable_types.h).

A word is what memory holds, so a stale walker that reads a reused page decodes whatever is
there, as hardware would.
"""

from __future__ import annotations

from typing import Final

from mmurace.protocol.limits import PAGE_SHIFT

PRESENT: Final = 1 << 0
WRITE: Final = 1 << 1
DEVICE_PRIVATE: Final = 1 << 2
"""A device-private entry: not present, the frame is a page of a device's memory, which no processor
can reach (``is_device_private_entry``)."""
DEVICE_EXCLUSIVE: Final = 1 << 3
"""A device-exclusive entry: not present, the frame is the page that one device alone may use
(``is_device_exclusive_entry``, v5.14)."""
ACCESSED: Final = 1 << 5
DIRTY: Final = 1 << 6
EXCLUSIVE: Final = 1 << 7
"""Of a swap entry (``pte_swp_exclusive``) and of a migration entry (a readable exclusive one, or a
writable one): the page was ``PageAnonExclusive`` (v5.19)."""
PROTNONE: Final = 1 << 8
"""Present for software, not for hardware (``_PAGE_PROTNONE``)."""
SPECIAL: Final = 1 << 9
"""No struct page behind it: the zero page (``pte_special``)."""
MIGRATION: Final = 1 << 10
"""A migration entry: not present, the frame says what it waits for (``is_migration_entry``)."""

SWAP: Final = 1 << 11
"""A swap entry: not present, the frame field is the slot (``is_swap_pte``)."""

NONE: Final = 0
REACHED_BY: Final = PRESENT | DEVICE_PRIVATE | DEVICE_EXCLUSIVE
"""Who may make a translation of it: hardware walkers, the device whose memory it is, the device
that was given the page."""
_FLAGS: Final = (1 << PAGE_SHIFT) - 1


def make(frame: int, flags: int) -> int:
    """The entry that maps ``frame`` with ``flags``."""
    return (frame << PAGE_SHIFT) | flags


def frame_of(entry: int) -> int:
    """The frame number in an entry (``pte_pfn``)."""
    return entry >> PAGE_SHIFT


def flags_of(entry: int) -> int:
    """The flag bits of an entry."""
    return entry & _FLAGS


def hw_present(entry: int) -> bool:
    """Whether a hardware walker may use the entry."""
    return bool(entry & PRESENT)


def pte_present(entry: int) -> bool:
    """Whether the kernel counts the entry as mapped (includes ``PROTNONE``)."""
    return bool(entry & (PRESENT | PROTNONE))


def is_migration(entry: int) -> bool:
    """Whether the entry is a migration entry."""
    return bool(entry & MIGRATION) and not pte_present(entry)


def is_swap(entry: int) -> bool:
    """Whether the entry leads to a swap slot."""
    return bool(entry & SWAP) and not pte_present(entry)


def is_device_private(entry: int) -> bool:
    """Whether the entry leads to a page of a device's memory."""
    return bool(entry & DEVICE_PRIVATE) and not pte_present(entry)


def is_device_exclusive(entry: int) -> bool:
    """Whether the entry leads to a page that a device has for itself."""
    return bool(entry & DEVICE_EXCLUSIVE) and not pte_present(entry)


def usable(entry: int) -> bool:
    """Whether anybody may make a translation of it: the hardware, or a device."""
    return bool(entry & REACHED_BY)


def in_rmap(entry: int) -> bool:
    """Whether the rmap of its page has the place of this entry."""
    mapped = pte_present(entry) and not entry & SPECIAL
    return mapped or is_migration(entry) or is_device_private(entry)


def names_page(entry: int) -> bool:
    """Whether it is an entry of a page in memory, of whatever kind."""
    return usable(entry) or pte_present(entry) or is_migration(entry)


def permits(entry: int, write: bool) -> bool:
    """Whether hardware may do the access through this entry."""
    return bool(entry & PRESENT) and (not write or bool(entry & WRITE))


def serves(entry: int, write: bool) -> bool:
    """Whether a cached copy of the entry is enough for the access.

    A store through a copy that is writable and clean must set dirty in memory first, so it walks
    again: x86 does, and so does arm64 with hardware management of the dirty state.
    """
    return permits(entry, write) and (not write or bool(entry & DIRTY))


def takes_away(old: int, new: int) -> bool:
    """Whether the change old -> new revokes something that a cached copy of old still grants.

    A copy that is dirty grants stores that nobody hears of (``serves``).
    """
    if not usable(old):
        return False
    if (old ^ new) & REACHED_BY or frame_of(old) != frame_of(new):
        return True
    return bool(old & WRITE) and (not new & WRITE or bool(old & ~new & DIRTY))


def describe(entry: int) -> str:
    """An entry for people: ``frame 0x1f RW AD``, ``none``, ``migration of 0x1f``."""
    if entry == NONE:
        return "none"
    if is_migration(entry):
        return f"migration of {frame_of(entry):#x}"
    if is_swap(entry):
        return f"swap slot {frame_of(entry)}"
    if is_device_private(entry) or is_device_exclusive(entry):
        kind = "device-private" if is_device_private(entry) else "device-exclusive"
        return f"{kind} frame {frame_of(entry):#x} {'RW' if entry & WRITE else 'RO'}"
    if not pte_present(entry):
        return f"not present ({entry:#x})"
    rights = "NONE" if entry & PROTNONE else ("RW" if entry & WRITE else "RO")
    marks = ("A" if entry & ACCESSED else "") + ("D" if entry & DIRTY else "")
    zero = " zero page" if entry & SPECIAL else ""
    return f"frame {frame_of(entry):#x} {rights} {marks}".rstrip() + zero
