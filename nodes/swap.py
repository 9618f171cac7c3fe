"""Swap slots, the swap cache, the LRU list and the batch markers: a part of the ``memory`` node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from mmurace.nodes.driver import Handler, Port
from mmurace.nodes.inode import Files
from mmurace.nodes.locks import LockWord
from mmurace.nodes.world import World
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.errors import EmulatorError
from mmurace.protocol.messages import memory as m
from mmurace.protocol.messages import swap as s
from mmurace.protocol.messages.base import Ack, Message
from mmurace.protocol.records import FilePageDirtied, PageRead, PageWritten


class Slot(msgspec.Struct):
    """A swap slot: entries that lead to it, its content, and its page in the swap cache."""

    count: int = 0
    words: dict[int, int] = {}
    cached: int = -1


def _evictable(folio: Any) -> bool:
    """Whether reclaim has something to do with a page of the list."""
    return bool(folio.rmap or folio.swap) if folio.anon else bool(folio.mapping)


class Swap(Files):
    """Answers the messages of ``protocol.messages.swap``."""

    free: list[int]

    def __init__(self, name: str, world: World, port: Port) -> None:
        super().__init__(name, world, port)
        self.slots: dict[int, Slot] = {}
        self.next_slot = 1
        self.lru: list[int] = []
        """Anonymous pages and those of page caches, longest unused first; may name free frames."""
        self.isolated = 0
        """Pages that reclaim has taken off the list (``NR_ISOLATED_ANON``, ``_FILE``)."""
        self.throttled: tuple[str, ...] = ()
        """Requests that wait until one of them is freed or put back."""
        self.batched: dict[str, int] = {}
        self.folio_waiters: dict[int, list[str]] = {}
        """Frame -> waiters that the next unlock wakes."""
        self.folio_sleepers: dict[str, str] = {}
        """Waiter -> the request of its thread, which sleeps."""
        self.folio_woken: list[str] = []
        """Waiters whose thread does not sleep yet, and will not."""

    def swap_handlers(self) -> Mapping[type[Message], Handler]:
        """By message."""
        return {
            s.IsolateLru: self.isolate_lru, s.PutbackLru: self.putback_lru,
            s.FolioIsolateLru: self.folio_isolate_lru,
            s.FolioPutbackLru: self.folio_putback_lru,
            m.FolioAddWaiter: self.folio_add_waiter, m.FolioWait: self.folio_wait,
            s.FolioTrylock: self.folio_trylock, s.AddToSwap: self.add_to_swap,
            s.FolioFlags: self.folio_flags, s.FolioRefCount: self.folio_ref_count,
            s.FolioMarkDirty: self.folio_mark_dirty, s.FolioClearDirty: self.folio_clear_dirty,
            s.FolioTestClearDirty: self.folio_test_clear_dirty,
            s.FolioMarkLazyfree: self.folio_mark_lazyfree,
            s.FolioSetSwapbacked: self.folio_set_swapbacked,
            s.FolioFreeSwap: self.folio_free_swap,
            s.FreeUnrefPage: self.free_unref_page, s.FreePages: self.free_pages,
            s.ReclaimThrottle: self.reclaim_throttle,
            s.SwapDuplicate: self.swap_duplicate, s.SwapFree: self.swap_free,
            s.FreeSwapAndCache: self.free_swap_and_cache,
            s.FolioMigrateMapping: self.folio_migrate_mapping,
            s.PageSwapEntry: self.page_swap_entry, s.SwapCacheAdd: self.swap_cache_add,
            s.SwapCount: self.swap_count, s.SwapCacheGet: self.swap_cache_get,
            s.SwapCacheDelete: self.swap_cache_delete, s.SwapCacheFreeze: self.swap_cache_freeze,
            s.SwapWrite: self.swap_write, s.SwapRead: self.swap_read,
            s.TlbBatchedLoad: self.batched_load, s.TlbBatchedStore: self.batched_store,
            s.TlbBatchedCmpxchg: self.batched_cmpxchg,
        }  # fmt: skip

    # -- the LRU list ----------------------------------------------------------------------

    def allocated(self, frame: int) -> None:
        """The youngest page of the list."""
        if frame in self.lru:
            self.lru.remove(frame)
        self.lru.append(frame)
        self.port.touch(("lru",))

    def isolate_lru(self, message: s.IsolateLru, _: Envelope) -> s.Folios:
        """Take mapped anonymous pages and pages of files off the list, with a reference each."""
        frames = self.frames
        taken = [f for f in self.lru if frames[f].refs > 0 and _evictable(frames[f])]
        taken = taken[: message.count]
        for frame in taken:
            self.lru.remove(frame)
            frames[frame].refs += 1
            self.port.touch(("page", frame))
        self.port.touch(("rmap",), "read")
        self.port.touch(("swap",), "read")
        if taken:
            self._isolated(len(taken))
        return s.Folios(tuple(taken), tuple(f for f in taken if not frames[f].anon))

    def folio_isolate_lru(self, message: s.FolioIsolateLru, _: Envelope) -> m.Flag:
        """Take it off the list.

        It is not among those that whoever is throttled waits for: the migration that has it may be
        throttled itself, and what ends that in the kernel is a time-out.
        """
        if message.frame not in self.lru:
            return m.Flag(False)
        self.lru.remove(message.frame)
        self.frames[message.frame].refs += 1
        self.port.touch(("page", message.frame))
        return m.Flag(True)

    def folio_putback_lru(self, message: s.FolioPutbackLru, _: Envelope) -> Ack:
        """As the youngest."""
        self.allocated(message.frame)
        return Ack()

    def _isolated(self, delta: int) -> None:
        """Move the count; if it falls, whoever waits for that looks again."""
        self.port.touch(("isolated",))
        self.isolated += delta
        if delta < 0:
            waiters, self.throttled = self.throttled, ()
            for request in waiters:
                self.port.reply(request, m.Flag(True))

    def reclaim_throttle(self, _: s.ReclaimThrottle, envelope: Envelope) -> m.Flag | None:
        """Wait, if there is something to wait for."""
        if not self.isolated:
            return m.Flag(False)
        self.throttled = (*self.throttled, envelope.id)
        return None

    def putback_lru(self, message: s.PutbackLru, _: Envelope) -> Ack:
        """As the youngest."""
        self.allocated(message.frame)
        self._isolated(-1)
        return Ack()

    def free_unref_page(self, message: s.FreeUnrefPage, _: Envelope) -> Ack:
        """Whoever isolated the page lets it go."""
        self.put(message.frame)
        self._isolated(-1)
        return Ack()

    def free_pages(self, _message: s.FreePages, _: Envelope) -> m.Count:
        """The length of the free list."""
        return m.Count(len(self.free))

    def folio_trylock(self, message: s.FolioTrylock, envelope: Envelope) -> m.Flag:
        """Granted if nobody holds it."""
        key = ("folio_lock", message.frame)
        if key in self.locks:
            return m.Flag(False)
        word = self.locks[key] = LockWord()
        return m.Flag(word.acquire(envelope.id, True))

    def wake_up_folio(self, frame: int) -> None:
        """``folio_wake_bit``: whoever waits for the unlock goes on."""
        for waiter in self.folio_waiters.pop(frame, []):
            if waiter in self.folio_sleepers:
                self.port.reply(self.folio_sleepers.pop(waiter), Ack())
            else:
                self.folio_woken.append(waiter)

    def folio_add_waiter(self, message: m.FolioAddWaiter, envelope: Envelope) -> m.Waiter:
        """Whoever unlocks the folio next wakes it."""
        if ("folio_lock", message.frame) not in self.locks:
            return m.Waiter("")
        self.folio_waiters.setdefault(message.frame, []).append(envelope.id)
        return m.Waiter(envelope.id)

    def folio_wait(self, message: m.FolioWait, envelope: Envelope) -> Ack | None:
        """Answer once the waiter was woken, whoever has the lock by then."""
        if message.waiter in self.folio_woken:
            self.folio_woken.remove(message.waiter)
            return Ack()
        self.folio_sleepers[message.waiter] = envelope.id
        return None

    # -- flags -----------------------------------------------------------------------------

    def page_swap_entry(self, message: s.PageSwapEntry, _: Envelope) -> m.Count:
        """The slot, or 0."""
        return m.Count(self.frames[message.frame].swap)

    def folio_flags(self, message: s.FolioFlags, _: Envelope) -> s.FolioFlagsWord:
        """Dirty, and in the swap cache."""
        folio = self.frames[message.frame]
        return s.FolioFlagsWord(folio.dirty, folio.swap > 0)

    def folio_ref_count(self, message: s.FolioRefCount, _: Envelope) -> s.References:
        """References."""
        folio = self.frames[message.frame]
        return s.References(folio.refs, folio.ksm)

    def folio_mark_dirty(self, message: s.FolioMarkDirty, _: Envelope) -> Ack:
        """Somebody has written, or may."""
        folio = self.frames[message.frame]
        folio.dirty = True
        self.port.emit(FilePageDirtied(message.frame))
        return Ack()

    def folio_clear_dirty(self, message: s.FolioClearDirty, _: Envelope) -> Ack:
        """What was written so far need not be kept."""
        self.frames[message.frame].dirty = False
        return Ack()

    def folio_test_clear_dirty(self, message: s.FolioTestClearDirty, _: Envelope) -> m.Flag:
        """What was written so far is about to be kept elsewhere."""
        folio = self.frames[message.frame]
        dirty, folio.dirty = folio.dirty, False
        return m.Flag(dirty)

    def folio_mark_lazyfree(self, message: s.FolioMarkLazyfree, _: Envelope) -> Ack:
        """To the end of the list that is reclaimed first; not while reclaim has isolated it."""
        frame = message.frame
        folio = self.frames[frame]
        self.port.touch(("page", frame))
        if frame in self.lru and folio.anon and not folio.swap:
            folio.swapbacked = False
            self.lru.remove(frame)
            self.lru.insert(0, frame)
        return Ack()

    def folio_set_swapbacked(self, message: s.FolioSetSwapbacked, _: Envelope) -> Ack:
        """It has to be written again before it can be freed."""
        self.frames[message.frame].swapbacked = True
        return Ack()

    def folio_free_swap(self, message: s.FolioFreeSwap, _: Envelope) -> m.Flag:
        """Out of the swap cache, unless entries lead to the slot."""
        folio = self.frames[message.frame]
        self.port.touch(("page", message.frame))
        if folio.swap and self.slots[folio.swap].count:
            return m.Flag(False)
        if folio.swap:
            folio.dirty = True
            self._uncache(folio.swap)
        return m.Flag(True)

    # -- slots -----------------------------------------------------------------------------

    def _slot(self, number: int) -> Slot:
        if number not in self.slots:
            raise EmulatorError(f"swap slot {number} is not in use")
        return self.slots[number]

    def add_to_swap(self, message: s.AddToSwap, _: Envelope) -> m.Count:
        """A new slot, if it has none; the cache takes a reference."""
        folio = self.frames[message.frame]
        self.port.touch(("page", message.frame))
        if not folio.swapbacked:
            return m.Count(-1)
        if not folio.swap:
            number, self.next_slot = self.next_slot, self.next_slot + 1
            self.slots[number] = Slot()
            self._cache(number, message.frame)
        return m.Count(folio.swap)

    def _cache(self, number: int, frame: int) -> None:
        """Into the swap cache."""
        self.slots[number].cached = frame
        self.frames[frame].swap = number
        self.frames[frame].refs += 1
        self.port.touch(("page", frame))

    def swap_duplicate(self, message: s.SwapDuplicate, _: Envelope) -> Ack:
        """One entry more."""
        self._slot(message.slot).count += 1
        return Ack()

    def swap_free(self, message: s.SwapFree, _: Envelope) -> Ack:
        """One entry less."""
        slot = self._slot(message.slot)
        slot.count -= 1
        if slot.count == 0 and slot.cached < 0:
            del self.slots[message.slot]
        return Ack()

    def free_swap_and_cache(self, message: s.FreeSwapAndCache, _: Envelope) -> Ack:
        """One entry less; maybe that was all that kept a page in the cache."""
        slot = self._slot(message.slot)
        slot.count -= 1
        if slot.count == 0 and (slot.cached < 0 or self._idle(slot.cached)):
            self._uncache(message.slot)
        return Ack()

    def _idle(self, frame: int) -> bool:
        """Neither mapped nor locked."""
        self.port.touch(("folio_lock", frame), "read")
        self.port.touch(("rmap", frame), "read")
        return not self.frames[frame].rmap and ("folio_lock", frame) not in self.locks

    def free_swap_cache(self, frame: int) -> None:
        """Out of the cache, if nobody has any use for it there."""
        number = self.frame(frame).swap
        if number:
            self.port.touch(("swap", number))
            if not self.slots[number].count and self._idle(frame):
                self._uncache(number)

    def folio_migrate_mapping(self, message: s.FolioMigrateMapping, _: Envelope) -> m.Flag:
        """If nobody else has it; its cache, if it is in one, has the new page then."""
        old, new = self.frames[message.old], self.frames[message.new]
        cached = bool(old.swap or old.mapping)
        if old.refs != 1 + cached + message.extra:
            return m.Flag(False)
        if old.swap:
            self.port.touch(("swap", old.swap))
            self._cache(old.swap, message.new)
            old.swap = 0
        elif old.mapping:
            self.page_cache_replace(message.old, message.new)
            new.refs += 1
        if cached:
            self.put(message.old)
        return m.Flag(True)

    def swap_count(self, message: s.SwapCount, _: Envelope) -> m.Count:
        """Entries that lead to it; 0 if it is gone."""
        return m.Count(self.slots[message.slot].count if message.slot in self.slots else 0)

    def _uncache(self, number: int) -> None:
        """Out of the swap cache; the slot itself goes if no entry leads to it."""
        slot = self._slot(number)
        frame, slot.cached = slot.cached, -1
        if slot.count == 0:
            del self.slots[number]
        if frame >= 0:
            self.frames[frame].swap = 0
            self.port.touch(("page", frame))
            self.put(frame)

    def swap_cache_get(self, message: s.SwapCacheGet, _: Envelope) -> m.FrameNumber:
        """The page, with a reference."""
        slot = self.slots.get(message.slot)
        if slot is None or slot.cached < 0:
            return m.FrameNumber(-1)
        self.frames[slot.cached].refs += 1
        self.port.touch(("page", slot.cached))
        return m.FrameNumber(slot.cached)

    def swap_cache_add(self, message: s.SwapCacheAdd, envelope: Envelope) -> m.FrameNumber:
        """Put a new page into the cache, locked, unless there is one."""
        slot = self.slots.get(message.slot)
        if slot is None or slot.cached >= 0:
            return m.FrameNumber(-1 if slot is None else slot.cached)
        self._cache(message.slot, message.frame)
        self.port.touch(("folio_lock", message.frame))
        word = self.locks.setdefault(("folio_lock", message.frame), LockWord())
        if not word.held:  # of a new page it never is, unless memory is corrupt
            word.acquire(envelope.id)
        return m.FrameNumber(message.frame)

    def swap_cache_delete(self, message: s.SwapCacheDelete, _: Envelope) -> Ack:
        """Out of the cache, if it is still there."""
        if message.slot in self.slots:
            self._uncache(message.slot)
        return Ack()

    def swap_cache_freeze(self, message: s.SwapCacheFreeze, _: Envelope) -> m.Flag:
        """Out of the cache if the only references are the cache's and the caller's."""
        slot = self.slots.get(message.slot)
        if slot is None or slot.cached != message.frame:
            return m.Flag(True)
        self.port.touch(("page", message.frame), "read")
        if self.frames[message.frame].refs != 2:
            return m.Flag(False)
        self._uncache(message.slot)
        return m.Flag(True)

    def swap_write(self, message: s.SwapWrite, _: Envelope) -> Ack:
        """Into the slot, unless nothing leads to it any more."""
        self.port.touch(("swap", message.slot))
        slot = self.slots.get(message.slot)
        if slot is not None:
            slot.words = dict(self.frames[message.frame].words)
            self.port.emit(PageWritten(message.frame, message.slot))
        return Ack()

    def swap_read(self, message: s.SwapRead, _: Envelope) -> Ack:
        """Out of the slot; whoever asks looks at the entry again afterwards."""
        self.port.touch(("swap", message.slot), "read")
        slot = self.slots.get(message.slot)
        self.frames[message.frame].words = dict(slot.words) if slot is not None else {}
        if slot is not None:
            self.port.emit(PageRead(message.frame, message.slot))
        return Ack()

    # -- the marker ------------------------------------------------------------------------

    def batched_load(self, message: s.TlbBatchedLoad, _: Envelope) -> m.Count:
        """Read it."""
        return m.Count(self.batched.get(message.mm, 0))

    def batched_store(self, message: s.TlbBatchedStore, _: Envelope) -> Ack:
        """Write it."""
        self.batched[message.mm] = message.value
        return Ack()

    def batched_cmpxchg(self, message: s.TlbBatchedCmpxchg, _: Envelope) -> m.Count:
        """Write it if it is the one expected."""
        found = self.batched.get(message.mm, 0)
        if found == message.old:
            self.batched[message.mm] = message.new
        return m.Count(found)
