"""What the ``memory`` node answers about swap: slots, the swap cache, and the LRU list.

Swap is unlimited, a slot is never used twice, and it is written and read at once, as zram is.
"""

from __future__ import annotations

from typing import ClassVar

from mmurace.protocol.messages.base import Ack, Message, Request
from mmurace.protocol.messages.memory import Count, Flag, FrameNumber


class Folios(Message, frozen=True):
    """Frames, each with one reference more."""

    frames: tuple[int, ...]
    files: tuple[int, ...] = ()
    """Those among them that are pages of files."""


class IsolateLru(Request[Folios], frozen=True):
    """``isolate_lru_folios``: up to ``count`` pages, longest unused first."""

    count: int
    OBJECT: ClassVar[tuple[str, ...]] = ("lru",)


class FolioIsolateLru(Request[Flag], frozen=True):
    """``folio_isolate_lru``: take one page off the list, with a reference; not if it is off."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("lru",)


class FolioPutbackLru(Request[Ack], frozen=True):
    """``folio_putback_lru`` of a page that ``FolioIsolateLru`` took; the reference stays."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("lru",)


class ReclaimThrottle(Request[Flag], frozen=True):
    """``reclaim_throttle(VMSCAN_THROTTLE_ISOLATED)``: answered when an isolated page is freed
    or put back; at once, with False, if none is.
    """

    OBJECT: ClassVar[tuple[str, ...]] = ("isolated",)
    MAY_SLEEP: ClassVar[bool] = True


class PutbackLru(Request[Ack], frozen=True):
    """``folio_putback_lru``: the page stays in memory."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("lru",)


class FreeUnrefPage(Request[Ack], frozen=True):
    """``free_unref_folios``: the last reference of a page that reclaim has taken out."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "frame")


class FreePages(Request[Count], frozen=True):
    """``zone_watermark_ok``: how many frames are free."""

    OBJECT: ClassVar[tuple[str, ...]] = ("allocator",)
    ACCESS: ClassVar[str] = "read"


class FolioFlagsWord(Message, frozen=True):
    """``folio->flags``, as far as reclaim and ``MADV_FREE`` look at it."""

    dirty: bool
    swapcache: bool


class FolioFlags(Request[FolioFlagsWord], frozen=True):
    """``folio_test_dirty``, ``folio_test_swapcache``: one load of the flags."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "frame")
    ACCESS: ClassVar[str] = "read"


class FolioMarkDirty(Request[Ack], frozen=True):
    """``folio_mark_dirty``."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "frame")


class FolioClearDirty(Request[Ack], frozen=True):
    """``folio_clear_dirty``, under the folio lock."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "frame")


class FolioTestClearDirty(Request[Flag], frozen=True):
    """``folio_test_clear_dirty``, under the folio lock: whether it was."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "frame")


class FolioMarkLazyfree(Request[Ack], frozen=True):
    """``folio_mark_lazyfree``: an anonymous page on the LRU list, and not in the swap cache,
    needs no swap slot from now on (``folio_clear_swapbacked``).
    """

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("lru",)


class FolioSetSwapbacked(Request[Ack], frozen=True):
    """``folio_set_swapbacked``: the page is not to be discarded any more."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "frame")


class FolioFreeSwap(Request[Flag], frozen=True):
    """``folio_free_swap``, under the folio lock: out of the swap cache if no entry leads there.

    The page is dirty then: nothing else has its content.  Whether it is in no swap cache now.
    """

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("swap",)


class References(Message, frozen=True):
    """References to a page, and whether it is ``PageKsm``."""

    value: int
    ksm: bool = False


class FolioRefCount(Request[References], frozen=True):
    """``folio_ref_count``."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "frame")
    ACCESS: ClassVar[str] = "read"


