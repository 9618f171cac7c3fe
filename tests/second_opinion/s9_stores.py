"""S9: a store that was accepted is in whatever takes the place of the page.

A store is accepted when it arrives in the frame, as long as that is not free.  It is lost if it
arrives

- after the frame was copied, through a translation that is older than the copy in the entry there;
- after the frame was written to a swap slot (or read from one), and the entry at that place leads
  to the slot when the frame is free;
- after the frame was written to a file (or read from one) that is long enough, and reclaim drops
  the frame from the page cache;
- after the last ``MADV_FREE`` of the page has returned, and reclaim discards the page.  If another
  makes the entry clean later, or returns later, what was stored need not be kept.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.ranges import covers
from tests.second_opinion.trace import (
    NEVER,
    DataAccess,
    Event,
    Finding,
    Operation,
    Place,
    Trace,
)


def judge(trace: Trace) -> Iterator[Finding]:
    """Every store that is lost."""
    for store in trace.accesses:
        if store.write and (
            missing_in_copy(trace, store)
            or missing_in_slot(trace, store)
            or missing_in_file(trace, store)
            or discarded(trace, store)
        ):
            used = store.through
            yield Finding("S9", used.holder, used.cache, used.place, used.frame)


def same_page(trace: Trace, store: DataAccess, moment: int) -> bool:
    """Whether the frame is not freed between that moment and the store."""
    return trace.freed(store.frame, min(moment, store.at)) > max(moment, store.at)


def missing_in_copy(trace: Trace, store: DataAccess) -> bool:
    """A copy was made before it, and mapped where its translation, which is older, came from."""
    return any(
        isinstance(e.record, r.FrameCopied) and e.record.source == store.frame
        and e.at < store.at and same_page(trace, store, e.at)
        and mapped_instead(trace, store, e.record.target, e)
        for e in trace.of[r.FrameCopied]
    )  # fmt: skip


def mapped_instead(trace: Trace, store: DataAccess, target: int, copied: Event) -> bool:
    """Whether whoever made a copy put it in the entry after the store's translation was read."""
    return any(
        c.place == store.through.place and c.op == copied.op and c.at > copied.at
        and (ptes.hw_present(c.new) or ptes.is_device_private(c.new))
        and ptes.frame_of(c.new) == target
        and same_page(trace, store, c.at) and store.through.read < c.at
        for c in trace.changes
    )  # fmt: skip


def missing_in_slot(trace: Trace, store: DataAccess) -> bool:
    """The slot to which its place leads, when the frame is free, was written before it."""
    freed = trace.freed(store.frame, store.at)
    entry = trace.entry(store.through.place, freed)
    if freed == NEVER or not ptes.is_swap(entry):
        return False
    return last_kept(trace, store, freed, slot=ptes.frame_of(entry)) < store.at


def last_kept(trace: Trace, store: DataAccess, before: int, slot: int) -> int:
    """When the content of the frame was last the same as that of the slot; ``NEVER``: never."""
    return max(
        (
            e.at for e in (*trace.of[r.PageWritten], *trace.of[r.PageRead])
            if isinstance(e.record, (r.PageWritten, r.PageRead)) and e.at < before
            and (e.record.frame, e.record.slot) == (store.frame, slot)
            and same_page(trace, store, e.at)
        ),
        default=NEVER,
    )  # fmt: skip


def missing_in_file(trace: Trace, store: DataAccess) -> bool:
    """Reclaim drops the page, and the disk does not have it."""
    return any(
        isinstance(e.record, r.FilePageDropped) and e.record.frame == store.frame
        and same_page(trace, store, e.at)
        and e.record.index * PAGE_SIZE < size(trace, e.record.file, e.at)
        and not on_disk(trace, store, e.at)
        for e in trace.of[r.FilePageDropped]
    )  # fmt: skip


def on_disk(trace: Trace, store: DataAccess, dropped: int) -> bool:
    """Whether the page was written after the store."""
    return any(
        isinstance(e.record, r.FilePageWritten) and e.record.frame == store.frame
        and store.at < e.at < dropped
        for e in trace.of[r.FilePageWritten]
    )  # fmt: skip


def size(trace: Trace, file: str, moment: int) -> int:
    """How long a file is: as any mapping of it, until it is truncated."""
    sizes = [
        e.record.size for e in trace.of[r.FileSized]
        if isinstance(e.record, r.FileSized) and e.record.file == file and e.at < moment
    ]  # fmt: skip
    return sizes[-1] if sizes else NEVER


def discarded(trace: Trace, store: DataAccess) -> bool:
    """Reclaim discards the page, which was last given up before the store."""
    given = max(
        (o for o in trace.operations.values() if gives_up(trace, o, store) and o.end < store.at),
        key=lambda op: op.end, default=None,
    )  # fmt: skip
    return given is not None and trace.before(given.end, store.at) and any(
        isinstance(e.record, r.PageDiscarded) and e.record.frame == store.frame
        and same_page(trace, store, e.at) and e.at > given.end
        and (e.record.mm, e.record.address) == moved_to(trace, store, e.at)
        and not given_up_again(trace, store, given, e.at)
        for e in trace.of[r.PageDiscarded]
    )  # fmt: skip


def gives_up(trace: Trace, op: Operation, store: DataAccess) -> bool:
    """Whether it is a ``MADV_FREE`` of the page: in its range when it returned, or made clean."""
    if op.kind != "MadviseFree":
        return False
    mm, address = store.through.place
    here = op.mm == mm and covers(op.start, op.end_address, address)
    entry = trace.entry(store.through.place, op.end)
    return (here and ptes.hw_present(entry) and ptes.frame_of(entry) == store.frame) or any(
        c.op == op.name and ptes.frame_of(c.old) == store.frame and c.place[0] == mm
        for c in trace.changes
    )


def given_up_again(trace: Trace, store: DataAccess, given: Operation, discard: int) -> bool:
    """Whether another ``MADV_FREE`` changes the entry meanwhile, or returns after the store."""
    return any(
        gives_up(trace, op, store) and store.at < op.end < discard
        for op in trace.operations.values()
    ) or any(
        trace.kind(c.op) == "MadviseFree" and given.end < c.at < discard
        and c.place[0] == store.through.place[0] and ptes.frame_of(c.old) == store.frame
        for c in trace.changes
    )  # fmt: skip


def moved_to(trace: Trace, store: DataAccess, until: int) -> Place:
    """Where the entry is by then through whose place the store came."""
    place = store.through.place
    for out in trace.changes:
        if store.at < out.at < until and out.place == place and trace.kind(out.op) == "Mremap":
            place = next(
                (c.place for c in trace.changes
                 if c.op == out.op and c.at > out.at and c.place != place
                 and ptes.names_page(c.new) and ptes.frame_of(c.new) == store.frame),
                place,
            )  # fmt: skip
    return place
