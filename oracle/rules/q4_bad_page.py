"""Rules Q4 and S8: what the kernel checks itself.

``print_bad_pte`` says "Bad page map" (mm/memory.c), ``bad_page`` "Bad page state"
(mm/page_alloc.c), ``filemap_unaccount_folio`` "Bad page cache" (mm/filemap.c).  A debug build also
finds who takes the lock of a page-table page, which is in its ``struct page``, once it is freed:

    cpu0 (rmap walk, fault)             cpu1 (munmap)
    finds the table
                                        clears the upper entry
                                        frees the table (f)
    spin_lock(ptl) (l)                  [Required: l is not after f]

Whatever keeps the two apart (mmap_lock, the lock of the reverse map, a second look at the upper
entry under RCU) is not looked at here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mmurace.oracle.state.live import Op
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.records import BadPage, BadPageCheck

_SAID: Final[Mapping[BadPageCheck, tuple[str, str]]] = {
    "map": ("Q4", "bad page map: an entry leads to a frame that does not exist"),
    "refcount": ("Q4", "bad page state: a reference was dropped that nobody held"),
    "mapcount": ("Q4", "bad page state: a mapping was removed that was not there"),
    "cache": ("Q4", "bad page cache: a page was mapped that belongs to no file any more"),
    "ptl": ("S8", "the lock of a page-table page was taken after that was freed"),
    "pgmap": ("S1", "the driver of a device's page was asked for it after that had been freed"),
}
"""Check -> the rule, and what a report says."""


def bad_page(record: BadPage, op: Op, event: Event, freed: Event | None) -> Violation:
    """A check has failed while ``op`` was at it; ``freed``: when the frame was, last."""
    rule, detail = _SAID[record.check]
    racing = (event,) if freed is None else (freed, event)
    return Violation(
        rule, op.node, detail, mm=op.tag, frame=record.frame, owed=op.text(), racing=racing
    )
