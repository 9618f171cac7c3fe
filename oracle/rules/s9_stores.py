"""Rule S9: a store that was accepted is in what comes after.

The content of a page goes to another frame (migration, copy on write) or to a swap slot.  Whoever
still stores through an older translation stores into what is left behind:

    cpu0 (migrate f to t)               any agent
                                        holds an older translation (x) of f
    entry cleared
                                        x closed       [Required: before the copy]
    f copied to t
                                        store through x: f has it, t does not
    entry set to t

A store that comes before the copy is copied.  One that comes after is lost if the copy takes the
frame's place in that page, whichever of the two is first; if the page is unmapped instead, nobody
was promised anything.  All this happens at one memory, so its numbers decide.
"""

from __future__ import annotations

from mmurace.oracle.state.live import Cached, Change, Op, Page
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.limits import ORACLE_COPIES_KEPT
from mmurace.protocol.pte import describe, frame_of, is_device_private, is_swap, pte_present

Stored = tuple[Cached, Event]
"""A store: through which translation, and when."""


class Copy:
    """A copy of a frame's content, and who has stored into the original since."""

    __slots__ = ("event", "heirs", "op", "slot", "stores", "target")

    def __init__(self, op: Op, target: int, event: Event, slot: bool) -> None:
        self.op, self.target, self.event, self.slot = op, target, event, slot
        """``target`` is a swap slot if ``slot``, else a frame."""
        self.stores: dict[Page, Stored] = {}
        """Page -> the first store through a translation of it."""
        self.heirs: dict[Page, Change] = {}
        """Page in which the copy took the frame's place -> the change that took the frame out."""


class LostStores:
    """Follows copies of frames as long as the original lives."""

    def __init__(self, found: list[Violation]) -> None:
        self.found = found
        self._of: dict[int, list[Copy]] = {}

    def copied(self, op: Op, source: int, target: int, event: Event) -> None:
        """A frame was copied into another one."""
        self._keep(source, Copy(op, target, event, False))

    def written(self, op: Op, frame: int, slot: int, event: Event) -> None:
        """A frame was written to a swap slot; what was written before matters no more."""
        kept = self._of.get(frame)
        if kept:
            kept[:] = [copy for copy in kept if not copy.slot]
        self._keep(frame, Copy(op, slot, event, True))

    def _keep(self, frame: int, copy: Copy) -> None:
        kept = self._of.setdefault(frame, [])
        kept.append(copy)
        if len(kept) > ORACLE_COPIES_KEPT:
            del kept[0]

    def stored(self, fill: Cached, frame: int, event: Event) -> None:
        """A store reached memory through a translation."""
        page = fill.read.page
        for copy in self._of.get(frame, ()):
            change = copy.heirs.get(page)
            if change is None:
                if copy.slot or not copy.op.ended:
                    copy.stores.setdefault(page, (fill, event))
            elif fill.read.n < change.n:
                self._lost(copy, change, (fill, event))

    def published(self, op: Op, page: Page, new: int) -> None:
        """An entry changed: maybe the operation puts the copy in the place of the original.

        Who took the original out of reach need not be the same: an mprotect to none, whose flush is
        still to come, leaves an entry that names it.
        """
        if not page.changes or not (pte_present(new) or is_device_private(new)):
            return
        change = page.changes[-1]
        for copy in self._of.get(frame_of(change.old), ()):
            if copy.op is op and not copy.slot and copy.target == frame_of(new):
                copy.heirs[page] = change
                stored = copy.stores.pop(page, None)
                if stored is not None:
                    self._lost(copy, change, stored)

    def freed(self, frame: int) -> None:
        """A frame was freed: of a page in swap, what is left is what was written.

        A copy that was thrown away, as the entry had changed, is none of what the frame has next.
        """
        for kept in self._of.values():
            kept[:] = [c for c in kept if c.slot or c.heirs or c.target != frame]
        for copy in self._of.pop(frame, ()):
            for page, stored in copy.stores.items() if copy.slot else ():
                if is_swap(page.pte) and frame_of(page.pte) == copy.target:
                    self._lost(copy, None, stored)

    def _lost(self, copy: Copy, change: Change | None, stored: Stored) -> None:
        if "S9" not in stored[0].reported:
            stored[0].reported.add("S9")
            self.found.append(_report(copy, change, stored))


def _report(copy: Copy, change: Change | None, stored: Stored) -> Violation:
    fill, event = stored
    page = fill.read.page
    into = "swap slot" if copy.slot else "frame"
    return Violation(
        rule="S9", agent=fill.agent, cache=fill.cache, mm=page.mm, address=page.address,
        frame=fill.frame, filled=fill.event(), read=fill.read.event(),
        pte=describe(fill.read.pte), changed=change.event() if change else None,
        change=f"{describe(change.old)} -> {describe(change.new)}" if change else "",
        owed=copy.op.text(), deadline=copy.event, racing=(copy.event, event),
        detail=f"stored into frame {fill.frame:#x} after its content had gone to {into} "
        f"{copy.target:#x}: the store is lost",
    )  # fmt: skip
