"""O: whoever may hold an entry that was taken away has lost it before its deadline.

The deadline of a change is the earliest of these moments after it:

- the frame that the old entry led to is free;
- the same operation copies that frame (migration; a copy on write copies before it changes);
- the same operation writes it to swap or to a file, and the old entry was dirty;
- the same operation maps another frame there;
- the page is discarded (only ``MADV_FREE``, which took "dirty" away; and only once it returned);
- the operation lets the first page-table lock go, if it has put the same entry in elsewhere (a move);
- the operation returns, if it is one that revokes;
- another that looks at the same entry, and began after the change, returns (it inherits).

For a table it is the moment in which the table is free; for a tag that in which the tag is.
A translation has been lost when it cannot be used any more, and a load of the old entry that has
not become one by then is none.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from tests.second_opinion.obligations import REVOKING, given_back, inherited, taking
from tests.second_opinion.trace import Change, Finding, Trace, Translation, first


def judge(trace: Trace) -> Iterator[Finding]:
    """Every translation that outlives a deadline."""
    for x in trace.translations:
        if any(outlives(trace, x, c) for c in taking(trace, x)) or any(
            x.usable_after(trace.returned(op)) for op in inherited(trace, x)
        ):
            yield Finding("O", x.holder, x.cache, x.place, x.frame)
        elif outlives_tag(trace, x):
            yield Finding("O", x.holder, x.cache, x.place, x.frame)
    yield from tables(trace)


def outlives(trace: Trace, x: Translation, change: Change) -> bool:
    """Whether it can be used at the deadline of a change that takes from it, or later."""
    due = deadline(trace, change)
    return x.usable_after(due) and not given_back(trace, x, change, due)


def deadline(trace: Trace, change: Change) -> int:
    """The earliest of those moments."""
    returns = trace.returned(change.op) if trace.kind(change.op) in REVOKING else None
    return min(
        trace.freed(ptes.frame_of(change.old), change.at),
        copied(trace, change),
        written(trace, change),
        replaced(trace, change),
        discarded(trace, change),
        moved(trace, change),
        *([] if returns is None else [returns]),
    )


def copied(trace: Trace, change: Change) -> int:
    """The operation copies the frame."""
    return first(
        e.at for e in trace.of[r.FrameCopied]
        if e.at > change.at and e.op == change.op
        and isinstance(e.record, r.FrameCopied)
        and e.record.source == ptes.frame_of(change.old)
    )  # fmt: skip


def written(trace: Trace, change: Change) -> int:
    """The operation writes the frame, and the entry was dirty."""
    if not change.old & ptes.DIRTY:
        return first(iter(()))
    return first(
        e.at for e in (*trace.of[r.PageWritten], *trace.of[r.FilePageWritten])
        if e.at > change.at and e.op == change.op
        and isinstance(e.record, (r.PageWritten, r.FilePageWritten))
        and e.record.frame == ptes.frame_of(change.old)
    )  # fmt: skip


def replaced(trace: Trace, change: Change) -> int:
    """The operation maps another frame at the same place."""
    return first(
        c.at for c in trace.changes
        if c.at > change.at and c.op == change.op and c.place == change.place
        and ptes.hw_present(c.new) and ptes.frame_of(c.new) != ptes.frame_of(change.old)
    )  # fmt: skip


def discarded(trace: Trace, change: Change) -> int:
    """Reclaim discards the page that ``MADV_FREE`` has made clean, which has returned."""
    if trace.kind(change.op) != "MadviseFree":
        return first(iter(()))
    return first(
        e.at for e in trace.of[r.PageDiscarded]
        if e.at > trace.returned(change.op)
        and isinstance(e.record, r.PageDiscarded)
        and e.record.frame == ptes.frame_of(change.old)
        and (e.record.mm, e.record.address) == change.place
    )  # fmt: skip


def moved(trace: Trace, change: Change) -> int:
    """The operation has put the frame in at another place, and lets a page-table lock go."""
    arrived = first(
        c.at for c in trace.changes
        if c.at > change.at and c.op == change.op and c.place != change.place
        and c.place[0] == change.place[0] and ptes.hw_present(c.new)
        and trace.kind(change.op) == "Mremap"
        and ptes.frame_of(c.new) == ptes.frame_of(change.old)
    )  # fmt: skip
    return first(
        at for at, step in trace.marks
        if at > arrived and step.kind == "PtlUnlock" and step.id.startswith(f"{change.op}.")
    )  # fmt: skip


def outlives_tag(trace: Trace, x: Translation) -> bool:
    """Whether it can be used when its tag is nobody's any more."""
    return any(
        isinstance(e.record, r.TagFree) and e.record.tag == x.tag
        and e.at > x.read and x.usable_after(e.at)
        for e in trace.of[r.TagFree]
    )  # fmt: skip


def tables(trace: Trace) -> Iterator[Finding]:
    """Upper entries that a walker keeps when the table that they lead to is free."""
    for kept in trace.of[r.TableCached]:
        t = kept.record
        assert isinstance(t, r.TableCached)
        read = trace.deliveries[t.source]
        if trace.freed(t.table, read) < dropped(trace, t.fill, kept.at):
            yield Finding("O", kept.step.dst, "pwc", (t.tag, t.address), t.table)


def dropped(trace: Trace, fill: str, after: int) -> int:
    """When an upper entry is lost: its invalidation is complete, or it was evicted."""
    return first(
        e.at for e in (*trace.of[r.InvalidateDone], *trace.of[r.Evict])
        if e.at > after and (
            (isinstance(e.record, r.InvalidateDone) and fill in e.record.fills)
            or (isinstance(e.record, r.Evict) and e.record.fill == fill)
        )
    )  # fmt: skip
