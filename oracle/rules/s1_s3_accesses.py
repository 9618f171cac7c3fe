"""Rules S1 and S3, judged at each access that goes through a translation.

A latched value is such a translation too: it is in use whenever the guest runs.  Accesses without
one are those of a driver's device, or of the kernel itself, to a frame that was looked up in the
page table before (S1 only): there must be a reference to it for as long as they go on.
"""

from __future__ import annotations

from mmurace.oracle.rules.o_s4_deadlines import OPERATION_ENDED, describe_change, frame_freed
from mmurace.oracle.rules.s6_fork import isolation_broken
from mmurace.oracle.rules.s15_exclusive import Exclusivity
from mmurace.oracle.state.live import Cached, Change, Op, State
from mmurace.oracle.state.order import Row
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol import pte as ptes
from mmurace.protocol.records import Access


class Safety:
    """What was reached through a translation that should not be there."""

    def __init__(self, state: State, found: list[Violation]) -> None:
        self.state, self.found = state, found
        self.exclusive = Exclusivity(found)

    def accessed(self, fill: Cached, record: Access, event: Event, row: Row) -> None:
        """An access reached memory through ``fill``."""
        if self.exclusive.claims:
            self.exclusive.accessed(fill, record, event, row)
        frame = self.state.frame(record.frame)
        if frame.generation != fill.read.generation and "S1" not in fill.reported:
            fill.reported.add("S1")
            self.found.append(self._after_free(fill, frame.freed, record, event))
        revoked = _revoked_by(fill, record.write, row) if fill.read.page.changes else None
        if revoked is not None and "S3" not in fill.reported:
            fill.reported.add("S3")
            late = _after_revocation(fill, revoked, record, event)
            shared = isolation_broken(self.state, late) if record.write else None
            self.found += [late, *([shared] if shared is not None else [])]

    def by_number(self, op: Op, record: Access, event: Event) -> None:
        """An access to a frame by its number; the operation's last load of its entry found it."""
        frame = self.state.frame(record.frame)
        found = (read for read in reversed(op.reads) if ptes.frame_of(read.pte) == record.frame)
        read = next(found, None)
        if read is None or read.generation == frame.generation:
            return
        taken = (c for c in read.page.changes if read.n < c.n and ptes.takes_away(read.pte, c.new))
        change = next(taken, None)
        did = "written" if record.write else "read"
        self.found.append(Violation(
            rule="S1", agent=op.node, mm=read.page.mm, address=read.page.address,
            frame=record.frame, read=read.event(), pte=ptes.describe(read.pte),
            changed=change.event() if change else None,
            change=describe_change(change) if change else "",
            deadline=frame.freed, racing=(frame.freed, event) if frame.freed else (event,),
            detail=f"frame {record.frame:#x} was {did} by its number after it had been freed",
        ))  # fmt: skip

    def in_guest(self, fill: Cached, event: Event, row: Row) -> None:
        """The guest runs with a frame number that its processor has latched.

        Hardware asks no table about it: guest accesses to that frame trap, whoever owns it by
        now, and those to the page that took its place do not.
        """
        if not fill.usable or fill.closed or "S1" in fill.reported:
            return
        freed = _freed_before(fill, row)
        if freed is not None:
            fill.reported.add("S1")
            change, due = freed
            self.found.append(_through_latched(fill, change, due, event))

    def _after_free(
        self, fill: Cached, freed: Event | None, record: Access, event: Event
    ) -> Violation:
        page = fill.read.page
        change = next((c for c in page.changes if _concerns(c, fill)), None)
        did = "written" if record.write else "read"
        racing = (freed, event) if freed is not None else (event,)
        return Violation(
            rule="S1", agent=fill.agent, cache=fill.cache, mm=page.mm, address=page.address,
            frame=record.frame, filled=fill.event(), read=fill.read.event(),
            pte=ptes.describe(fill.read.pte), changed=change.event() if change else None,
            change=describe_change(change) if change else "",
            owed=change.op.text() if change else "", deadline=freed, racing=racing,
            detail=f"frame {record.frame:#x} was {did} after it had been freed",
        )  # fmt: skip


def _concerns(change: Change, fill: Cached) -> bool:
    return fill.read.n < change.n and ptes.takes_away(fill.pte, change.new)


def _freed_before(fill: Cached, row: Row) -> tuple[Change, Event] | None:
    """The change that took the frame away and its becoming free, if both are the past of row."""
    freed = frame_freed(fill.frame)
    for change in fill.read.page.changes:
        if _concerns(change, fill):
            for due in change.deadlines:
                if due.event.what == freed and row[due.index] >= due.n:
                    return change, due.event
    return None


def _through_latched(fill: Cached, change: Change, freed: Event, event: Event) -> Violation:
    page = fill.read.page
    return Violation(
        rule="S1", agent=fill.agent, cache=fill.cache, mm=page.mm, address=page.address,
        frame=fill.frame, filled=fill.event(), read=fill.read.event(),
        pte=ptes.describe(fill.read.pte), changed=change.event(),
        change=describe_change(change), owed=change.op.text(), deadline=freed,
        racing=(freed, event),
        detail=f"{fill.agent} ran with frame {fill.frame:#x} in its {fill.cache} after its free",
    )  # fmt: skip


def _grants(pte: int, fill: Cached, write: bool) -> bool:
    """Whether the entry grants this access to whom it granted it before."""
    same = not (pte ^ fill.pte) & ptes.REACHED_BY and ptes.frame_of(pte) == fill.frame
    return same and (not write or bool(pte & ptes.WRITE))


def _revoked_by(fill: Cached, write: bool, row: Row) -> tuple[Change, Event] | None:
    """The change that took this access away by an operation which had returned before it."""
    page = fill.read.page
    if _grants(page.pte, fill, write):
        return None
    for change in page.changes:
        if fill.read.n < change.n and not _grants(change.new, fill, write):
            for due in change.deadlines:
                if due.event.what == OPERATION_ENDED and row[due.index] >= due.n:
                    return change, due.event
    return None


def _after_revocation(
    fill: Cached, revoked: tuple[Change, Event], record: Access, event: Event
) -> Violation:
    page, (change, ended) = fill.read.page, revoked
    return Violation(
        rule="S3", agent=fill.agent, cache=fill.cache, mm=page.mm, address=page.address,
        frame=record.frame, filled=fill.event(), read=fill.read.event(),
        pte=ptes.describe(fill.read.pte), changed=change.event(),
        change=describe_change(change), owed=change.op.text(), deadline=ended,
        racing=(ended, event),
        detail=f"{'write' if record.write else 'read'} after {change.op.text()} had revoked it",
    )  # fmt: skip
