"""What the ``memory`` node answers: words of frames, locks, frames, rmap, and the mm's own state.

Frames hold words.  A page-table page is a frame whose words are page-table entries; the index of
a data word is its offset in the page.  Every lock is granted first-in-first-out.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from mmurace.protocol.messages import memory_locks as locks
from mmurace.protocol.messages.base import Ack, Message, Request


class Vma(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """``struct vm_area_struct``: [start, end) in bytes, its rights, and the file it maps."""

    start: int
    end: int
    read: bool
    write: bool
    file: str = ""
    """Empty: anonymous memory."""
    offset: int = 0
    """Byte of the file at ``start`` (``vm_pgoff``)."""
    shared: bool = False
    """``VM_SHARED``: stores reach the file."""
    anon_vma: bool = False
    """Anonymous memory was mapped in it, since it was made or in what it was copied from."""
    nohugepage: bool = False
    """``VM_NOHUGEPAGE``; there are no huge pages, but it keeps VMAs apart."""

    def part(self, start: int, end: int) -> Vma:
        """The part [start, end) of it, with what it maps there."""
        offset = self.offset + start - self.start if self.file else 0
        return msgspec.structs.replace(self, start=start, end=end, offset=offset)

    def at(self, address: int) -> Vma:
        """The same memory, mapped at ``address`` instead."""
        end = address + self.end - self.start
        return msgspec.structs.replace(self, start=address, end=end)

    def continues(self, before: Vma) -> bool:
        """Whether this and the VMA ``before`` can be one (``can_vma_merge_after``)."""
        follows = before.end == self.start and (
            not self.file or before.offset + before.end - before.start == self.offset
        )
        return follows and before.kind == self.kind

    @property
    def kind(self) -> tuple[bool, bool, str, bool, bool]:
        """What VMAs that are merged have in common."""
        return self.read, self.write, self.file, self.shared, self.nohugepage


# ---- replies -------------------------------------------------------------------------------


class PteValue(Message, frozen=True):
    """A page-table entry (64-bit word)."""

    pte: int


class PteFound(Message, frozen=True):
    """The next entry that is not none: its index (-1: there is none) and value."""

    index: int
    pte: int


class Word(Message, frozen=True):
    """A word of data."""

    value: int


class FrameNumber(Message, frozen=True):
    """A frame, or -1 when the pool is empty."""

    frame: int


class Count(Message, frozen=True):
    """A counter after the access."""

    value: int


class Flag(Message, frozen=True):
    """Whether it was done, or is so."""

    value: bool


class Mappings(Message, frozen=True):
    """Where a frame is mapped: (mm, address) pairs (``rmap_walk``)."""

    places: tuple[tuple[str, int], ...]
    ksm: bool = False
    """``PageKsm``."""


class VmaRange(Message, frozen=True):
    """VMAs that overlap a range, and the free gap around it: end of the VMA below, start above."""

    vmas: tuple[Vma, ...]
    floor: int
    ceiling: int


class Subscribers(Message, frozen=True):
    """The notifier list of an mm: (driver, node) pairs in order of registration."""

    entries: tuple[tuple[str, str], ...]


class Cpumask(Message, frozen=True):
    """Names of the processors in ``mm_cpumask``."""

    cpus: tuple[str, ...]


# ---- words ---------------------------------------------------------------------------------


class PteLoad(Request[PteValue], frozen=True):
    """Load one entry of any level without a lock (``ptep_get``; a walker's upper levels)."""

    table: int
    index: int
    OBJECT: ClassVar[tuple[str, ...]] = ("word", "table", "index")
    ACCESS: ClassVar[str] = "read"


class PteWalk(Request[PteValue], frozen=True):
    """A hardware walker reads a leaf and sets accessed (and dirty) in the same access.

    The bits are set only if the entry is present and permits the access.
    """

    table: int
    index: int
    write: bool
    OBJECT: ClassVar[tuple[str, ...]] = ("word", "table", "index")


class TableWalk(Request[PteValue], frozen=True):
    """A hardware walker loads an upper entry, which it may keep (paging-structure cache)."""

    table: int
    index: int
    OBJECT: ClassVar[tuple[str, ...]] = ("word", "table", "index")
    ACCESS: ClassVar[str] = "read"


class PteScan(Request[PteFound], frozen=True):
    """Find the next entry that is not none in [first, last) of a table, under its PTL."""

    table: int
    first: int
    last: int
    OBJECT: ClassVar[tuple[str, ...]] = ("word", "table")
    ACCESS: ClassVar[str] = "read"


class PteGetAndClear(Request[PteValue], frozen=True):
    """``ptep_get_and_clear``: one read-modify-write; the reply is the old entry."""

    table: int
    index: int
    OBJECT: ClassVar[tuple[str, ...]] = ("word", "table", "index")


class PteSet(Request[Ack], frozen=True):
    """``set_pte_at``: store an entry (of any level)."""

    table: int
    index: int
    pte: int
    OBJECT: ClassVar[tuple[str, ...]] = ("word", "table", "index")


class PteCmpxchg(Request[PteValue], frozen=True):
    """Store ``new`` if the entry is ``old``; the reply is what was there."""

    table: int
    index: int
    old: int
    new: int
    OBJECT: ClassVar[tuple[str, ...]] = ("word", "table", "index")


class FrameRead(Request[Word], frozen=True):
    """Load a word of a frame: the data access of an agent."""

    frame: int
    word: int
    OBJECT: ClassVar[tuple[str, ...]] = ("word", "frame", "word")
    ACCESS: ClassVar[str] = "read"


class FrameWrite(Request[Ack], frozen=True):
    """Store a word of a frame: the data access of an agent."""

    frame: int
    word: int
    value: int
    OBJECT: ClassVar[tuple[str, ...]] = ("word", "frame", "word")


# ---- locks: in a file of their own, and asked of ``memory`` like all else here ------------------

PtlLock = locks.PtlLock
PtlUnlock = locks.PtlUnlock
MmapLock = locks.MmapLock
MmapUnlock = locks.MmapUnlock
MmapDowngrade = locks.MmapDowngrade
FolioLock = locks.FolioLock
FolioUnlock = locks.FolioUnlock
FolioAddWaiter = locks.FolioAddWaiter
Waiter = locks.Waiter
FolioWait = locks.FolioWait
AnonVmaLock = locks.AnonVmaLock
AnonVmaUnlock = locks.AnonVmaUnlock


# ---- frames --------------------------------------------------------------------------------


class FrameAlloc(Request[FrameNumber], frozen=True):
    """``alloc_page(__GFP_ZERO)``: a zeroed frame with one reference, last freed first."""

    use: str
    """``anon``, ``file``, ``table``, ``device``, or ``kernel``: a driver's own."""
    mm: str = ""
    address: int = 0
    """For a table: the first address that it maps."""
    level: int = 0
    """For a table: 0 holds leaf entries."""
    OBJECT: ClassVar[tuple[str, ...]] = ("allocator",)
    MAY_SLEEP: ClassVar[bool] = True


class PageGet(Request[Flag], frozen=True):
    """``try_get_page``: one more reference, unless there is none left."""

    frame: int
    pin: bool = False
    """``FOLL_PIN``: a reference that fork, reclaim and migration can tell from others."""
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "frame")
    ACCESS: ClassVar[str] = "add"


