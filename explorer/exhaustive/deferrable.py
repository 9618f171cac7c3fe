"""Requests that may as well come later than they are queued.

A request for a lock that is held only waits.  Every execution in which it is queued is equivalent
to one in which it arrives right after the release that would have granted it: nobody sees the
queue but those who wait behind it, who arrive after it in the same way.  So it is not delivered
while something else can be.  (A request whose lock is never released is delivered at the end.)

A writer that waits for readers is seen, though: it holds off readers that would get the lock
without it, and a reader that asks twice then waits for ever.  So a request to write a lock that can
be shared does not come later.

This holds for a handler that does nothing but queue, and whose answer is the same whether it was
woken or came when it need not wait; ``ReclaimThrottle``, for one, answers which of the two it was.
"""

from __future__ import annotations

from mmurace.protocol.messages.base import Message


def only_waits(kind: type[Message]) -> bool:
    """Whether it says this of itself; ``tests/test_waits.py`` tries it."""
    return kind.TAKES is not None or kind.MAY_COME_LATER


def may_come_later(request: Message | bytes) -> bool:
    """Whether a request that would only be queued may as well come later."""
    later = isinstance(request, Message) and only_waits(type(request))
    return later and not getattr(request, "write", False)
