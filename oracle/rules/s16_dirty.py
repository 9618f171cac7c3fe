"""Rule S16: that a page is dirty is never forgotten, and aging adds no right.

    any walker                          cpu0
                                        load the entry: clean
    store: sets dirty in the entry
                                        store the entry  [Required: dirty as it was found]

The dirty bit stays with the entry; or it goes with the page when the same operation puts it
elsewhere (a move, a migration entry, the copy of a migration); or a page of a file says so itself;
or the page is written before its frame is freed.  An operation that says that the content may go,
or that it writes it (``CLEANING``), may clear it.  More of pages of files is in
``oracle.rules.s9_s16_files``.
"""

from __future__ import annotations

from typing import Final

from mmurace.oracle.state.live import Op, Page
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.pte import (
    ACCESSED,
    DIRTY,
    describe,
    frame_of,
    is_swap,
    names_page,
    takes_away,
)

CLEANING: Final = frozenset({"MadviseFree", "Writeback"})
"""Operations after which nobody depends on the content of memory any more."""


class _Taken:
    """A dirty entry that an operation has taken out; ``slot`` once it has left a swap entry."""

    __slots__ = ("discarded", "event", "old", "op", "page", "slot")

    def __init__(self, op: Op, page: Page, old: int, event: Event) -> None:
        self.op, self.page, self.old, self.event = op, page, old, event
        self.slot = -1
        self.discarded = False
        """Reclaim has decided that the page needs no successor."""


class DirtyBits:
    """Where the dirty bits of entries that operations in flight have taken out went."""

    def __init__(self, found: list[Violation]) -> None:
        self.found = found
        self._taken: dict[int, list[_Taken]] = {}
        """Frame -> entries of it taken out, oldest first: dirty ones, and others after them."""
        self._moving: set[tuple[Op, int]] = set()
        """Swap slots whose entries operations have taken out, and may put in elsewhere."""
        self._copies: dict[int, tuple[Op, int]] = {}
        """Copy -> the operation that made it, and the original."""

    def changed(self, op: Op, page: Page, old: int, new: int, event: Event) -> None:
        """A leaf entry changed."""
        was, is_now = names_page(old), names_page(new)
        if is_swap(old):
            self._moving.add((op, frame_of(old)))
        if was and is_now and frame_of(old) in (frame_of(new), self._original(op, new)):
            self._rewritten(op, page, old, new, event)
            return
        if was and (old & DIRTY or frame_of(old) in self._taken):
            self._taken.setdefault(frame_of(old), []).append(_Taken(op, page, old, event))
        if is_now and self._taken:
            self._put(op, page, new, event)
        elif is_swap(new) and self._taken and (op, frame_of(new)) not in self._moving:
            self._swapped(op, page, frame_of(new))

    def _original(self, op: Op, entry: int) -> int:
        """The frame of the entry, or what the operation has made it a copy of."""
        by, source = self._copies.get(frame_of(entry), (op, frame_of(entry)))
        return source if by is op else frame_of(entry)

    def _rewritten(self, op: Op, page: Page, old: int, new: int, event: Event) -> None:
        """Another entry of the same page."""
        lost = old & ~new
        if lost & DIRTY and op.kind not in CLEANING:
            self._report(op, page, old, new, event, "the entry is dirty no more")
        if lost & ACCESSED and frame_of(old) == frame_of(new) and takes_away(new, old):
            self._report(op, page, old, new, event, "aging added a right")

    def _put(self, op: Op, page: Page, new: int, event: Event) -> None:
        """The operation maps a page: maybe the one that it took out last.

        A page of a file may be taken out twice: unmapped where something moves to, and moved.
        """
        kept = self._taken.get(frame_of(new)) or self._taken.get(self._original(op, new), [])
        taken = next((t for t in reversed(kept) if t.op is op), None)
        if taken is not None:
            kept.remove(taken)
            if taken.old & ~new & DIRTY and op.kind not in CLEANING:
                self._report(op, page, taken.old, new, event, "it was put back clean")

    def _swapped(self, op: Op, page: Page, slot: int) -> None:
        """The operation puts a swap entry in place of what it took out.

        Not so if the entry was somewhere before: a move to a place that it has unmapped first.
        """
        for kept in self._taken.values():
            for taken in kept:
                if taken.op is op and taken.page is page:
                    taken.slot = slot

    def discarded(self, frame: int, page: Page | None) -> None:
        """Reclaim drops a page unwritten."""
        for taken in self._taken.get(frame, ()):
            taken.discarded |= taken.page is page

    def marked(self, op: Op, frame: int) -> None:
        """The page of a file that the operation has unmapped says that it is dirty."""
        if frame in self._taken:
            kept = [taken for taken in self._taken.pop(frame) if taken.op is not op]
            if kept:
                self._taken[frame] = kept

    def copied(self, op: Op, source: int, target: int) -> None:
        """A copy that takes the place of the original is as dirty."""
        self._copies[target] = (op, source)

    def written(self, frame: int) -> None:
        """The page was written: clean."""
        self._taken.pop(frame, None)

    def freed(self, frame: int, event: Event) -> None:
        """The frame is free: was it written, if somebody may still ask for its content?"""
        self._copies.pop(frame, None)
        for taken in self._taken.pop(frame, ()) if self._taken else ():
            now = taken.page.pte
            swapped = is_swap(now) and frame_of(now) == taken.slot
            if taken.old & DIRTY and (swapped or (taken.discarded and not now)):
                why = "it was freed without being written"
                self._report(taken.op, taken.page, taken.old, now, event, why)

    def ended(self, op: Op) -> None:
        """The operation is over."""
        if self._moving:
            self._moving = {moving for moving in self._moving if moving[0] is not op}
        if self._copies:
            self._copies = {f: copy for f, copy in self._copies.items() if copy[0] is not op}
        if self._taken:
            left = {f: [t for t in kept if t.op is not op] for f, kept in self._taken.items()}
            self._taken = {frame: kept for frame, kept in left.items() if kept}

    def _report(self, op: Op, page: Page, old: int, new: int, event: Event, why: str) -> None:
        self.found.append(
            Violation(
                rule="S16", agent=op.node or event.node, mm=page.mm, address=page.address,
                frame=frame_of(old), changed=event, owed=op.text(), racing=(event,),
                change=f"{describe(old)} -> {describe(new)}",
                detail=f"{why}: {describe(old)} -> {describe(new)}",
            )
        )  # fmt: skip
