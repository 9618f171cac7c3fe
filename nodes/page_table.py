"""Tables of entries as parts of memory: what a linked table maps, and what goes with it.

An upper entry that is cleared takes away all that the table behind it maps, and one that is set
brings it all back, maybe somewhere else.  It is one store; these functions say what it means.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmurace.nodes.world import World
from mmurace.protocol import pte as ptes
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.records import PteChange


def entries_below(frames: list[Any], table: int) -> Iterator[tuple[int, int]]:
    """(leaf table, index) of every entry that is not none under ``table``, in order."""
    if table >= len(frames) or frames[table].level < 0:
        return
    for index in sorted(frames[table].words):
        if frames[table].level == 0:
            yield table, index
        elif _leads_down(frames, table, frames[table].words[index]):
            yield from entries_below(frames, ptes.frame_of(frames[table].words[index]))


def _leads_down(frames: list[Any], table: int, pte: int) -> bool:
    """Whether an upper entry leads to a table of a lower level.

    Whoever writes through a translation that is not its own any more may have hit a table; what it
    leaves there may even lead back up.
    """
    child = ptes.frame_of(pte)
    below = ptes.hw_present(pte) and child < len(frames)
    return below and bool(frames[child].level < frames[table].level)


def leaf_changes(frames: list[Any], table: int, linked: bool) -> Iterator[PteChange]:
    """A record for every leaf entry that comes (``linked``) or goes with ``table``."""
    for leaf, index in entries_below(frames, table):
        frame, pte = frames[leaf], frames[leaf].words[index]
        old, new = (0, pte) if linked else (pte, 0)
        yield PteChange(frame.mm, frame.address + index * PAGE_SIZE, 0, leaf, index, old, new)


def relocate(world: World, frames: list[Any], table: int, mm: str, address: int) -> list[int]:
    """A table maps another range from now on: the frames whose place in the rmap that changes."""
    if table >= len(frames) or frames[table].level < 0:
        return []
    frame = frames[table]
    was, frame.mm, frame.address = (frame.mm, frame.address), mm, address
    moved: list[int] = []
    for index, pte in sorted(frame.words.items()):
        at = address + (index << world.shift(frame.level))
        if frame.level:
            if _leads_down(frames, table, pte):
                moved += relocate(world, frames, ptes.frame_of(pte), mm, at)
        elif ptes.in_rmap(pte):
            rmap, old = frames[ptes.frame_of(pte)].rmap, (was[0], was[1] + at - address)
            if old in rmap:
                rmap[rmap.index(old)] = (mm, at)
                moved.append(ptes.frame_of(pte))
    return moved
