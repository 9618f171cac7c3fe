"""O: whoever may hold an entry that was taken away has lost it before its deadline.

A change has a deadline at each of these moments after it:

- the frame that the old entry led to is free;
- the same operation copies that frame (migration; a copy on write copies before it changes);
- the same operation writes it to swap or to a file (whoever may only read it may stay);
- the same operation maps another frame there;
- the operation lets a page-table lock go, if it has put the same entry in elsewhere (a move);
- the operation returns, if it is one that revokes (``MADV_FREE``: stores are heard from then on);
- another returns that looked at the entry meanwhile, and inherits (``obligations.inherited``).

For a table it is the moment in which the table is free; for a tag that in which the tag is.
A translation has been lost when it cannot be used any more, and a load of the old entry that has
not become one by then is none.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from tests.second_opinion.obligations import REVOKING, given_back, inherited, taking
from tests.second_opinion.trace import NEVER, Change, Finding, Trace, Translation, first


def judge(trace: Trace) -> Iterator[Finding]:
    """Every translation that outlives a deadline."""
    for x in trace.translations:
        if (
            any(outlives(trace, x, c) for c in taking(trace, x))
            or any(trace.outlives(x, trace.returned(op)) for op in inherited(trace, x))
            or outlives_tag(trace, x)
        ):
            yield Finding("O", x.holder, x.cache, x.place, x.frame)
    yield from tables(trace)


def outlives(trace: Trace, x: Translation, change: Change) -> bool:
    """Whether it can be used at a deadline of a change that takes from it, or later."""
    return any(
        trace.outlives(x, due) and not given_back(trace, x, change, due)
        for due in deadlines(trace, x, change)
    )


def deadlines(trace: Trace, x: Translation, change: Change) -> Iterator[int]:
    """Those moments."""
    yield trace.freed(ptes.frame_of(change.old), change.at)
    yield copied(trace, change)
    yield replaced(trace, change)
    yield moved(trace, change)
    if x.rights & ptes.WRITE:
        yield written(trace, change)
    if trace.kind(change.op) in REVOKING:
        yield trace.returned(change.op)


def copied(trace: Trace, change: Change) -> int:
    """The operation copies the frame."""
    return first(
        e.at for e in trace.of[r.FrameCopied]
        if e.at > change.at and e.op == change.op
        and isinstance(e.record, r.FrameCopied)
        and e.record.source == ptes.frame_of(change.old)
    )  # fmt: skip


def written(trace: Trace, change: Change) -> int:
    """The operation writes the frame."""
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
        e.at for e in trace.of[type(None)]
        if e.at > arrived and e.step.kind == "PtlUnlock" and e.op == change.op
    )  # fmt: skip


def outlives_tag(trace: Trace, x: Translation) -> bool:
    """Whether it can be used when its tag is nobody's any more."""
    return any(
        isinstance(e.record, r.TagFree) and e.record.tag == x.tag
        and e.at > x.read and trace.outlives(x, e.at)
        for e in trace.of[r.TagFree]
    )  # fmt: skip


def tables(trace: Trace) -> Iterator[Finding]:
    """Upper entries that a walker keeps when the table that they lead to is free."""
    for kept in trace.of[r.TableCached]:
        t = kept.record
        assert isinstance(t, r.TableCached)
        read = trace.messages[t.source]
        freed = trace.freed(t.table, read)
        if freed < NEVER and not trace.before(dropped(trace, t.fill, kept.at), freed):
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
