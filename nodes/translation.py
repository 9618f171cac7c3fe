"""Translation caches and the walker that fills them: the TLB, and those of secondaries.

The rules of hardware that hold here (design.md section 4, *Atomicity of hardware*): an
invalidation is complete only after every access through the old entries, and every walk that
overlapped it, has been answered; a walk that overlapped an invalidation installs nothing;
absent entries are never cached; otherwise an entry stays until told, or until evicted by choice.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mmurace.nodes.driver import Port
from mmurace.nodes.pwc import PagingStructureCache
from mmurace.nodes.secondary import caches
from mmurace.nodes.world import MEMORY, World
from mmurace.protocol import pte as ptes
from mmurace.protocol.limits import FAULT_ATTEMPTS_MAX, FAULT_RETRIES_MAX, PAGE_SHIFT, PAGE_SIZE
from mmurace.protocol.messages.base import Message, Request
from mmurace.protocol.messages.memory import (
    FrameRead,
    FrameWrite,
    PteLoad,
    PteWalk,
    TableWalk,
    Word,
)
from mmurace.protocol.ranges import covers, page_of
from mmurace.protocol.records import (
    Evict,
    Fill,
    InvalidateBegin,
    InvalidateDone,
    Use,
    WalkDiscarded,
)

Range = tuple[int, int]
"""[start, end) in bytes."""

PAGES_TOUCHED_MAX = 16
"""An invalidation of more pages than this is said to touch the whole tag."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A cached translation of one page; ``fill`` is its name."""

    tag: str
    address: int
    pte: int
    fill: str


class Walk:
    """A walk in progress, named by its first load; ``stale`` once an invalidation overlapped it."""

    __slots__ = ("address", "load", "stale", "tag")

    def __init__(self, tag: str, address: int, load: str) -> None:
        self.tag, self.address, self.load, self.stale = tag, address, load, False


class Attempts:
    """The attempts of one access.

    Whoever is refused tries again for as long as others may have had a hand in it: an entry was
    taken away again, or an invalidation came in between.  Only a cached entry that stays and
    denies is the same refusal again.
    """

    __slots__ = ("by", "in_a_row", "refusals")

    def __init__(self) -> None:
        self.refusals = self.in_a_row = 0
        self.by = ""

    def refused(self, by: str = "") -> bool:
        """One more refusal, ``by`` that fill (empty: none); whether to try again."""
        self.in_a_row = self.in_a_row + 1 if by == self.by else 1
        self.refusals, self.by = self.refusals + 1, by
        in_vain = bool(by) and self.in_a_row >= FAULT_RETRIES_MAX
        return not in_vain and self.refusals < FAULT_ATTEMPTS_MAX