class FolioTrylock(Request[Flag], frozen=True):
    """``folio_trylock``."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("folio_lock", "frame")


class AddToSwap(Request[Count], frozen=True):
    """``add_to_swap``: a slot for the page, which is in the swap cache from now on.

    The slot that it has if it is there already (``folio_test_swapcache``).  -1 for a page that is
    not ``swapbacked``: it is discarded and not written.
    """

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("swap",)


class SwapDuplicate(Request[Ack], frozen=True):
    """``swap_duplicate``: one entry more leads to the slot."""

    slot: int
    OBJECT: ClassVar[tuple[str, ...]] = ("swap", "slot")


class SwapFree(Request[Ack], frozen=True):
    """``swap_free``: one entry less; a page in the swap cache keeps the slot."""

    slot: int
    OBJECT: ClassVar[tuple[str, ...]] = ("swap", "slot")


class FreeSwapAndCache(Request[Ack], frozen=True):
    """``free_swap_and_cache``: one entry less; with the last one the page leaves the swap cache
    (``__try_to_reclaim_swap``), unless it is mapped or somebody has locked it.
    """

    slot: int
    OBJECT: ClassVar[tuple[str, ...]] = ("swap", "slot")


class FolioMigrateMapping(Request[Flag], frozen=True):
    """``folio_migrate_mapping``: whether nobody but the caller, and the page cache or the swap
    cache if it is in one, has a reference; then the new page is there instead.
    """

    old: int
    new: int
    extra: int = 0
    """References more that are expected (``migrate_folio_extra``, v6.1)."""
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "old")


class SwapCount(Request[Count], frozen=True):
    """``swp_swapcount``: how many entries lead to the slot."""

    slot: int
    OBJECT: ClassVar[tuple[str, ...]] = ("swap", "slot")
    ACCESS: ClassVar[str] = "read"


class SwapCacheGet(Request[FrameNumber], frozen=True):
    """``swap_cache_get_folio``: the page of the slot with a reference, or -1."""

    slot: int
    OBJECT: ClassVar[tuple[str, ...]] = ("swap", "slot")


class SwapCacheAdd(Request[FrameNumber], frozen=True):
    """``swapcache_prepare`` and ``add_to_swap_cache``: the page that is there then; another may
    have been faster.  If it is this one, it is locked from here on; -1: no entry leads to the slot.
    """

    slot: int
    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("swap", "slot")


class PageSwapEntry(Request[Count], frozen=True):
    """``page_swap_entry``: the slot whose page in the swap cache this is; 0: none."""

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "frame")
    ACCESS: ClassVar[str] = "read"


class SwapCacheDelete(Request[Ack], frozen=True):
    """``delete_from_swap_cache``: the cache's reference goes, too."""

    slot: int
    OBJECT: ClassVar[tuple[str, ...]] = ("swap", "slot")


class SwapCacheFreeze(Request[Flag], frozen=True):
    """``__remove_mapping``: out of the swap cache if nobody else holds the page."""

    slot: int
    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("swap", "slot")


class SwapWrite(Request[Ack], frozen=True):
    """``swap_writepage``: the content of the page into the slot."""

    slot: int
    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("word", "frame")


class SwapRead(Request[Ack], frozen=True):
    """``swap_read_folio``: the content of the slot into a page."""

    slot: int
    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("word", "frame")


class TlbBatchedLoad(Request[Count], frozen=True):
    """``mm->tlb_flush_batched``: the marker of entries cleared and not flushed."""

    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("tlb_flush_batched", "mm")
    ACCESS: ClassVar[str] = "read"


class TlbBatchedStore(Request[Ack], frozen=True):
    """Store the marker."""

    mm: str
    value: int
    OBJECT: ClassVar[tuple[str, ...]] = ("tlb_flush_batched", "mm")


class TlbBatchedCmpxchg(Request[Count], frozen=True):
    """Store the marker if it is still ``old``; the reply is what was there."""

    mm: str
    old: int
    new: int
    OBJECT: ClassVar[tuple[str, ...]] = ("tlb_flush_batched", "mm")
