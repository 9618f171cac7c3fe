"""Physical memory: frames and their words, lock words, reverse maps, and the mms' own state.

Everything that the host's processors share is here, and is reached by messages only.  A
page-table page is a frame like any other: its words are entries, and a stale walker that reads it
after reuse decodes whatever is there.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from mmurace.nodes.device_memory import DeviceMemory
from mmurace.nodes.driver import Handler, Port
from mmurace.nodes.intervals import IntervalTrees
from mmurace.nodes.memory_locks import MemoryLocks
from mmurace.nodes.page_table import leaf_changes, relocate
from mmurace.nodes.vmas import anon_vma_prepare, merge
from mmurace.nodes.world import World
from mmurace.protocol import pte as ptes
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.messages import memory as m
from mmurace.protocol.messages.base import Ack, Message
from mmurace.protocol.records import (
    Access,
    BadPage,
    BadPageCheck,
    FrameAllocated,
    FrameCopied,
    FrameFreed,
    OutOfMemory,
    PteChange,
    PteRead,
    Registered,
    TableRead,
)

ZERO_PAGE = 0


class Frame(msgspec.Struct):
    """``struct page``: references, words, and for a page-table page what it maps."""

    refs: int = 0
    words: dict[int, int] = {}
    mm: str = ""
    address: int = 0
    level: int = -1
    """-1: not a page-table page."""
    rmap: list[tuple[str, int]] = []
    anon: bool = False
    """``PageAnon``."""
    dirty: bool = False
    """``PageDirty``: what entries and shadow entries that are gone have said."""
    swapbacked: bool = True
    """``PageSwapBacked``; not for a page of ``MADV_FREE``."""
    ksm: bool = False
    """``PageKsm``: merged by content, and never written again."""
    mapping: str = ""
    """``page->mapping``: the file in whose page cache it is."""
    index: int = -1
    swap: int = 0
    """``page_swap_entry``: the slot whose page in the swap cache it is; 0: none."""
    anon_exclusive: bool = False
    """``PageAnonExclusive``."""
    pgmap: str = ""
    """``page->pgmap->owner``: the device whose memory it is."""
    pins: int = 0
    """``FOLL_PIN`` references (``folio_maybe_dma_pinned``), which are among ``refs``."""


class MmStruct(msgspec.Struct):
    """``struct mm_struct``."""

    subscribers: tuple[tuple[str, str], ...]
    vmas: list[m.Vma] = []
    brk: int = 0
    cpumask: list[str] = []
    tlb_flush_pending: int = 0


class Memory(DeviceMemory, MemoryLocks, IntervalTrees):
    """The ``memory`` node.  All handlers are plain functions: each message is one access."""

    def __init__(self, name: str, world: World, port: Port) -> None:
        super().__init__(name, world, port)
        self.frames: list[Frame] = [Frame() for _ in range(world.frames)]
        self.frames[ZERO_PAGE].refs = 1
        self.locks, self.vma_locks = {}, {}
        self.mms = {mm: MmStruct(world.subscribers(mm)) for mm in world.mms}
        for mm in world.mms:
            pgd = self.frames[world.pgd(mm)]
            pgd.refs, pgd.mm, pgd.level = 1, mm, world.levels - 1
        first_free = 1 + len(world.mms)
        self.free = list(range(world.frames - 1, first_free - 1, -1))
        """Free frames; the last freed is the next allocated, as on a per-CPU list."""

    def handlers(self) -> Mapping[type[Message], Handler]:
        """One function for each message of ``protocol.messages.memory``."""
        return {
            m.PteLoad: self.pte_load, m.PteWalk: self.pte_walk,
            m.TableWalk: self.table_walk, m.PteScan: self.pte_scan,
            m.PteGetAndClear: self.pte_get_and_clear, m.PteSet: self.pte_set,
            m.PteCmpxchg: self.pte_cmpxchg,
            m.FrameRead: self.frame_read, m.FrameWrite: self.frame_write,
            m.FrameAlloc: self.frame_alloc, m.PageGet: self.page_get, m.PagePut: self.page_put,
            m.PageFreeze: self.page_freeze, m.FrameCopy: self.frame_copy,
            m.RmapRemove: self.rmap_remove, m.RmapWalk: self.rmap_walk,
            m.RmapMove: self.rmap_move, m.PageAnon: self.page_anon,
            **self.lock_handlers(), **self.file_handlers(), **self.swap_handlers(),
            **self.anon_handlers(), **self.device_handlers(),
            m.VmaFind: self.vma_find, m.VmaReplace: self.vma_replace,
            m.BrkLoad: self.brk_load, m.BrkStore: self.brk_store,
            m.CpumaskLoad: self.cpumask_load, m.CpumaskSet: self.cpumask_set,
            m.TlbFlushPending: self.tlb_flush_pending, m.NotifierList: self.notifier_list,
            m.NotifierAdd: self.notifier_add, m.NotifierDelete: self.notifier_delete,
            **self.interval_handlers(),
        }  # fmt: skip

    # -- words ---------------------------------------------------------------------------

    def frame(self, number: int) -> Frame:
        """The frame of that number.

        An entry that somebody overwrote may name one that does not exist; the kernel says "bad
        page map" (mm/memory.c ``print_bad_pte``) and goes on.
        """
        if number < len(self.frames):
            return self.frames[number]
        self.bad_page(number, "map")
        return Frame()

    def bad_page(self, frame: int, check: BadPageCheck) -> None:
        """A check of the kernel's own has failed, and it goes on as after ``bad_page()``."""
        self.port.emit(BadPage(frame, check))

    def is_page_table(self, frame: int) -> bool:
        """Whether it is one, and was not freed since."""
        return frame < len(self.frames) and self.frames[frame].level >= 0

    def _store(self, table: int, index: int, new: int) -> int:
        """Store an entry, record the change, and return the old one."""
        frame = self.frame(table)
        old = frame.words.get(index, 0)
        if new == old:
            return old
        if new:
            frame.words[index] = new
        else:
            frame.words.pop(index, None)
        if frame.level >= 0:
            address = frame.address + (index << self.world.shift(frame.level))
            self.port.emit(PteChange(frame.mm, address, frame.level, table, index, old, new))
        if frame.level > 0:
            self._relink(frame.mm, address, old, new)
        return old

    def _relink(self, mm: str, address: int, old: int, new: int) -> None:
        """An upper entry changed: what the tables behind it map goes, and comes."""
        for entry, linked in ((old, False), (new, True)):
            if not ptes.hw_present(entry):
                continue
            table = ptes.frame_of(entry)
            self.port.touch(("word", table))
            for moved in relocate(self.world, self.frames, table, mm, address) if linked else ():
                self.port.touch(("rmap", moved))
            for record in leaf_changes(self.frames, table, linked):
                self.port.touch(("word", record.table))
                self.port.emit(record)

    def _note_read(self, table: int, index: int, pte: int) -> None:
        frame = self.frame(table)
        if frame.level == 0 and pte:
            address = frame.address + (index << self.world.shift(0))
            self.port.emit(PteRead(frame.mm, address, pte))

    def pte_load(self, message: m.PteLoad, _: Envelope) -> m.PteValue:
        """Load an entry."""
        pte = self.frame(message.table).words.get(message.index, 0)
        self._note_read(message.table, message.index, pte)
        return m.PteValue(pte)

    def pte_walk(self, message: m.PteWalk, _: Envelope) -> m.PteValue:
        """Load a leaf for a hardware walker, setting A (and D) if the access is permitted."""
        old = self.frame(message.table).words.get(message.index, 0)
        self._note_read(message.table, message.index, old)
        if not ptes.permits(old, message.write):
            return m.PteValue(old)
        new = old | ptes.ACCESSED | (ptes.DIRTY if message.write else 0)
        self._store(message.table, message.index, new)
        return m.PteValue(new)

    def table_walk(self, message: m.TableWalk, _: Envelope) -> m.PteValue:
        """Load an upper entry for a walker that may keep it."""
        pte = self.frame(message.table).words.get(message.index, 0)
        if ptes.hw_present(pte):
            self.port.emit(TableRead(ptes.frame_of(pte)))
        return m.PteValue(pte)

    def pte_scan(self, message: m.PteScan, _: Envelope) -> m.PteFound:
        """The first entry that is not none in [first, last)."""
        words = self.frame(message.table).words
        index = min((i for i in words if message.first <= i < message.last), default=-1)
        return m.PteFound(index, words.get(index, 0))

    def pte_get_and_clear(self, message: m.PteGetAndClear, _: Envelope) -> m.PteValue:
        """Take an entry out."""
        return m.PteValue(self._store(message.table, message.index, ptes.NONE))

    def pte_set(self, message: m.PteSet, _: Envelope) -> Ack:
        """Store an entry."""
        self._store(message.table, message.index, message.pte)
        return Ack()

    def pte_cmpxchg(self, message: m.PteCmpxchg, _: Envelope) -> m.PteValue:
        """Store an entry if it is still the one expected."""
        found = self.frame(message.table).words.get(message.index, 0)
        if found == message.old:
            self._store(message.table, message.index, message.new)
        return m.PteValue(found)

    def frame_read(self, message: m.FrameRead, _: Envelope) -> m.Word:
        """Load data."""
        value = self.frame(message.frame).words.get(message.word, 0)
        self.port.emit(Access(message.frame, message.word, False, value))
        return m.Word(value)

    def frame_write(self, message: m.FrameWrite, _: Envelope) -> Ack:
        """Store data."""
        self.frame(message.frame).words[message.word] = message.value
        self.port.emit(Access(message.frame, message.word, True, message.value))
        return Ack()

    # -- frames --------------------------------------------------------------------------

    def frame_alloc(self, message: m.FrameAlloc, _: Envelope) -> m.FrameNumber:
        """Take the frame that was freed last, zeroed."""
        if not self.free:
            self.port.emit(OutOfMemory(message.use))
            return m.FrameNumber(-1)
        number = self.free.pop()
        table = message.use == "table"
        self.frames[number] = Frame(
            1, {}, message.mm, message.address, message.level if table else -1, [],
            message.use == "anon",
        )  # fmt: skip
        self.port.touch(("word", number))
        self.port.touch(("page", number))
        self.port.touch(("rmap", number))
        if message.use == "anon":
            self.allocated(number)
        self.port.emit(FrameAllocated(number, message.use))
        return m.FrameNumber(number)

    def page_get(self, message: m.PageGet, _: Envelope) -> m.Flag:
        """Take a reference unless none is left."""
        frame = self.frame(message.frame)
        if frame.refs == 0:
            self.port.touch(("page", message.frame))
            return m.Flag(False)
        frame.refs += 1
        self._counted(message.frame)
        self._pinned(message.frame, message.pin)
        return m.Flag(True)

    def _pinned(self, number: int, more: int) -> None:
        if more:
            self.port.touch(("page", number))
            self.frames[number].pins += more

    def _counted(self, number: int) -> None:
        """Drops commute while one is left: whichever of them comes last sees how few there are.

        Not so a drop and a get, which hides that: whether the count ever gets low then depends on
        all that come in between, and not on any two of them.
        """
        if self.frames[number].refs < 2:
            self.port.touch(("page", number))

    def page_put(self, message: m.PagePut, _: Envelope) -> Ack:
        """Drop a reference; free the frame with the last one."""
        if message.swap_cache:
            self.free_swap_cache(message.frame)
        self._pinned(message.frame, -message.pin)
        self.put(message.frame)
        return Ack()

    def put(self, number: int) -> None:
        """Drop a reference; free the frame with the last one."""
        frame = self.frame(number)
        if frame.refs <= 0:
            self.port.touch(("page", number))
            self.bad_page(number, "refcount")
            return
        frame.refs -= 1
        self._counted(number)
        self.less_used(number)
        if frame.refs == 0:
            frame.level = -1
            self.free.append(number)
            self.port.touch(("allocator",))
            self.port.touch(("word", number))
            self.port.emit(FrameFreed(number))

    def page_freeze(self, message: m.PageFreeze, _: Envelope) -> m.Flag:
        """Whether exactly the expected references are held."""
        return m.Flag(self.frame(message.frame).refs == message.expected)

    def frame_copy(self, message: m.FrameCopy, _: Envelope) -> Ack:
        """Copy a page."""
        source, target = self.frame(message.source), self.frame(message.target)
        target.words = dict(source.words)
        self.port.touch(("word", message.source), "read")
        if message.migrate:
            target.dirty, target.swapbacked = source.dirty, source.swapbacked
            target.ksm = source.ksm
            self.port.touch(("page", message.source), "read")
            self.port.touch(("page", message.target))
        self.port.emit(FrameCopied(message.source, message.target))
        return Ack()

    def _mapped(self, number: int, mm: str, address: int) -> None:
        """A VMA in which anonymous memory is mapped has an ``anon_vma``."""
        super()._mapped(number, mm, address)
        frame = self.frame(number)
        if not frame.anon and not frame.mapping:
            self.bad_page(number, "cache")
        if self.frame(number).anon and anon_vma_prepare(self.mms[mm].vmas, address):
            self.port.touch(("vmas", mm))

    def rmap_remove(self, message: m.RmapRemove, _: Envelope) -> Ack:
        """Forget a mapping of a frame."""
        rmap, place = self.frame(message.frame).rmap, (message.mm, message.address)
        if place in rmap:
            rmap.remove(place)
        else:
            self.bad_page(message.frame, "mapcount")
        return Ack()

    def rmap_move(self, message: m.RmapMove, _: Envelope) -> Ack:
        """A mapping of a frame has another address."""
        rmap, place = self.frame(message.frame).rmap, (message.mm, message.old)
        if place in rmap:
            rmap[rmap.index(place)] = (message.mm, message.new)
        return Ack()

    def page_anon(self, message: m.PageAnon, _: Envelope) -> m.Flag:
        """Whether it was allocated as anonymous memory."""
        return m.Flag(self.frame(message.frame).anon)

    def rmap_walk(self, message: m.RmapWalk, _: Envelope) -> m.Mappings:
        """Mappings of a frame."""
        frame = self.frame(message.frame)
        return m.Mappings(tuple(frame.rmap), frame.ksm)

    # -- the mm --------------------------------------------------------------------------

    def vmas_of(self, mm: str) -> list[m.Vma]:
        """The VMAs of an mm, by address."""
        return self.mms[mm].vmas

    def vma_find(self, message: m.VmaFind, _: Envelope) -> m.VmaRange:
        """VMAs overlapping a range, and the gap around it."""
        vmas = self.mms[message.mm].vmas
        found = tuple(v for v in vmas if v.start < message.end and v.end > message.start)
        floor = max((v.end for v in vmas if v.end <= message.start), default=0)
        ceiling = min(
            (v.start for v in vmas if v.start >= message.end), default=self.world.address_end()
        )
        return m.VmaRange(found, floor, ceiling)

    def vma_replace(self, message: m.VmaReplace, _: Envelope) -> Ack:
        """Clip or remove what lies in the range, then insert; adjacent equals are merged."""
        mm = self.mms[message.mm]
        kept = []
        for vma in mm.vmas:
            if vma.start < min(vma.end, message.start):
                kept.append(vma.part(vma.start, min(vma.end, message.start)))
            if max(vma.start, message.end) < vma.end:
                kept.append(vma.part(max(vma.start, message.end), vma.end))
        mm.vmas = merge([*kept, *message.vmas])
        return Ack()

    def brk_load(self, message: m.BrkLoad, _: Envelope) -> m.Count:
        """The end of the heap."""
        return m.Count(self.mms[message.mm].brk)

    def brk_store(self, message: m.BrkStore, _: Envelope) -> Ack:
        """Move the end of the heap."""
        self.mms[message.mm].brk = message.value
        return Ack()

    def cpumask_load(self, message: m.CpumaskLoad, _: Envelope) -> m.Cpumask:
        """Processors that may hold translations of the mm."""
        return m.Cpumask(tuple(self.mms[message.mm].cpumask))

    def cpumask_set(self, message: m.CpumaskSet, _: Envelope) -> Ack:
        """Add a processor to the mask, or take it out."""
        mask = self.mms[message.mm].cpumask
        if message.value and message.cpu not in mask:
            mask.append(message.cpu)
            mask.sort()
        elif not message.value and message.cpu in mask:
            mask.remove(message.cpu)
        return Ack()

    def tlb_flush_pending(self, message: m.TlbFlushPending, _: Envelope) -> m.Count:
        """Move or read the count of gathers in flight."""
        mm = self.mms[message.mm]
        mm.tlb_flush_pending += message.delta
        return m.Count(mm.tlb_flush_pending)

    def notifier_list(self, message: m.NotifierList, _: Envelope) -> m.Subscribers:
        """The mm's subscribers."""
        return m.Subscribers(self.mms[message.mm].subscribers)

    def notifier_add(self, message: m.NotifierAdd, _: Envelope) -> Ack:
        """Put a subscriber at the head of the list."""
        mm = self.mms[message.mm]
        mm.subscribers = ((message.driver, message.node), *mm.subscribers)
        self.port.emit(Registered(message.node, message.mm))
        return Ack()

    def notifier_delete(self, message: m.NotifierDelete, _: Envelope) -> Ack:
        """Take a subscriber off the list."""
        mm = self.mms[message.mm]
        mm.subscribers = tuple(entry for entry in mm.subscribers if entry[1] != message.node)
        return Ack()