class TranslationCache:
    """A tagged cache of translations with its walks and accesses in flight."""

    def __init__(self, cache: str, world: World, port: Port) -> None:
        self.cache, self.world, self.port = cache, world, port
        self.evicts = world.evict_one_in > 0 or world.tlb_entries < _pages(cache, world)
        """Whether it may ever drop an entry of its own accord."""
        self.entries: dict[tuple[str, int], Entry] = {}
        self.walks: list[Walk] = []
        self.in_flight: list[Entry] = []
        """Entries with an access that has not been answered, once for each access."""
        self.stores: list[Entry] = []
        """Those of them whose access is a store, if invalidations may leave such behind."""
        self.leaves_stores = not world.kernel.arch.tlbi_waits_for_stores

    def touch(self, tag: str, address: int, access: str = "write") -> None:
        """Say that what the cache knows of a page was accessed: entry, walks, accesses."""
        if self.port.touched is not None:  # few ask, and it is said at every look-up
            self.port.touch((self.cache, tag, page_of(address)), access)

    def _touch_range(self, tag: str, start: int, end: int) -> None:
        if end - start > PAGES_TOUCHED_MAX * PAGE_SIZE:
            self.port.touch((self.cache, tag))
            return
        for address in range(page_of(start), end, PAGE_SIZE):
            self.touch(tag, address)

    def _touch_order(self) -> None:
        """Which entry is the oldest, and how many there are, decides evictions only."""
        if self.evicts:
            self.port.touch(("order", self.cache))

    def lookup(self, tag: str, address: int) -> Entry | None:
        """The entry for the page of ``address``, whatever it permits."""
        self.touch(tag, address, "read")
        return self.entries.get((tag, page_of(address)))

    def denied_by(self, tag: str, address: int) -> str:
        """After a refusal: the fill that denied it; empty if none is kept."""
        entry = self.lookup(tag, address)
        return "" if entry is None else entry.fill

    def begin_walk(self, tag: str, address: int) -> Walk:
        """Start a walk; the next request sent is its first load, and ``end_walk`` must follow."""
        self.touch(tag, address)
        walk = Walk(tag, page_of(address), self.port.upcoming)
        self.walks.append(walk)
        return walk

    def end_walk(self, walk: Walk) -> None:
        """The walk has no load outstanding any more."""
        self.touch(walk.tag, walk.address)
        self.walks.remove(walk)
        if walk.stale:
            self.port.emit(WalkDiscarded(self.cache, walk.tag, walk.address))
            self.port.wake("drain", self.cache)

    def fill(self, walk: Walk, pte: int, source: str, load: str = "") -> Entry:
        """Install what a finished, not stale, walk found; evict if full or if it so chooses.

        ``source`` says what it was made from; ``load`` is the load that found that, if the
        source is not itself a load.
        """
        self.walks.remove(walk)
        self._touch_order()
        entry = self.install(walk.tag, walk.address, pte, source, load)
        self._make_room()
        return entry

    def install(self, tag: str, address: int, pte: int, source: str, load: str = "") -> Entry:
        """Make an entry of a table that a driver keeps.

        Such a table is memory: it is never full, and loses nothing of its own accord.
        """
        page = page_of(address)
        self.touch(tag, page)
        replaced = self.entries.pop((tag, page), None)
        if replaced is not None:
            self.port.emit(Evict(self.cache, replaced.fill))
        fill = f"{self.cache}:{load or source}"
        entry = self.entries[tag, page] = Entry(tag, page, pte, fill)
        self.port.emit(Fill(self.cache, tag, page, pte, fill, source))
        return entry

    def _make_room(self) -> None:
        one_in = self.world.evict_one_in
        by_choice = one_in > 0 and self.port.choose("evict", one_in) == 0
        if by_choice or len(self.entries) > self.world.tlb_entries:
            self.evict(next(iter(self.entries.values())))

    def evict(self, entry: Entry) -> None:
        """Drop one entry of the holder's own accord."""
        self.touch(entry.tag, entry.address)
        if self.entries.get((entry.tag, entry.address)) is entry:
            self._touch_order()
            del self.entries[entry.tag, entry.address]
            self.port.emit(Evict(self.cache, entry.fill))

    async def lose_all(self) -> None:
        """The holder is gone, and all that it knew with it.

        Complete once none of its accesses is on its way: what arrives was sent before.
        """
        for entry in tuple(self.entries.values()):
            self.evict(entry)
        for walk in self.walks:
            self.touch(walk.tag, walk.address)
            walk.stale = True
        while self.walks or self.in_flight:
            await self.port.park("drain", self.cache)
            self.port.touch((self.cache,))

    async def access(self, entry: Entry, dst: str, message: Request[Any]) -> Message:
        """Send an access that goes through ``entry`` and wait for its answer."""
        self.touch(entry.tag, entry.address)
        self.in_flight.append(entry)
        stores = self.leaves_stores and isinstance(message, FrameWrite)
        if stores:
            self.stores.append(entry)
        self.port.emit(Use(entry.fill, self.port.upcoming))
        reply: Message = await self.port.call(dst, message)
        self.touch(entry.tag, entry.address)
        self.in_flight.remove(entry)
        if stores:
            self.stores.remove(entry)
        self.port.wake("drain", self.cache)
        return reply

    def hold(self, entry: Entry) -> None:
        """Several accesses through ``entry`` are one: ``release`` must follow."""
        self.touch(entry.tag, entry.address)
        self.in_flight.append(entry)

    def release(self, entry: Entry) -> None:
        """The last of them was answered."""
        self.touch(entry.tag, entry.address)
        self.in_flight.remove(entry)
        self.port.wake("drain", self.cache)

    async def invalidate(
        self,
        tag: str,
        start: int,
        end: int,
        tables: Range | None = None,
        leaves_stores: bool = False,
    ) -> None:
        """Drop entries of (tag, [start, end)) and wait until none of them is in use.

        walker or device                    whoever invalidates
        hit the old entry
        access on its way to memory         invalidate: the entry is dropped
                                            [Required: no acknowledgement yet]
        access answered                     acknowledgement; the frame may be freed

        It waits for every access and walk of its range, whoever has dropped the entry, and for
        none of another: invalidations that overlap are acknowledged each by itself.

        ``tables``: what the upper entries map that are dropped with it.  A walk in there may be
        going through one of them, so it counts as one of the range.  ``leaves_stores``: it does
        not wait for those that went out through what itself has dropped.
        """
        first, last = tables or (start, end)
        self._touch_range(tag, first, last)
        hit = [k for k, e in self.entries.items() if e.tag == tag and covers(start, end, k[1])]
        if hit:
            self._touch_order()
        dropped = [self.entries.pop(key) for key in hit]
        fills = tuple(entry.fill for entry in dropped)
        self.port.emit(InvalidateBegin(self.cache, tag, start, end, fills))
        overlapped = []
        for walk in self.walks:
            if walk.tag == tag and covers(first, last, walk.address):
                walk.stale = True
                overlapped.append(walk.load)
        using = [e for e in self.in_flight if e.tag == tag and covers(start, end, e.address)]
        if leaves_stores:
            using = [e for e in using if e not in self.stores or e not in dropped]
        while any(w.load in overlapped for w in self.walks) or any(
            entry in self.in_flight for entry in using
        ):
            await self.port.park("drain", self.cache)
            self._touch_range(tag, first, last)
        self.port.emit(InvalidateDone(self.cache, tag, start, end, fills))