class PagePut(Request[Ack], frozen=True):
    """``put_page``: one reference less; the frame is free at none."""

    frame: int
    pin: bool = False
    """``unpin_user_page``."""
    swap_cache: bool = False
    """``free_page_and_swap_cache``: before that out of the swap cache if nobody maps the page, has
    locked it or has an entry of its slot (``free_swap_cache``)."""
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "frame")
    ACCESS: ClassVar[str] = "drop"


class PageFreeze(Request[Flag], frozen=True):
    """``page_ref_freeze``: succeeds only if exactly ``expected`` references are held."""

    frame: int
    expected: int
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "frame")
    ACCESS: ClassVar[str] = "read"


class FrameCopy(Request[Ack], frozen=True):
    """``copy_highpage``: the content of one frame into another."""

    source: int
    target: int
    migrate: bool = False
    """With ``folio_migrate_flags``: dirty, and swapbacked."""
    OBJECT: ClassVar[tuple[str, ...]] = ("word", "target")


class RmapAdd(Request[Ack], frozen=True):
    """``folio_add_anon_rmap_pte``: the frame is mapped at (mm, address)."""

    frame: int
    mm: str
    address: int
    exclusive: bool = False
    """``RMAP_EXCLUSIVE``, and ``folio_add_new_anon_rmap``: it is ``PageAnonExclusive`` from now."""
    OBJECT: ClassVar[tuple[str, ...]] = ("rmap", "frame")


class RmapTryDup(Request[Flag], frozen=True):
    """``folio_try_dup_anon_rmap_pte`` (v5.19), under both PTLs of a fork: mapped once more, and
    nobody's alone (not ``PageAnonExclusive``); or refused, as it is so and may be pinned
    (v5.9 to v5.18: as it may be pinned, ``copy_present_page``).
    """

    frame: int
    mm: str
    address: int
    OBJECT: ClassVar[tuple[str, ...]] = ("rmap", "frame")


