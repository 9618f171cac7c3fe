"""Rule S9, the other way round: whoever takes a page's place has its content.

    cpu0 (swap in, migrate, copy on write)
    takes a new frame, zeroed
    reads the slot, copies the page     [Required: before ...]
    maps the frame                      ... every store that was accepted is gone otherwise

A page that was thrown away needs no successor, nor does one that was unmapped by request.
"""

from __future__ import annotations

from mmurace.oracle.rules.o_s4_deadlines import REVOKING
from mmurace.oracle.state.live import Op, Page
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.limits import ORACLE_LAZYFREE_KEPT
from mmurace.protocol.pte import (
    SPECIAL,
    describe,
    frame_of,
    is_device_private,
    is_migration,
    is_swap,
    pte_present,
)
from mmurace.protocol.records import FrameAllocated, PageDiscarded


class Successors:
    """Frames that nothing was put into since they left the pool."""

    def __init__(self, found: list[Violation]) -> None:
        self.found = found
        self._fresh: set[int] = set()
        self._discarded: dict[tuple[str, int], None] = {}
        """Pages whose content nobody needs; the one thrown away first is forgotten first."""

    def allocated(self, record: FrameAllocated) -> None:
        """A zeroed frame; a page-table page is no page."""
        if record.use != "table":
            self._fresh.add(record.frame)

    def discarded(self, record: PageDiscarded) -> None:
        """What comes after a page that was thrown away begins anew."""
        self._discarded[record.mm, record.address] = None
        if len(self._discarded) > ORACLE_LAZYFREE_KEPT:
            del self._discarded[next(iter(self._discarded))]

    def filled(self, frame: int) -> None:
        """It has got the content of something, or has no owner any more."""
        self._fresh.discard(frame)

    def changed(self, op: Op, page: Page, old: int, new: int, event: Event) -> None:
        """An entry changed; ``page.changes`` ends with what was taken out before."""
        if not _maps(new) or frame_of(new) not in self._fresh:
            return
        self._fresh.remove(frame_of(new))
        place = (page.mm, page.address)
        if place in self._discarded:
            del self._discarded[place]
        elif is_swap(old) or is_migration(old) or _taken_by(op, page, event):
            self.found.append(_report(op, page, old, new, event))


def _maps(pte: int) -> bool:
    """Whether it is the entry of a page that somebody may use."""
    return pte_present(pte) or is_device_private(pte)


def _taken_by(op: Op, page: Page, event: Event) -> bool:
    """Whether the operation replaces what it took out itself, and has promised no revocation.

    Not if the entry has changed since: a page that it has swapped out may be unmapped meanwhile.
    Nor if another of its page faults did: a worker that finds the process killed unmaps all of it,
    and the device may fault again in what is forked into its place.
    """
    if not page.changes or op.kind in REVOKING or len(page.history) < 2:
        return False
    last = page.changes[-1]
    if _sender(last.id) != _sender(event.id):
        return False
    return last.op is op and page.history[-2][0] == last.n and not last.old & SPECIAL


def _sender(message: str) -> str:
    """Whose message it is: that which the sender serves, as a page fault, or its operation."""
    return message.rpartition(".")[0]


def _report(op: Op, page: Page, old: int, new: int, event: Event) -> Violation:
    before = describe(old or page.changes[-1].old)
    return Violation(
        rule="S9", agent=op.node, mm=page.mm, address=page.address, frame=frame_of(new),
        changed=event, change=f"{before} -> {describe(new)}", owed=op.text(), racing=(event,),
        detail=f"frame {frame_of(new):#x} took the place of {before} without its content: every "
        "store to it is lost",
    )  # fmt: skip
