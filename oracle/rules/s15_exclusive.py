"""Rule S15: while somebody has exclusive access to a page, no other agent's access succeeds.

    memory              device (holder)         any other agent
    exclusive entry
                        its entry (y)
                        atomic access                               [Required: nobody reaches the
                        y closed                                    frame between these two]
    ordinary entry
                                                access

An access is before the holder's entry if its end happens before that was made, and after it if the
entry was closed before the access arrived.  One that is neither is reported, whichever came first.
"""

from __future__ import annotations

from mmurace.oracle.state.live import Cached, Page
from mmurace.oracle.state.order import Row
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.pte import describe, is_device_exclusive
from mmurace.protocol.records import Access


class _Claim:
    """A frame that some device has, or had, for itself."""

    __slots__ = ("accesses", "holders")

    def __init__(self) -> None:
        self.holders: list[Cached] = []
        self.accesses: dict[str, tuple[Cached, Event, int]] = {}
        """Agent -> its last access since the first exclusive entry: through what, when, and the
        place of memory in a row."""


class Exclusivity:
    """Follows frames from their first exclusive entry until they are free."""

    def __init__(self, found: list[Violation]) -> None:
        self.found = found
        self.claims: dict[int, _Claim] = {}
        """By frame; nothing need be told of others."""

    def granted(self, frame: int, row: Row) -> None:
        """An entry became exclusive: what memory knows to be gone matters no more."""
        claim = self.claims.setdefault(frame, _Claim())
        claim.holders = [y for y in claim.holders if not y.closed_before(row)]

    def freed(self, frame: int) -> None:
        """Its next owner is another one."""
        self.claims.pop(frame, None)

    def filled(self, holder: Cached, row: Row) -> None:
        """A translation was made of an exclusive entry."""
        claim = self.claims.get(holder.frame)
        if claim is None or not is_device_exclusive(holder.read.pte):
            return
        claim.holders.append(holder)
        for other, event, memory in claim.accesses.values():
            if other.agent != holder.agent and event.n > row[memory]:
                self._report(holder, other, event)

    def accessed(self, fill: Cached, record: Access, event: Event, row: Row) -> None:
        """An access reached memory through a translation."""
        claim = self.claims.get(record.frame)
        if claim is None:
            return
        claim.accesses[fill.agent] = fill, event, row.index(event.n)
        for holder in claim.holders:
            if holder.agent != fill.agent and not holder.closed_before(row):
                self._report(holder, fill, event)

    def _report(self, holder: Cached, other: Cached, event: Event) -> None:
        """Who should not have it any more, or not yet: whose entry is the older one."""
        if "S15" in holder.reported:
            return
        holder.reported.add("S15")
        stale, fresh = (holder, other) if holder.read.n < other.read.n else (other, holder)
        page: Page = stale.read.page
        frame = f"frame {stale.frame:#x}"
        if stale is holder:
            detail = f"had {frame} for itself when {other.agent} reached it"
        else:
            detail = f"reached {frame} when {holder.agent} had it for itself"
        change = next((c for c in page.changes if stale.read.n < c.n), None)
        self.found.append(Violation(
            rule="S15", agent=stale.agent, cache=stale.cache, mm=page.mm, address=page.address,
            frame=stale.frame, filled=stale.event(), read=stale.read.event(),
            pte=describe(stale.read.pte), changed=change.event() if change else None,
            owed=change.op.text() if change else "", racing=(fresh.event(), event),
            detail=detail,
        ))  # fmt: skip
