"""Rule S6 for all that share: an anonymous page that one process may write, no other gets at.

    cpu0 (reclaim)                      cpu1 (write fault of the other process)
    swap entry in place of one mapping
                                        entry: writable   [Required: not while another entry ...]
                                        store
    writes the page to swap             [... still leads to the page: its process would read it]

An entry leads to a page if it maps it, waits for its migration, or names the slot that reclaim has
put in its place, until the page's frame is free.  Only the first entry that names a slot says whose
place it takes: others are copied by a fork, or moved to where the same call has unmapped a page.
"""

from __future__ import annotations

from typing import Final

from mmurace.oracle.state.live import Op, Page
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.limits import ORACLE_SLOTS_KEPT
from mmurace.protocol.pte import (
    SPECIAL,
    WRITE,
    describe,
    frame_of,
    is_swap,
    names_page,
    usable,
)
from mmurace.protocol.records import FrameAllocated

GONE: Final = -1
"""Of a slot: the frame whose place it took is free."""


class PrivatePages:
    """Which entries lead to which anonymous page."""

    def __init__(self, found: list[Violation]) -> None:
        self.found = found
        self.anon: set[int] = set()
        """Frames that were allocated for anonymous memory."""
        self.slots: dict[int, int] = {}
        """Swap slot -> the frame whose place it has taken in some entry, or ``GONE``."""
        self._leads: dict[int, dict[Page, None]] = {}
        """Frame -> the pages whose entries name it."""
        self._swapped: dict[int, dict[Page, None]] = {}
        """Swap slot -> the same."""

    def allocated(self, record: FrameAllocated) -> None:
        """A frame left the pool."""
        if record.use in ("anon", "device"):
            self.anon.add(record.frame)

    def of_file(self, frame: int) -> None:
        """It was allocated for a page that turned out to be one of a file."""
        self.anon.discard(frame)

    def freed(self, frame: int) -> None:
        """Its content is gone, or in a slot for good."""
        self.anon.discard(frame)
        if frame in self.slots.values():
            self.slots = {slot: GONE if f == frame else f for slot, f in self.slots.items()}
            for slot in list(self.slots)[:-ORACLE_SLOTS_KEPT]:
                del self.slots[slot]

    def changed(self, op: Op, page: Page, old: int, new: int, event: Event) -> None:
        """An entry changed."""
        _note(self._leads, self._swapped, page, old, there=False)
        _note(self._leads, self._swapped, page, new, there=True)
        if is_swap(new):
            last = page.changes[-1] if page.changes else None
            if last is not None and last.op is op and frame_of(last.old) in self.anon:
                self.slots.setdefault(frame_of(new), frame_of(last.old))
        elif usable(new) and new & WRITE and frame_of(new) in self.anon:
            self._granted(op, page, old, new, event)

    def _granted(self, op: Op, page: Page, old: int, new: int, event: Event) -> None:
        frame = frame_of(new)
        others = [p for p in self._leads.get(frame, ()) if p is not page]
        for slot, of in self.slots.items():
            if of == frame:
                others += [p for p in self._swapped.get(slot, ()) if p is not page]
        if others:
            self.found.append(_report(op, page, (old, new), others[0], event))


def _note(
    leads: dict[int, dict[Page, None]], swapped: dict[int, dict[Page, None]], page: Page, pte: int,
    there: bool,
) -> None:  # fmt: skip
    """The page's entry leads there, or does not any more."""
    if is_swap(pte):
        of = swapped
    elif names_page(pte) and not pte & SPECIAL:
        of = leads
    else:
        return
    pages = of.setdefault(frame_of(pte), {})
    if there:
        pages[page] = None
    else:
        pages.pop(page, None)
    if not pages:
        del of[frame_of(pte)]


def _report(op: Op, page: Page, entry: tuple[int, int], other: Page, event: Event) -> Violation:
    old, new = entry
    return Violation(
        rule="S6", agent=op.node or event.node, mm=page.mm, address=page.address,
        frame=frame_of(new), changed=event, owed=op.text(), racing=(event,),
        change=f"{describe(old)} -> {describe(new)}",
        detail=f"{page.mm}:{page.address:#x} may write frame {frame_of(new):#x}, to which "
        f"{other.mm}:{other.address:#x} leads as well ({describe(other.pte)})",
    )  # fmt: skip