class RmapTryShare(Request[Flag], frozen=True):
    """``folio_try_share_anon_rmap_pte`` (v5.19), when the entry is cleared: not
    ``PageAnonExclusive`` any more; or refused, as it is so and may be pinned.
    """

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "frame")


class PageAnonExclusive(Request[Flag], frozen=True):
    """``PageAnonExclusive`` (v5.19): no other process has any entry that leads to the page."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "frame")
    ACCESS: ClassVar[str] = "read"


class SetPageAnonExclusive(Request[Ack], frozen=True):
    """``SetPageAnonExclusive``, under the PTL."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "frame")


class RmapRemove(Request[Ack], frozen=True):
    """``page_remove_rmap``."""

    frame: int
    mm: str
    address: int
    OBJECT: ClassVar[tuple[str, ...]] = ("rmap", "frame")


class RmapMove(Request[Ack], frozen=True):
    """The mapping of a frame moved within the mm, under both PTLs (``move_ptes``)."""

    frame: int
    mm: str
    old: int
    new: int
    OBJECT: ClassVar[tuple[str, ...]] = ("rmap", "frame")


class PageAnon(Request[Flag], frozen=True):
    """``PageAnon``: whether the page belongs to processes and not to a file."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("rmap", "frame")
    ACCESS: ClassVar[str] = "read"


class PagesIdentical(Request[Flag], frozen=True):
    """``pages_identical``: whether two frames have the same content."""

    frame: int
    other: int
    merging: bool = False
    """``other`` takes the place of ``frame`` if they have (``try_to_merge_one_page``)."""
    OBJECT: ClassVar[tuple[str, ...]] = ("word", "frame")
    ACCESS: ClassVar[str] = "read"


class SetPageKsm(Request[Ack], frozen=True):
    """``set_page_stable_node``: from now on it is a KSM page, until it is free; folio locked."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("rmap", "frame")


class RmapWalk(Request[Mappings], frozen=True):
    """``rmap_walk``: where the frame is mapped now."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("rmap", "frame")
    ACCESS: ClassVar[str] = "read"


# ---- the mm --------------------------------------------------------------------------------


class VmaFind(Request[VmaRange], frozen=True):
    """VMAs overlapping [start, end) and the gap around it, under mmap_lock."""

    mm: str
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("vmas", "mm")
    ACCESS: ClassVar[str] = "read"


class VmaReplace(Request[Ack], frozen=True):
    """Replace whatever lies in [start, end) by ``vmas``, under mmap_lock held for write."""

    mm: str
    start: int
    end: int
    vmas: tuple[Vma, ...]
    OBJECT: ClassVar[tuple[str, ...]] = ("vmas", "mm")


class BrkLoad(Request[Count], frozen=True):
    """``mm->brk``, under mmap_lock."""

    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("brk", "mm")
    ACCESS: ClassVar[str] = "read"


class BrkStore(Request[Ack], frozen=True):
    """Set ``mm->brk``, under mmap_lock held for write."""

    mm: str
    value: int
    OBJECT: ClassVar[tuple[str, ...]] = ("brk", "mm")


class CpumaskLoad(Request[Cpumask], frozen=True):
    """``mm_cpumask``: which processors may hold translations of the mm."""

    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("cpumask", "mm")
    ACCESS: ClassVar[str] = "read"


class CpumaskSet(Request[Ack], frozen=True):
    """``cpumask_set_cpu`` or ``cpumask_clear_cpu`` in ``switch_mm``."""

    mm: str
    cpu: str
    value: bool
    OBJECT: ClassVar[tuple[str, ...]] = ("cpumask", "mm")


class TlbFlushPending(Request[Count], frozen=True):
    """``inc_tlb_flush_pending`` (+1), ``dec_tlb_flush_pending`` (-1), or a read (0)."""

    mm: str
    delta: int
    OBJECT: ClassVar[tuple[str, ...]] = ("tlb_flush_pending", "mm")


class NotifierList(Request[Subscribers], frozen=True):
    """Walk ``mm->notifier_subscriptions`` inside the srcu read section."""

    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("subscriptions", "mm")
    ACCESS: ClassVar[str] = "read"


class NotifierAdd(Request[Ack], frozen=True):
    """``hlist_add_head_rcu`` in ``__mmu_notifier_register``, under ``mm_take_all_locks``."""

    mm: str
    driver: str
    node: str
    OBJECT: ClassVar[tuple[str, ...]] = ("subscriptions", "mm")


class NotifierDelete(Request[Ack], frozen=True):
    """``hlist_del_init_rcu`` of a node's subscription, under ``subscriptions->lock``."""

    mm: str
    node: str
    OBJECT: ClassVar[tuple[str, ...]] = ("subscriptions", "mm")
