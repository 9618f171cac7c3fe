"""S1: no access reaches a frame through a translation that was made before the frame was freed.

Nor does a guest run with such a frame in its VMCS.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmurace.protocol import records as r
from tests.second_opinion.trace import Finding, Trace, Translation, first


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
