"""The records of memory: entries, frames and their content, accesses."""

from __future__ import annotations

from mmurace.oracle.rules.content import MemoryRules
from mmurace.oracle.rules.o_inherited import Inherited
from mmurace.oracle.rules.o_s2_moves import Moves
from mmurace.oracle.rules.o_s4_deadlines import Obligations, frame_freed
from mmurace.oracle.rules.o_s8_page_tables import Tables
from mmurace.oracle.rules.s1_s3_accesses import Safety
from mmurace.oracle.rules.s7_store_order import Coherence
from mmurace.oracle.rules.s12_tags import Identity
from mmurace.oracle.sometimes import Sometimes
from mmurace.oracle.state import statistics as stats
from mmurace.oracle.state.live import Change, Op, Page, Read, State, usable_read
from mmurace.oracle.state.order import Row
from mmurace.oracle.state.statistics import Statistics
from mmurace.oracle.violation import Event
from mmurace.oracle.windows import Windows
from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r


class MemoryRecords:
    """The part of the oracle that reads them."""

    state: State
    statistics: Statistics
    obligations: Obligations
    inherited: Inherited
    moves: Moves
    coherence: Coherence
    tables: Tables
    safety: Safety
    identity: Identity
    memory_rules: MemoryRules
    sometimes: Sometimes
    windows: Windows | None
    _n: int
    _id: str
    _row: Row
    _op_id: str

    def _event(self, what: str) -> Event:
        raise NotImplementedError

    def _op(self) -> Op:
        raise NotImplementedError

    def _pte_change(self, record: r.PteChange) -> None:
        if record.level:
            return
        old, new = record.old, record.new
        page = self.state.page(record.mm, record.address, 0, old)
        page.history.append((self._n, new))
        if ptes.is_device_exclusive(new):
            self._made_exclusive(page, new)
        self.memory_rules.changed(self._op(), page, old, new, self._event("entry changed"))
        if ptes.takes_away(old, new):
            self._taken_away(Change(self._id, page, old, new, self._op(), self._n, self._row))
        else:
            self._given(page, old, new)
        self.memory_rules.published(self._op(), page, new)

    def _made_exclusive(self, page: Page, new: int) -> None:
        """Whoever makes such an entry knows it by that, as if it had been loaded."""
        frame = ptes.frame_of(new)
        generation = self.state.frame(frame).generation
        self.state.add_read(Read(self._n, self._id, page, new, generation), self._op())
        self.safety.exclusive.granted(frame, self._row)

    def _given(self, page: Page, old: int, new: int) -> None:
        op = self._op()
        if ptes.usable(new) and (not ptes.usable(old) or new & ~old & ptes.WRITE):
            page.granted = (self._n, op)
        if not ptes.usable(old) and ptes.usable(new):
            self.moves.put(op, page.mm, page.address, new)
            if page.changes and page.changes[-1].op is op:
                self._published(page.changes[-1], new)

    def _taken_away(self, change: Change) -> None:
        self.state.add_change(change)
        self.moves.took(change)
        stats.change_held(self.state, change)
        if ptes.usable(change.new):
            self._published(change, change.new)
        if self.windows is not None:
            self.windows.taken_away(change)
        if self.sometimes.open:
            self.sometimes.change(change, self._row)
            self.sometimes.mark(change.op, "pte_change", self._row)

    def _published(self, change: Change, new: int) -> None:
        """The operation that cleared the entry sets it again: another frame, or fewer rights."""
        if ptes.frame_of(change.old) == ptes.frame_of(new):
            change.new = new
        else:
            self.coherence.replaced(change, new)
            self.obligations.published(change, new, self._event("new entry published"), self._row)

    def _pte_read(self, record: r.PteRead) -> None:
        if usable_read(record.pte):
            page = self.state.page(record.mm, record.address, self._n, record.pte)
            generation = self.state.frame(ptes.frame_of(record.pte)).generation
            self.state.add_read(
                Read(self._n, self._id, page, record.pte, generation), self._op()
            )  # fmt: skip

    def _frame_allocated(self, record: r.FrameAllocated) -> None:
        stats.frame_allocated(self.statistics, self.state.frame(record.frame))
        self.memory_rules.allocated(record)

    def _frame_freed(self, record: r.FrameFreed) -> None:
        frame = self.state.frame(record.frame)
        event = self._event(frame_freed(record.frame))
        frame.generation += 1
        frame.freed = event
        stats.frame_freed(frame)
        self.tables.freed(record.frame, event, self._row)
        self.memory_rules.freed(record.frame, event)
        self.safety.exclusive.freed(record.frame)
        changes, frame.changes = frame.changes, []
        self.obligations.frame_freed(changes, event, self._row)
        if self.sometimes.open:
            self.sometimes.mark(self._op(), "frame_freed", self._row)

    def _frame_copied(self, record: r.FrameCopied) -> None:
        event = self._event(f"frame {record.source:#x} copied")
        self.obligations.frame_copied(self._op(), record.source, event, self._row)
        self.memory_rules.copied(record, self._op(), event)
        if self.sometimes.open:
            self.sometimes.mark(self._op(), "frame_copied", self._row)

    def _page_written(self, record: r.PageWritten) -> None:
        event = self._event(f"frame {record.frame:#x} written to swap")
        self.obligations.page_written(self._op(), record.frame, event, self._row)
        self.memory_rules.written(record, self._op(), event)

    def _page_read(self, record: r.PageRead) -> None:
        self.memory_rules.read_in(record)

    def _file_page_read(self, record: r.FilePageRead) -> None:
        self.memory_rules.file_read(record)

    def _file_sized(self, record: r.FileSized) -> None:
        self.memory_rules.file_sized(record)

    def _file_page_written(self, record: r.FilePageWritten) -> None:
        event = self._event(f"frame {record.frame:#x} written to {record.file}")
        self.obligations.page_written(self._op(), record.frame, event, self._row)
        self.memory_rules.file_written(record)

    def _file_page_dirtied(self, record: r.FilePageDirtied) -> None:
        self.memory_rules.dirty.marked(self._op(), record.frame)

    def _file_page_dropped(self, record: r.FilePageDropped) -> None:
        event = self._event(f"frame {record.frame:#x} dropped from {record.file}")
        self.memory_rules.files.dropped(record, event)

    def _file_page_migrated(self, record: r.FilePageMigrated) -> None:
        self.memory_rules.file_migrated(record)

    def _page_lazyfree(self, record: r.PageLazyfree) -> None:
        self.memory_rules.given_up(record)

    def _page_discarded(self, record: r.PageDiscarded) -> None:
        self.memory_rules.discarded(record, self._event("page discarded"))

    def _access(self, record: r.Access) -> None:
        op = self.state.ops.get(self._op_id)
        fill = op.uses.pop(self._id, None) if op is not None and op.uses else None
        event = self._event("frame written" if record.write else "frame read")
        self.memory_rules.accessed(fill, record, event, self._row)
        if op is not None and fill is not None:
            fill.uses -= 1
            stats.bump(self.statistics.accesses, fill.cache)
            if self.windows is not None:
                self.windows.accessed(fill, op, self._n)
            self.safety.accessed(fill, record, event, self._row)
            if self.coherence.pages:
                self.coherence.accessed(fill, record, self._op_id, event)
            self.identity.accessed(fill, op, event)
        elif op is not None:
            self.safety.by_number(op, record, event)

    def _tag_alloc(self, record: r.TagAlloc) -> None:
        self.identity.allocated(record)

    def _tag_free(self, record: r.TagFree) -> None:
        self.identity.freed(record, self._op(), self._event("tag taken back"), self._row)

    def _out_of_memory(self, _: r.OutOfMemory) -> None:
        self.statistics.out_of_memory += 1

    def _oom_kill(self, _: r.OomKill) -> None:
        self.statistics.oom_kills += 1

    def _flush_deferred(self, record: r.FlushDeferred) -> None:
        self.inherited.deferred(record)
