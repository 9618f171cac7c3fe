"""Trace records: what a node says happened while it handled a delivery.

A record never changes behaviour.  Its place in the trace is (delivery number, index within the
handling); its node is the receiver of that delivery.  Records carry no generations or versions:
the oracle reconstructs those from the changes, fills, drops and accesses (catalogue 5.1).
"""

from __future__ import annotations

from typing import Literal

import msgspec

BadPageCheck = Literal["map", "refcount", "mapcount", "cache", "ptl", "pgmap"]
"""An entry leads nowhere; a reference or a mapping too few; mapped, and in no page cache; the lock
of a table that was freed; ``page->pgmap->ops`` of a page that nobody has."""


class Record(
    msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True, gc=False
):
    """Base of all trace records."""


# ---- by memory -----------------------------------------------------------------------------


class PteChange(Record, frozen=True):
    """An entry changed.  ``level`` 0 is a leaf; ``address`` is the first one that it maps."""

    mm: str
    address: int
    level: int
    table: int
    index: int
    old: int
    new: int


class PteRead(Record, frozen=True):
    """A leaf entry was read by a walker or GUP; the delivery's message id names this read."""

    mm: str
    address: int
    pte: int


class TableRead(Record, frozen=True):
    """An upper entry was read by a walker that may keep it; it leads to ``table``."""

    table: int


class FrameAllocated(Record, frozen=True):
    """A frame left the pool, zeroed, with one reference."""

    frame: int
    use: str


class FrameFreed(Record, frozen=True):
    """The last reference went: the frame is back in the pool."""

    frame: int


class FrameCopied(Record, frozen=True):
    """The content of ``source`` was copied into ``target``."""

    source: int
    target: int


class PageWritten(Record, frozen=True):
    """The content of ``frame`` was written to a swap slot."""

    frame: int
    slot: int


class PageRead(Record, frozen=True):
    """The content of a swap slot was read into ``frame``."""

    frame: int
    slot: int


class FilePageRead(Record, frozen=True):
    """What the disk has of a page of a file was read into ``frame``, which is in the page cache."""

    frame: int
    file: str
    index: int


class FilePageDirtied(Record, frozen=True):
    """A page says itself that it must be written, whatever becomes of its entries."""

    frame: int


class FilePageWritten(Record, frozen=True):
    """The content of ``frame`` was written to the disk."""

    frame: int
    file: str
    index: int


class FilePageMigrated(Record, frozen=True):
    """A page of a file is in the frame ``new`` from here on, which will get what ``old`` has."""

    old: int
    new: int


class FilePageDropped(Record, frozen=True):
    """Reclaim took ``frame`` out of the page cache: the disk alone has the page now."""

    frame: int
    file: str
    index: int


class FileSized(Record, frozen=True):
    """A file has ``size`` bytes from here on; nobody needs what was beyond."""

    file: str
    size: int


class PageLazyfree(Record, frozen=True):
    """``MADV_FREE`` gave up what is at (mm, address), under the lock of its entry."""

    mm: str
    address: int


class PageDiscarded(Record, frozen=True):
    """Reclaim decided, under the lock of the entry at (mm, address), which is none by now, that a
    clean page of ``MADV_FREE`` needs no successor; by the processor that reclaims.
    """

    frame: int
    mm: str
    address: int


class Access(Record, frozen=True):
    """A word of a frame was read or written on behalf of an agent."""

    frame: int
    word: int
    write: bool
    value: int


class OutOfMemory(Record, frozen=True):
    """The frame pool was empty."""

    use: str


class FlushDeferred(Record, frozen=True):
    """The processor cleared the entry of a page and left its flush for later, with others."""

    mm: str
    address: int
    op: str = ""


class OomKill(Record, frozen=True):
    """Nothing was left to reclaim: the process of ``mm`` dies."""

    mm: str


# ---- by whoever caches translations --------------------------------------------------------


class Fill(Record, frozen=True):
    """A translation became usable: ``fill`` is its name from here on.

    ``cache`` is ``tlb``, or one that a secondary has declared (``Cache``).  ``source`` is the id of
    the leaf load that it was made from, or the name of a fill, for a cache with ``Cache.source``.
    ``address`` is one of the mm, or of the holder's own (``Cache.by_guest_address``).
    """

    cache: str
    tag: str
    address: int
    pte: int
    fill: str
    source: str


class Evict(Record, frozen=True):
    """The holder dropped one translation of its own accord (or replaced it)."""

    cache: str
    fill: str


class InvalidateBegin(Record, frozen=True):
    """An invalidation arrived: entries of (tag, range) can no longer be hit from here on."""

    cache: str
    tag: str
    start: int
    end: int
    fills: tuple[str, ...]
    """The entries that it dropped."""


class InvalidateDone(Record, frozen=True):
    """The same invalidation is complete: accesses through its entries have been answered."""

    cache: str
    tag: str
    start: int
    end: int
    fills: tuple[str, ...]


