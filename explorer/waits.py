"""Requests that may as well come later than they are queued.

A request for a lock that is held only waits.  Every execution in which it is queued is equivalent
to one in which it arrives right after the release that would have granted it: nobody sees the
queue but those who wait behind it, who arrive after it in the same way.  So it is not delivered
while something else can be.  (A request whose lock is never released is delivered at the end.)

This holds for a handler that does nothing but queue, and whose answer is the same whether it was
woken or came when it need not wait; ``ReclaimThrottle``, for one, answers which of the two it was.
"""

from __future__ import annotations

from typing import Final

from protocol.messages import filemap as fm
from protocol.messages import kvm as k
from protocol.messages import memory as m
from protocol.messages import ocxl as o

LOCKS: Final = (
    m.PtlLock, m.MmapLock, m.FolioLock, m.AnonVmaLock, fm.ImmapLock, k.MmuLock, o.SpaLock,
    o.AtsdLock,
)  # fmt: skip
WAITS: Final = frozenset(kind.__name__ for kind in (*LOCKS, m.FolioWait, k.RetryWait, k.MemslotAdd))
"""Kinds of requests for which this holds; ``tests/test_waits.py`` tries it."""
