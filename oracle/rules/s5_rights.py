"""Rule S5: nobody's copy of an entry grants more than the entry, once nobody owes its removal.

    memory              agent                   whoever changes
    load of the entry   copy (x)                                [Required: x grants no more]
    the entry changes
                                                returns         [Required: x is gone, whatever
                                                                 was promised]
                        x invalidated, done                     [Required: x is used no more]

Obligations that have a deadline of their own, for every agent, are rule O's.
"""

from __future__ import annotations

from msgspec import structs

from mmurace.oracle.rules.o_s4_deadlines import Obligations
from mmurace.oracle.state.live import Cached, Deadline, Op, State
from mmurace.oracle.state.order import Row
from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.pte import PRESENT, WRITE, describe, frame_of, make
from mmurace.protocol.records import Fill


class Containment:
    """Copies against what they were made from, and against changes that nobody answers for."""

    def __init__(self, state: State, obligations: Obligations, found: list[Violation]) -> None:
        self.state, self.obligations, self.found = state, obligations, found

    def filled(self, fill: Cached, record: Fill) -> None:
        """A translation was installed: it grants what its source did, or less."""
        parent = self.state.fills.get(record.source)
        source = fill.read.pte if parent is None else parent.pte
        more = record.pte & ~source & WRITE and record.cache not in self.state.kinds.read_only
        if more or frame_of(record.pte) != frame_of(source):
            found = make(frame_of(source), source & (PRESENT | WRITE))
            why = f"filled with {describe(record.pte)} from {describe(found)}"
            self._report(fill, fill.event(), why)

    def used(self, fill: Cached, event: Event) -> None:
        """An access goes out through a translation that its holder had dropped before."""
        self._report(fill, event, "used after its holder had dropped it")

    def op_ended(self, op: Op, event: Event, row: Row) -> None:
        """The operation returned, and owes nothing any more."""
        for change in op.changes:
            if all(deadline.agents is not None for deadline in change.deadlines):
                over = structs.replace(event, what="operation over")
                self.obligations.due(change, Deadline("S5", over, row, change.new), row)

    def _report(self, fill: Cached, event: Event, why: str) -> None:
        if "S5" in fill.reported:
            return
        fill.reported.add("S5")
        page = fill.read.page
        self.found.append(
            Violation(
                rule="S5", agent=fill.agent, cache=fill.cache, mm=page.mm, address=page.address,
                frame=fill.frame, filled=fill.event(), read=fill.read.event(),
                pte=describe(fill.read.pte), racing=(fill.read.event(), event), detail=why,
            )
        )  # fmt: skip
