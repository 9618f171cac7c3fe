"""A run as lists: its records in order, operations, changes of entries, translations, accesses.

A moment is the place of a delivery or of a record in the whole trace, counted from 0.  ``NEVER``
is later than all.  Of two moments the earlier one need not have *happened before* the other: that
is so if what caused what, and the order of deliveries at each node, lead from one to the other
(``protocol/trace.py``).  What two nodes did that did not hear of each other could as well have come
in the other order, and says nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from mmurace.protocol.envelope import operation_of
from mmurace.protocol.ranges import covers
from mmurace.protocol.trace import TraceStep

NEVER: Final = 1 << 62
SHADOW: Final = ("spte", "gtlb", "vmcs", "gmmu", "gpc")
"""Caches that are filled from a table of the subscriber's own (it holds it, or ``tag`` is its
name); all others are filled from the table of the mm."""

RELOAD: Final = "APIC_PAGE_RELOAD"
"""The request after which no guest is entered with a latched value."""

Place = tuple[str, int]
"""(mm, address of a page)."""


class Finding(NamedTuple):
    """A breach: the rule, who has the translation (or did the change), and of what."""

    rule: str
    agent: str
    cache: str = ""
    place: Place = ("", -1)
    frame: int = -1


@dataclass(frozen=True)
class Event:
    """A record, when it was made, and in which delivery."""

    at: int
    step: TraceStep
    record: r.Record | None
    """None: the delivery itself."""

    @property
    def op(self) -> str:
        """The operation that it belongs to."""
        return getattr(self.record, "op", "") or operation_of(self.step.id)


@dataclass
class Operation:
    """A system call, an access of a device or a guest, a round of a daemon."""

    name: str
    kind: str
    begin: int
    mm: str
    start: int
    end_address: int
    end: int = NEVER
    """When it returned."""
    result: int = 0


@dataclass(frozen=True)
class Change:
    """A store to a leaf entry."""

    at: int
    op: str
    by: str
    """The node that sent it."""
    place: Place
    old: int
    new: int

    @property
    def takes_away(self) -> bool:
        """Whether a copy of the old entry grants something that the new one does not."""
        return ptes.takes_away(self.old, self.new)


@dataclass
class Translation:
    """A cached translation, from the load that it goes back to until it cannot be used."""

    fill: str
    cache: str
    tag: str
    holder: str
    address: int
    """As its holder has it; a guest's own for a guest's."""
    pte: int
    read: int
    """When the load saw the entry."""
    place: Place
    """What that entry maps."""
    usable: list[tuple[int, int]] = field(default_factory=list)
    """From, to: of a latched value since the guest ran with it, of any other since its fill."""

    @property
    def frame(self) -> int:
        """The frame that it leads to."""
        return ptes.frame_of(self.pte)

    def revoked_by(self, entry: int) -> bool:
        """Whether it grants something that ``entry`` does not.

        A guest's stores are never noted in the entry of the mm, so a writable copy in a shadow
        table lets its holder store unheard, as a dirty one of others does.
        """
        unheard = ptes.DIRTY if self.cache in SHADOW and self.rights & ptes.WRITE else 0
        return ptes.takes_away(self.rights | unheard, entry)

    @property
    def rights(self) -> int:
        """Its entry.  A VMCS says where a page is, and gives no right to store."""
        return self.pte & ~(ptes.WRITE | ptes.DIRTY) if self.cache == "vmcs" else self.pte


@dataclass(frozen=True)
class DataAccess:
    """A load or store of a word of a frame, through a translation."""

    at: int
    frame: int
    word: int
    write: bool
    through: Translation


class Trace:
    """The lists."""

    def __init__(self, steps: Sequence[TraceStep]) -> None:
        self.events: list[Event] = []
        self.of: dict[type, list[Event]] = defaultdict(list)
        self.deliveries: dict[int, int] = {}
        """Number of a delivery -> its moment."""
        self.messages: dict[str, int] = {}
        """Message id -> the moment of its delivery."""
        for step in steps:
            self.deliveries[step.n] = len(self.events)
            self.messages.setdefault(step.id, len(self.events))
            for record in (None, *step.records):
                event = Event(len(self.events), step, record)
                self.events.append(event)
                self.of[type(record)].append(event)
        self.past = _pasts(steps)
        self.operations = self._operations()
        self.changes = [_change(event) for event in self.of[r.PteChange] if _is_leaf(event)]
        self.translations = self._translations()
        self.accesses = list(self._accesses())
        for translation in self.translations:
            translation.usable = self._usable(translation)

    # ---- questions -------------------------------------------------------------------------

    def before(self, earlier: int, later: int) -> bool:
        """Whether the first of two moments happened before the second."""
        if NEVER in (earlier, later):
            return earlier < later
        cause, effect = self.events[earlier].step.n, self.events[later].step.n
        return earlier < later if cause == effect else bool(self.past[effect] >> cause & 1)

    def entry(self, place: Place, moment: int) -> int:
        """The entry at a place after the record of that moment."""
        now = 0
        for change in self.changes:
            if change.at <= moment and change.place == place:
                now = change.new
        return now

    def freed(self, frame: int, after: int) -> int:
        """When the frame is free for the first time after a moment."""
        return first(
            e.at
            for e in self.of[r.FrameFreed]
            if e.at > after and isinstance(e.record, r.FrameFreed) and e.record.frame == frame
        )

    def returned(self, op: str) -> int:
        """When an operation returned."""
        return self.operations[op].end if op in self.operations else NEVER

    def outlives(self, x: Translation, moment: int) -> bool:
        """Whether its end did not happen before that moment: it may be used then, or later."""
        return moment < NEVER and not all(self.before(end, moment) for _, end in x.usable)

    def kind(self, op: str) -> str:
        """The kind of an operation."""
        return self.operations[op].kind if op in self.operations else ""

    # ---- how the lists are made --------------------------------------------------------------

    def _operations(self) -> dict[str, Operation]:
        found: dict[str, Operation] = {}
        for event in self.of[r.OpBegin]:
            b = event.record
            assert isinstance(b, r.OpBegin)
            found[event.op] = Operation(event.op, b.kind, event.at, b.tag, b.start, b.end)
        for event in self.of[r.OpEnd]:
            assert isinstance(event.record, r.OpEnd)
            found[event.op].end, found[event.op].result = event.at, event.record.result
        return found

    def _translations(self) -> list[Translation]:
        loads: dict[str, tuple[int, Place, int]] = {}
        """Message id of a load -> when, of which entry, and by what it is reached (an exclusive
        entry is not as others are); also by the name of a fill."""
        found = []
        for event in self.events:
            record = event.record
            if isinstance(record, r.PteRead):
                reached = record.pte & ptes.REACHED_BY
                loads[event.step.id] = event.at, (record.mm, record.address), reached
            elif isinstance(record, r.PteChange) and ptes.is_device_exclusive(record.new):
                # whoever made it exclusive knows it without a load
                place = record.mm, record.address
                loads[event.step.id] = event.at, place, record.new & ptes.REACHED_BY
            elif isinstance(record, r.Fill):
                unknown = self.messages.get(record.source, event.at), ("", record.address), 0
                load = loads[record.fill] = loads.get(record.source, unknown)
                read, place, reached = load
                found.append(
                    Translation(
                        record.fill, record.cache, record.tag, event.step.dst, record.address,
                        record.pte & ~ptes.REACHED_BY | reached, read, place, [(event.at, NEVER)],
                    )
                )  # fmt: skip
        return found

    def _accesses(self) -> Iterator[DataAccess]:
        by_name = {translation.fill: translation for translation in self.translations}
        through: dict[str, Translation] = {}
        for event in self.events:
            record = event.record
            if isinstance(record, r.Use):
                through[record.access] = by_name[record.fill]
            elif isinstance(record, r.Access) and event.step.id in through:
                used = through[event.step.id]
                yield DataAccess(event.at, record.frame, record.word, record.write, used)

    def _usable(self, translation: Translation) -> list[tuple[int, int]]:
        if translation.cache == "vmcs":
            return list(self._latched(translation))
        filled = translation.usable[0][0]
        return [(filled, min(self._invalidated(translation, filled), self._evicted(translation)))]

    def _latched(self, x: Translation) -> Iterator[tuple[int, int]]:
        """From an entry into the guest with this value, until it is replaced or to be replaced."""
        end = -1
        for event in self.of[r.GuestEnter]:
            assert isinstance(event.record, r.GuestEnter)
            if event.record.latched == x.fill and event.at > end:
                end = min(self._reload(x, event.at), self._evicted(x))
                yield event.at, end

    def _reload(self, x: Translation, after: int) -> int:
        """When its holder has been asked to load it again, and has left the guest since."""
        return first(
            e.at
            for e in self.of[r.RequestPosted]
            if isinstance(e.record, r.RequestPosted)
            and e.at > after
            and (e.step.dst, e.record.request, e.record.done) == (x.holder, RELOAD, True)
        )

    def _invalidated(self, translation: Translation, filled: int) -> int:
        """When the first invalidation is complete that began after the fill and covers it."""
        return first(
            done
            for begun, done, node, record in self._invalidations()
            if begun > filled and node == translation.holder and record.cache == translation.cache
            and record.tag == translation.tag
            and covers(record.start, record.end, translation.address)
        )  # fmt: skip

    def _invalidations(self) -> Iterator[tuple[int, int, str, r.InvalidateBegin]]:
        """(began, complete, at whose cache, record); the first to begin is the first complete."""
        left = list(self.of[r.InvalidateDone])
        for begin in self.of[r.InvalidateBegin]:
            b = begin.record
            assert isinstance(b, r.InvalidateBegin)
            done = next((e for e in left if _completes(e, begin)), None)
            if done is not None:
                left.remove(done)
                yield begin.at, done.at, begin.step.dst, b

    def _evicted(self, translation: Translation) -> int:
        """When its holder has dropped it and what went out through it before has arrived."""
        gone = first(
            e.at
            for e in self.of[r.Evict]
            if isinstance(e.record, r.Evict) and e.record.fill == translation.fill
        )
        used = [access.at for access in self.accesses if access.through is translation]
        return max([gone, *used]) if gone < NEVER else NEVER


def first(moments: Iterator[int]) -> int:
    """The earliest, or ``NEVER``."""
    return min(moments, default=NEVER)


def _pasts(steps: Sequence[TraceStep]) -> dict[int, int]:
    """Of each delivery those that happened before it: the sum of 2**n of their numbers."""
    past: dict[int, int] = {}
    last: dict[str, int] = {}
    """Node -> its last delivery."""
    for step in steps:
        past[step.n] = 0
        for cause in (*step.causes, last.get(step.dst, -1)):
            if cause in past:
                past[step.n] |= past[cause] | 1 << cause
        last[step.dst] = step.n
    return past


def _completes(done: Event, begin: Event) -> bool:
    d, b = done.record, begin.record
    assert isinstance(d, r.InvalidateDone)
    assert isinstance(b, r.InvalidateBegin)
    same = (d.cache, d.tag, d.start, d.end, d.fills) == (b.cache, b.tag, b.start, b.end, b.fills)
    return same and done.at > begin.at and done.step.dst == begin.step.dst


def _is_leaf(event: Event) -> bool:
    return isinstance(event.record, r.PteChange) and event.record.level == 0


def _change(event: Event) -> Change:
    c = event.record
    assert isinstance(c, r.PteChange)
    return Change(event.at, event.op, event.step.src, (c.mm, c.address), c.old, c.new)
