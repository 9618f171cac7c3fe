"""Rule L6: a cached entry that grants less than the page table does not deny for ever.

An agent that walks again when an entry is too weak needs nobody.  One that faults on it instead
depends on whoever added the right:

    memory              agent (no refetch)      cpu
    RO                  holds RO
    RW                                          adds the right
                                                releases mmap_lock, or its VMA
                        fault, fault, ...       [Required: the agent loses its entry]
"""

from __future__ import annotations

from typing import Final

from mmurace.oracle.state.live import Cached, State
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.limits import STALE_DENIALS_MAX
from mmurace.protocol.pte import describe, frame_of, permits
from mmurace.protocol.records import PermissionFault

UNLOCKS: Final = frozenset({"MmapUnlock", "VmaEndRead"})
"""What an operation does when it is done with entries: of mmap_lock, or of the lock of a VMA."""


class StaleDenials:
    """L6: counts faults on one translation while the entry that it knows of permits the access."""

    def __init__(self, state: State, found: list[Violation]) -> None:
        self.state, self.found = state, found
        self.count: dict[str, int] = {}
        """Fill -> faults that the page table did not justify."""

    def faulted(self, record: PermissionFault, event: Event, memory: int) -> None:
        """``memory``: the newest delivery there that happens before the fault."""
        fill = self.state.fills.get(record.fill)
        if fill is None or fill.gone:
            return
        now = fill.read.page.pte_at(memory)
        justified = now is None or not permits(now[1], record.write)
        if justified or now is None or frame_of(now[1]) != fill.frame:
            return
        page = fill.read.page
        if not page.left_alone(memory) or page.flush_owed(memory):
            return
        count = self.count[fill.name] = self.count.get(fill.name, 0) + 1
        if count == STALE_DENIALS_MAX + 1:
            self.found.append(_report(fill, now[1], event))
        if len(self.count) > len(self.state.fills):
            self.count = {name: n for name, n in self.count.items() if name in self.state.fills}


def _report(fill: Cached, pte: int, event: Event) -> Violation:
    page = fill.read.page
    return Violation(
        rule="L6", agent=fill.agent, cache=fill.cache, mm=page.mm, address=page.address,
        frame=fill.frame, filled=fill.event(), read=fill.read.event(),
        pte=describe(fill.read.pte), racing=(fill.read.event(), event),
        detail=f"{STALE_DENIALS_MAX + 1} faults on an entry that denies what the page table "
        f"permits ({describe(pte)}); nobody invalidates it",
    )  # fmt: skip