def _pages(cache: str, world: World) -> int:
    """How many pages can have an entry."""
    mapped: int = world.entries**world.levels
    known = caches().get(cache)
    if known is not None and known.by_guest_address:  # a program may give it all the rest
        own = (size for part in world.parts for *_, size in part.ranges())
        return max(mapped, sum(own) >> PAGE_SHIFT)
    return len(world.mms) * mapped


def table_index(world: World, level: int, address: int) -> int:
    """The index of ``address`` in a table at ``level`` (``pte_index`` and its like)."""
    return (address >> world.shift(level)) & (world.entries - 1)


async def walk_page_table(
    cache: TranslationCache,
    mm: str,
    address: int,
    write: bool,
    pwc: PagingStructureCache | None = None,
) -> Entry | None:
    """Walk the mm's page table as hardware does; None means a page fault.

    Loads one entry per level; the leaf's load sets accessed and dirty in the same access.
    Starts over as long as invalidations overlap it.  With a ``pwc`` it begins at the nearest
    table that it knows.
    """
    world, port = cache.world, cache.port
    if address >= world.address_end():
        return None
    while True:
        walk = cache.begin_walk(mm, address)
        table, level = await _leaf_table(cache, walk, address, pwc)
        if level == 0 and not walk.stale:
            source = port.upcoming
            leaf = PteWalk(table, table_index(world, 0, address), write)
            pte = (await port.call(MEMORY, leaf)).pte
            if not walk.stale and ptes.permits(pte, write):
                return cache.fill(walk, pte, source)
        stale = walk.stale
        cache.end_walk(walk)
        if not stale:
            return None


async def _leaf_table(
    cache: TranslationCache, walk: Walk, address: int, pwc: PagingStructureCache | None
) -> tuple[int, int]:
    """How far down the walk gets: a table and its level, 0 unless an upper entry is none."""
    world, port, mm = cache.world, cache.port, walk.tag
    table, level = world.pgd(mm), world.levels - 1
    known = pwc.lookup(mm, address) if pwc is not None else None
    if known is not None:
        table, level = known.table, known.level
    while level > 0 and not walk.stale:
        index, source = table_index(world, level, address), port.upcoming
        if pwc is not None:
            pwc.use(known)
        load = PteLoad(table, index) if pwc is None else TableWalk(table, index)
        upper = await port.call(MEMORY, load)
        cache.touch(mm, address, "read")  # whether the walk is stale
        if not ptes.hw_present(upper.pte):
            return table, level
        table, level = ptes.frame_of(upper.pte), level - 1
        if pwc is not None and not walk.stale:
            known = pwc.fill(mm, address, level, table, source)
    if pwc is not None and level == 0 and not walk.stale:
        pwc.use(known)
    return table, level


def word_of(address: int) -> int:
    """The index of the 64-bit word that ``address`` names within its page."""
    return (address & (PAGE_SIZE - 1)) >> 3


async def data_access(
    cache: TranslationCache, entry: Entry, address: int, write: bool, value: int
) -> Message:
    """The load or store itself, through ``entry``."""
    frame, word = ptes.frame_of(entry.pte), word_of(address)
    if write:
        return await cache.access(entry, MEMORY, FrameWrite(frame, word, value))
    return await cache.access(entry, MEMORY, FrameRead(frame, word))


async def atomic_add(cache: TranslationCache, entry: Entry, address: int, value: int) -> None:
    """A load and a store that a device, which has the page for itself, makes one access of.

    An invalidation waits for both: nobody else gets the page in between.
    """
    frame, word = ptes.frame_of(entry.pte), word_of(address)
    cache.hold(entry)
    found = await cache.access(entry, MEMORY, FrameRead(frame, word))
    assert isinstance(found, Word)
    await cache.access(entry, MEMORY, FrameWrite(frame, word, found.value + value))
    cache.release(entry)
