"""Rule S8 at each fill: what a walk finds is the entry of that page, in a table still its own.

The fill names the load that it goes back to (``Oracle._source``).  If memory knew another page
there, or none, the walk went through a table that had been moved or freed.  Loads through a kept
upper entry are judged in ``o_s8_page_tables``.
"""

from __future__ import annotations

from mmurace.oracle.state.live import Read, State
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol import pte as ptes


def walked_before(state: State, mm: str, address: int, read: Read) -> Read | None:
    """What a walk by (mm, address) has found, if its table was moved under it before its last load.

    The load then counts as one of the entry as it was before the move, so whoever moves the table
    owes the invalidation of what is made of it.  None: no such move is known.
    """
    page = state.pages.get((mm, address))
    for change in reversed(page.changes if page is not None else ()):
        if ptes.hw_present(change.old) and ptes.frame_of(change.old) == ptes.frame_of(read.pte):
            return Read(change.n - 1, read.id, change.page, change.old, read.generation)
    return None


def foreign_walk(
    agent: str, cache: str, mm: str, address: int, pte: int, event: Event, why: str
) -> Violation:
    """Rule S8: a translation was made from a page that was no table of this address (any more)."""
    return Violation(
        rule="S8", agent=agent, cache=cache, mm=mm, address=address, frame=ptes.frame_of(pte),
        filled=event, pte=ptes.describe(pte), racing=(event,),
        detail=f"the walk went through a page-table page that was not (any more) its own: {why}",
    )  # fmt: skip
