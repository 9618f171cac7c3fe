"""Rules O and S4: who holds an older copy must have lost it before the deadline.

For a change ``e`` that took something away, and a translation ``x`` of that page whose load came
before ``e`` and which grants more than the entry does at the deadline ``d``:

    memory              agent                  whoever changes
    load (x's source)   x installed
    e
                        x closed (c)
                                               d   [Required: c happens before d]

Whether ``x`` was installed before or after ``d`` makes no difference, and neither do the numbers
of deliveries at different nodes, so the result is the same for every linearisation.
"""

from __future__ import annotations

from mmurace.oracle.state.live import Cached, Change, Deadline, Op, State
from mmurace.oracle.state.order import Row
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol import pte as ptes

REVOKING = frozenset({
    "Munmap", "Mprotect", "Brk", "MadviseDontneed", "MadviseFree", "Mmap", "Mremap", "Truncate",
    "Fork", "ClearRefs", "Execve", "Exit",
})  # fmt: skip
"""Operations that promise revocation by their return."""

OPERATION_ENDED = "operation ended"
"""What the deadline of a revoking operation is called."""


def frame_freed(frame: int) -> str:
    """What the deadline at which a frame becomes free is called."""
    return f"frame {frame:#x} freed"


class Obligations:
    """Attaches deadlines to changes and judges translations against them."""

    def __init__(self, state: State, found: list[Violation]) -> None:
        self.state, self.found = state, found

    # -- deadlines -----------------------------------------------------------------------------

    def published(self, change: Change, new: int, event: Event, row: Row) -> None:
        """The operation that took the old entry away maps another frame: a COW."""
        if ptes.frame_of(change.old) != ptes.frame_of(new):
            self._pass(change, Deadline("O", event, row, new), row)

    def op_ended(self, op: Op, kind: str, event: Event, row: Row) -> None:
        """The operation returned."""
        if kind in REVOKING:
            self._pass_all(op.changes, event, row)

    def frame_freed(self, changes: list[Change], event: Event, row: Row) -> None:
        """The frame that ``changes`` took out of entries is free."""
        self._pass_of_frame(changes, event, row)

    def frame_copied(self, op: Op, source: int, event: Event, row: Row) -> None:
        """The operation copied a frame that it had unmapped (migration)."""
        changes = [c for c in op.changes if ptes.frame_of(c.old) == source]
        self._pass_of_frame(changes, event, row)

    def page_written(self, op: Op, frame: int, event: Event, row: Row) -> None:
        """The operation wrote a page that it had unmapped: who cannot store to it may stay.

        Who walks the table itself cannot through a copy that is clean: he looks for the entry
        first, to make it dirty (``serves``).

        cpu0 (fork)                 cpu1 (reclaim)
        entry: read-only, clean     clear it; write the page; flush
        flush                       [Required: no store after the page was written; of a copy
                                    that is writable and clean, nothing]
        """
        for change in op.changes:
            if ptes.frame_of(change.old) == frame:
                new = ptes.make(frame, ptes.PRESENT)
                self._pass(change, Deadline("O", event, row, new, frame=frame, stores=True), row)

    def bracket_ended(
        self, changes: list[Change], agents: frozenset[str], event: Event, row: Row
    ) -> None:
        """A shadow MMU may install again: nothing older may be left in it (S4)."""
        for change in changes:
            self._pass(change, Deadline("S4", event, row, change.new, agents), row)

    def due(self, change: Change, deadline: Deadline, row: Row) -> None:
        """A deadline that another rule has found."""
        self._pass(change, deadline, row)

    def _pass_all(self, changes: list[Change], event: Event, row: Row) -> None:
        for change in changes:
            self._pass(change, Deadline("O", event, row, change.new), row)

    def _pass_of_frame(self, changes: list[Change], event: Event, row: Row) -> None:
        """What becomes of a frame does not matter to a copy of another one.

        cpu0 (reclaim)              cpu1 (reads the page back)  cpu2 (reclaim)
        clear; flush deferred
                                    maps another frame
                                                                clear; write; flush; free that one
        flush; free the first       [Required: of a copy of the first frame, only this]
        """
        for change in changes:
            frame = ptes.frame_of(change.old)
            self._pass(change, Deadline("O", event, row, change.new, frame=frame), row)

    def _pass(self, change: Change, deadline: Deadline, row: Row) -> None:
        change.deadlines.append(deadline)
        for fill in change.page.fills:
            if fill.usable and fill.read.n < change.n and not fill.closed_before(row):
                self._judge(fill, change, deadline)

    # -- judgement -----------------------------------------------------------------------------

    def installed(self, fill: Cached) -> None:
        """A translation became usable: which deadlines have already passed for it?"""
        for change in fill.read.page.changes:
            if fill.read.n < change.n:
                for deadline in change.deadlines:
                    self._judge(fill, change, deadline)

    def _judge(self, fill: Cached, change: Change, deadline: Deadline) -> None:
        if deadline.agents is not None and (
            fill.agent not in deadline.agents
            or (deadline.rule == "S4" and fill.cache not in self.state.kinds.shadow)
        ):
            return
        if deadline.frame is not None and fill.frame != deadline.frame:
            return
        if deadline.stores and not self._stores(fill):
            return
        key = (deadline.rule, fill.agent, fill.cache)
        if key in change.reported or not ptes.takes_away(fill.granted, deadline.new):
            return
        change.reported.add(key)
        self.found.append(_report(fill, change, deadline))

    def _stores(self, fill: Cached) -> bool:
        """Whether it is enough for a store; a guest asks no entry, dirty or not."""
        if fill.cache in self.state.kinds.shadow:
            return bool(fill.pte & ptes.WRITE)
        return ptes.serves(fill.pte, True)


def _report(fill: Cached, change: Change, deadline: Deadline) -> Violation:
    page, due = change.page, deadline.event
    walked_before = fill.n < due.n and not fill.closed
    if walked_before:
        detail = f"still held when {due.what}"
    elif fill.closed:
        detail = f"not known to be gone when {due.what}"
    else:
        detail = f"installed from an old read after {due.what}"
    raced = (fill.read.event(), change.event())
    return Violation(
        rule=deadline.rule, agent=fill.agent, cache=fill.cache, mm=page.mm, address=page.address,
        frame=fill.frame, filled=fill.event(), read=fill.read.event(),
        pte=ptes.describe(fill.read.pte), changed=change.event(),
        change=describe_change(change), owed=change.op.text(), deadline=due,
        racing=raced if fill.n > change.n else (change.event(), due),
        detail=f"{detail}; {change.op.text()} owed its invalidation",
    )  # fmt: skip


def describe_change(change: Change) -> str:
    """``frame 0x3 RW -> none``."""
    return f"{ptes.describe(change.old)} -> {ptes.describe(change.new)}"
