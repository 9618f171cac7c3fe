"""Address ranges: canonical half-open byte ranges [start, end).

``(0, ULONG_MAX)`` is the only code for "everything"
(``mmu_notifier_arch_invalidate_secondary_tlbs`` in v6.6); a receiver tests for it before any
arithmetic.
"""

from __future__ import annotations

from mmurace.protocol.limits import PAGE_SHIFT, PAGE_SIZE, ULONG_MAX


def page_of(address: int) -> int:
    """The address of the page that holds ``address``."""
    return address & ~(PAGE_SIZE - 1)


def page_align(length: int) -> int:
    """``PAGE_ALIGN``: length rounded up to whole pages."""
    return (length + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)


def pages(start: int, end: int) -> int:
    """How many pages [start, end) covers."""
    return (end - start) >> PAGE_SHIFT


def covers(start: int, end: int, address: int) -> bool:
    """Whether [start, end) holds ``address``; (0, ULONG_MAX) holds every address."""
    return start <= address < end or (start == 0 and end == ULONG_MAX)


def overlaps(a_start: int, a_end: int, b_start: int, b_end: int) -> bool:
    """Whether the two half-open ranges share an address."""
    return a_start < b_end and b_start < a_end
