"""Rule L4: an invalidation that has begun is completed, and so is a request that was posted.

    whoever asks                        agent
    invalidation ->                     begun: entries are dropped (b)
                                        accesses through them are answered
                                        [Required: b is followed by a completion]
                 <- completion          completed

Whether anybody waits for the completion makes no difference: an operation may be over long before,
and its agent completes all the same.  Only an agent that is dead owes nothing any more.
"""

from __future__ import annotations

from mmurace.oracle.violation import Event, Violation
from mmurace.protocol.records import InvalidateBegin, InvalidateDone, RequestPosted

_Key = tuple[str, str, str, int, int]
"""(agent, cache or request, tag, start, end)."""


class Completion:
    """Invalidations and requests that have begun and are not completed."""

    def __init__(self, found: list[Violation]) -> None:
        self.found = found
        self._open: dict[_Key, list[Event]] = {}

    def invalidation(self, record: InvalidateBegin | InvalidateDone, event: Event) -> None:
        """An agent begins to drop translations, or is done with it."""
        key = (event.node, record.cache, record.tag, record.start, record.end)
        self._moved(key, event, isinstance(record, InvalidateBegin))

    def request(self, record: RequestPosted, event: Event) -> None:
        """A holder is asked for something, or was seen out of guest mode since."""
        self._moved((event.node, record.request, "", 0, 0), event, not record.done)

    def _moved(self, key: _Key, event: Event, begins: bool) -> None:
        if begins:
            self._open.setdefault(key, []).append(event)
            return
        begun = self._open.get(key)
        if begun:
            begun.pop(0)
        if not begun:
            self._open.pop(key, None)

    def lost(self, node: str) -> None:
        """The agent is dead."""
        self._open = {key: begun for key, begun in self._open.items() if key[0] != node}

    def finish(self) -> None:
        """Nothing can move any more."""
        for (node, what, tag, start, end), begun in self._open.items():
            cached = end > start
            self.found.append(
                Violation(
                    "L4", node, f"{len(begun)} of them begun and never completed: {what}",
                    cache=what if cached else "", mm=tag, address=start if cached else -1,
                    racing=tuple(begun[:1]),
                )
            )  # fmt: skip
