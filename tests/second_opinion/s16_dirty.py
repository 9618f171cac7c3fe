"""S16: that a page is dirty is not forgotten, and aging adds no right.

A change that takes a dirty entry away, or makes it clean, forgets unless

- it is the work of an operation that cleans: ``MADV_FREE``, or a write-back, which writes the page;
- the same operation puts a dirty entry of the same page, or of its copy, in (there, or elsewhere);
- the operation has told the page (``FolioMarkDirty``) before it puts in a clean one;
- the page was written to swap before that;
- it is a page of a file, and has said itself that it is dirty since it was last written;
- the page is anonymous and goes with its last entry, or to swap: what is written there is all.

A page that was dirty when its entry was cleared must not be discarded, and a page of a file not be
dropped while it says, or an entry of it says, that it is dirty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from mmurace.protocol.limits import PAGE_SIZE
from tests.second_opinion.s9_stores import size
from tests.second_opinion.trace import Change, Event, Finding, Trace

CLEANING = frozenset({"MadviseFree", "Writeback"})


def judge(trace: Trace) -> Iterator[Finding]:
    """Every change that forgets, every page that goes though it is dirty, every right too many."""
    for change in trace.changes:
        dirty = ptes.names_page(change.old) and change.old & ptes.DIRTY
        if dirty and trace.kind(change.op) not in CLEANING and forgets(trace, change):
            yield finding(change)
        if trace.kind(change.op) == "Kswapd" and adds_right(trace, change):
            yield finding(change)
    for drop in trace.of[r.FilePageDropped]:
        yield from dropped_dirty(trace, drop)


def finding(change: Change) -> Finding:
    """What it is called."""
    return Finding("S16", change.by, "", change.place, ptes.frame_of(change.old))


def forgets(trace: Trace, change: Change) -> bool:
    """Whether nobody knows any more that the page was dirty."""
    frame = ptes.frame_of(change.old)
    back = put_in(trace, change)
    if back is not None:
        return not (
            back.new & ptes.DIRTY or told(trace, change, back.at) or cleaned(trace, back)
            or written_between(trace, frame, change.at, back.at)
        )  # fmt: skip
    if is_file(trace, frame, change.at):
        until = trace.returned(change.op)
        return not (says_dirty(trace, frame, change.at) or told(trace, change, until))
    return discarded(trace, change)


def put_in(trace: Trace, change: Change) -> Change | None:
    """The entry of the same page, or of its copy, that the operation puts in; None: none.

    It may be a migration entry, which keeps the bit; only a move puts it in at another place.
    """
    frames = [ptes.frame_of(change.old)] + [
        e.record.target for e in trace.of[r.FrameCopied]
        if isinstance(e.record, r.FrameCopied) and e.op == change.op
        and e.record.source == ptes.frame_of(change.old)
    ]  # fmt: skip
    return next(
        (later for later in trace.changes
         if later.op == change.op and later.at >= change.at and ptes.names_page(later.new)
         and ptes.frame_of(later.new) in frames
         and (later.place == change.place or trace.kind(change.op) == "Mremap")),
        None,
    )  # fmt: skip


def written_between(trace: Trace, frame: int, after: int, before: int) -> bool:
    """Whether the page is written to swap meanwhile; what comes back from there is clean."""
    return last(trace.of[r.PageWritten], frame, before) > after


def says_dirty(trace: Trace, frame: int, moment: int) -> bool:
    """Whether a page of a file has said that it is dirty since it was last written."""
    marked = last(trace.of[r.FilePageDirtied], frame, moment)
    clean = (*trace.of[r.FrameAllocated], *trace.of[r.FilePageWritten])
    return marked > last(clean, frame, moment)


def told(trace: Trace, change: Change, until: int) -> bool:
    """Whether the operation marks a page dirty in between."""
    return any(
        e.step.kind == "FolioMarkDirty" and e.op == change.op and change.at < e.at <= until
        for e in trace.of[type(None)]
    )  # fmt: skip


def cleaned(trace: Trace, back: Change) -> bool:
    """Whether it is put in clean and read-only to be written: a page of a file by reclaim."""
    frame = ptes.frame_of(back.new)
    return is_file(trace, frame, back.at) and not back.new & ptes.WRITE and any(
        isinstance(e.record, r.FilePageWritten) and e.record.frame == frame
        and e.op == back.op and e.at > back.at
        for e in trace.of[r.FilePageWritten]
    )  # fmt: skip


def is_file(trace: Trace, frame: int, moment: int) -> bool:
    """Whether the frame was allocated for the page cache, or got into it by a migration."""
    uses = [
        e.record.use for e in trace.of[r.FrameAllocated]
        if isinstance(e.record, r.FrameAllocated) and e.record.frame == frame and e.at < moment
    ]  # fmt: skip
    moved = any(
        isinstance(e.record, r.FilePageMigrated) and e.record.new == frame and e.at < moment
        and trace.freed(frame, e.at) > moment
        for e in trace.of[r.FilePageMigrated]
    )  # fmt: skip
    return moved or (bool(uses) and uses[-1] == "file")


def discarded(trace: Trace, change: Change) -> bool:
    """Whether the operation discards the page whose entry it has cleared."""
    return any(
        isinstance(e.record, r.PageDiscarded) and e.op == change.op and e.at > change.at
        and (e.record.mm, e.record.address) == change.place
        and e.record.frame == ptes.frame_of(change.old)
        and trace.freed(e.record.frame, change.at) > e.at
        for e in trace.of[r.PageDiscarded]
    )  # fmt: skip


def adds_right(trace: Trace, change: Change) -> bool:
    """Whether reclaim puts in an entry with more rights than there was before."""
    if not ptes.hw_present(change.new):
        return False
    before = [
        c.new for c in trace.changes
        if c.place == change.place and c.at < change.at and ptes.hw_present(c.new)
    ]  # fmt: skip
    return bool(before) and not before[-1] & ptes.WRITE and bool(change.new & ptes.WRITE)


def dropped_dirty(trace: Trace, drop: Event) -> Iterator[Finding]:
    """A page of a file that is dropped while it, or an entry of it, is dirty."""
    d = drop.record
    assert isinstance(d, r.FilePageDropped)
    if d.index * PAGE_SIZE >= size(trace, d.file, drop.at):
        return
    places = {c.place for c in trace.changes if ptes.frame_of(c.new) == d.frame}
    entries = [trace.entry(place, drop.at) for place in places]
    mapped = any(
        ptes.hw_present(e) and ptes.frame_of(e) == d.frame and e & ptes.DIRTY for e in entries
    )
    if mapped or says_dirty(trace, d.frame, drop.at):
        yield Finding("S16", drop.step.src, "", ("", -1), d.frame)


def last(events: Sequence[Event], frame: int, before: int) -> int:
    """The last of these records about a frame; -1: there is none."""
    return max(
        (e.at for e in events if getattr(e.record, "frame", -1) == frame and e.at < before),
        default=-1,
    )
