"""mm/pagewalk.c: over the page table of an mm, down to its leaf tables."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.pgtable import PTE, addr_end, next_entry_not_none
from mmurace.protocol import pte as ptes

PmdEntry = Callable[[int, int, int], Awaitable[None]]
"""``pmd_entry`` of ``struct mm_walk_ops``: (leaf table, address, end) of a part of a range."""


async def walk_page_range(
    cpu: Processor, mm: str, start: int, end: int, pmd_entry: PmdEntry
) -> None:  # fmt: skip
    """``walk_page_range``: every leaf table that maps a part of [start, end), by address.

    It opens no bracket, at no level: that is for the caller, around all of it.
    """
    top = cpu.world.levels - 1
    await _walk_range(cpu, top, cpu.world.pgd(mm), (start, end), pmd_entry)


async def _walk_range(
    cpu: Processor, level: int, table: int, part: tuple[int, int], pmd_entry: PmdEntry
) -> None:
    """``walk_pgd_range`` .. ``walk_pmd_range``: the entries of a table that are there."""
    address, end = part
    if level == PTE:
        await pmd_entry(table, address, end)
        return
    while found := await next_entry_not_none(cpu, level, table, address, end):
        address, following = found[0], addr_end(cpu, level, found[0], end)
        child = ptes.frame_of(found[1])
        await _walk_range(cpu, level - 1, child, (address, following), pmd_entry)
        address = following


async def first_entry(cpu: Processor, mm: str, start: int, end: int) -> int:
    """The first address in [start, end) whose entry is not none; ``end`` if there is none.

    Under mmap_lock, without the page-table lock: whoever goes there has to look again.
    """
    top = cpu.world.levels - 1
    found = await _first_entry(cpu, top, cpu.world.pgd(mm), (start, end))
    return end if found is None else found


async def _first_entry(
    cpu: Processor, level: int, table: int, part: tuple[int, int]
) -> int | None:  # fmt: skip
    """The same below a table; None if there is none."""
    address, end = part
    while entry := await next_entry_not_none(cpu, level, table, address, end):
        if level == PTE:
            return entry[0]
        address, following = entry[0], addr_end(cpu, level, entry[0], end)
        below = (address, following)
        found = await _first_entry(cpu, level - 1, ptes.frame_of(entry[1]), below)
        if found is not None:
            return found
        address = following
    return None
