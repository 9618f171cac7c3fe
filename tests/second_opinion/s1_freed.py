"""S1: no access reaches a frame through a translation that was made before the frame was freed.

Nor does a guest run with such a frame in its VMCS, nor a driver's device use its number.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from tests.second_opinion.trace import Event, Finding, Trace, Translation, first


def judge(trace: Trace) -> Iterator[Finding]:
    """Accesses, and guests that run."""
    for access in trace.accesses:
        used = access.through
        if trace.freed(access.frame, used.read) < access.at:
            yield finding(used)
    for latched in trace.translations:
        freed = trace.freed(latched.frame, latched.read)
        if latched.cache == "vmcs" and runs_after(trace, latched, freed):
            yield finding(latched)
    yield from by_number(trace)
    yield from asked_of_the_driver(trace)


def by_number(trace: Trace) -> Iterator[Finding]:
    """Accesses to a frame that the operation has found in an entry, through no translation."""
    through = {access.at for access in trace.accesses}
    for event in trace.of[r.Access]:
        found = None if event.at in through else last_read(trace, event)
        if found is not None and isinstance(found.record, r.PteRead):
            frame, place = ptes.frame_of(found.record.pte), (found.record.mm, found.record.address)
            if trace.freed(frame, found.at) < event.at:
                yield Finding("S1", event.step.src, "", place, frame)


def asked_of_the_driver(trace: Trace) -> Iterator[Finding]:
    """Frames of a device that had been freed when their driver was asked to give them back."""
    for event in trace.of[r.BadPage]:
        bad = event.record
        if not isinstance(bad, r.BadPage) or bad.check != "pgmap":
            continue
        if trace.freed(bad.frame, 0) < event.at:
            yield Finding("S1", event.step.src, "", (mm_of(trace, event), -1), bad.frame)


def mm_of(trace: Trace, event: Event) -> str:
    """That of the operation which it belongs to."""
    reads = [e.record for e in trace.of[r.PteRead] if e.op == event.op and e.at < event.at]
    return reads[-1].mm if reads and isinstance(reads[-1], r.PteRead) else ""


def last_read(trace: Trace, access: Event) -> Event | None:
    """The last load of an entry of that frame that the operation made before."""
    reads = [
        event
        for event in trace.of[r.PteRead]
        if event.op == access.op and event.at < access.at and names(event.record, access.record)
    ]
    return reads[-1] if reads else None


def names(read: r.Record | None, access: r.Record | None) -> bool:
    """Whether the entry that was read leads to the frame that was accessed."""
    if not isinstance(read, r.PteRead) or not isinstance(access, r.Access):
        return False
    return ptes.hw_present(read.pte) and ptes.frame_of(read.pte) == access.frame


def runs_after(trace: Trace, latched: Translation, freed: int) -> bool:
    """Whether the guest runs with it, and something is done there that comes after the free."""
    return any(
        event.step.dst == latched.holder and trace.before(freed, event.at)
        for begun, ended in runs(trace, latched)
        for event in trace.events[begun : ended + 1]
    )


def runs(trace: Trace, latched: Translation) -> Iterator[tuple[int, int]]:
    """From each entry into the guest with this value to the exit."""
    for enter in trace.of[r.GuestEnter]:
        if isinstance(enter.record, r.GuestEnter) and enter.record.latched == latched.fill:
            exits = (e.at for e in trace.of[r.GuestExit] if e.step.dst == latched.holder)
            yield enter.at, first(at for at in exits if at > enter.at)


def finding(used: Translation) -> Finding:
    """What it is called."""
    return Finding("S1", used.holder, used.cache, used.place, used.frame)