class Use(Record, frozen=True):
    """An access goes out through a cached translation; ``access`` is its message id."""

    fill: str
    access: str


class PermissionFault(Record, frozen=True):
    """The holder faulted on a cached translation that is too weak, and keeps it."""

    cache: str
    fill: str
    write: bool


class TableCached(Record, frozen=True):
    """A walker keeps an upper entry, by the name ``fill``: the table at ``level`` that maps the
    span from ``address``.  ``source`` is the id of the load that found it.
    """

    tag: str
    address: int
    level: int
    table: int
    fill: str
    source: str


class TableUse(Record, frozen=True):
    """A load goes out through a kept upper entry; ``access`` is its message id."""

    fill: str
    access: str


class WalkDiscarded(Record, frozen=True):
    """A walk overlapped an invalidation, so its result was thrown away."""

    cache: str
    tag: str
    address: int


class TagAlloc(Record, frozen=True):
    """A tag of translations (a PID) belongs to an mm from here on; by memory."""

    tag: str
    mm: str


class TagFree(Record, frozen=True):
    """The tag is nobody's, and may be given out again."""

    tag: str
    mm: str


# ---- by secondaries that hold a value in use, or keep brackets of their own ------------------


class RequestPosted(Record, frozen=True):
    """The holder was asked for something; ``done`` once it was seen out of guest mode since."""

    request: str
    done: bool


class GuestEnter(Record, frozen=True):
    """Guest mode is entered with no request pending; ``latched`` names the fill of a latched cache
    (``Cache.latched``) that is in use from here on, or is empty.
    """

    latched: str


class GuestExit(Record, frozen=True):
    """Guest mode is left."""


class AccessTrapped(Record, frozen=True):
    """An access that must trap (because of a latched value) did, or went to ``frame`` as memory."""

    trapped: bool
    frame: int


class Invalidation(Record, frozen=True):
    """A subscriber's own bracket: ``begin`` after the count rose, else after it fell (S10)."""

    begin: bool
    seq: int
    in_progress: int
    start: int
    end: int


class SeqBumped(Record, frozen=True):
    """``mmu_invalidate_seq`` was raised to ``seq``."""

    seq: int


# ---- by initiators -------------------------------------------------------------------------


class OpBegin(Record, frozen=True):
    """An operation began; ``kind`` is the class name of its message.

    Here and below ``op`` is the operation that the record belongs to.  The delivery alone does
    not say: a thread that waited for its processor goes on in a delivery of whoever left it.
    """

    kind: str
    tag: str
    start: int
    end: int
    op: str = ""


class OpEnd(Record, frozen=True):
    """An operation ended with its result."""

    kind: str
    result: int
    op: str = ""


NONBLOCK = "invalidate_range_start_nonblock"
"""The call of the core whose callbacks must not sleep (``NotifierCall.within``)."""


class NotifierCall(Record, frozen=True):
    """A notifier callback begins or ends for one subscriber (``phase`` ``begin`` or ``end``).

    ``within`` is the call of the core that makes this one beside its own, if any:
    ``invalidate_range_end`` calls ``invalidate_range`` up to v6.5.
    """

    callback: str
    subscriber: str
    mm: str
    start: int
    end: int
    event: str
    phase: str
    op: str = ""
    within: str = ""


class Registered(Record, frozen=True):
    """A subscriber is on the notifier list of an mm; by memory."""

    subscriber: str
    mm: str


class Unregistered(Record, frozen=True):
    """``mmu_notifier_unregister`` returns: no callback of this subscriber runs, nor ever will."""

    subscriber: str
    mm: str


class IntervalClosed(Record, frozen=True):
    """An invalidation of [start, end) that met a subscriber's interval is over; by memory.

    Not for the subscriber whose own doing it was (``range->owner``), which may pass it over.
    """

    subscriber: str
    mm: str
    start: int
    end: int


class IntervalTouched(Record, frozen=True):
    """A subscription is put into the tree, or taken out, by the end of an invalidation; or somebody
    takes out one that is not there.  By memory, or by whoever does that."""

    subscriber: str
    mm: str


class LoopCut(Record, frozen=True):
    """A callback's loop over [start, end) was cut off with ``left`` more turns to come."""

    subscriber: str
    mm: str
    start: int
    end: int
    left: int
    op: str = ""


class FaultRetry(Record, frozen=True):
    """An agent must repeat an access: ``why`` is the kernel's reason."""

    tag: str
    address: int
    write: bool
    why: str
    op: str = ""


class BadPage(Record, frozen=True):
    """What the kernel checks itself, or a debug build of it, has failed at ``memory``."""

    frame: int
    check: BadPageCheck


class Coverage(Record, frozen=True):
    """A path worth knowing about was taken (``nested_gather``, ``migrate_busy``, ...)."""

    point: str
