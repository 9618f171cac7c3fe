"""Flushes that a processor sends to others, and the moment from which it knows that they are done.

An IPI and a TLBI take effect where they arrive, which is a row of whoever receives them.  When they
were sent, and when their sender has waited for them (its DSB on arm64), is said here: between the
two the entry may still be used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from mmurace.explorer.shrink.play import Moment
from mmurace.protocol.envelope import REPLY_MARK, Envelope
from mmurace.protocol.messages.book3s64 import Tlbie
from mmurace.protocol.messages.processor import FlushTlbIpi, Tlbi

SENT: Final = "FlushSent"
"""Kind of the row that says that flushes were sent."""
DONE: Final = "FlushDone"
"""Kind of the row that says that their sender has waited for all of them."""
_KINDS: Final = (FlushTlbIpi, Tlbi, Tlbie)


@dataclass(slots=True)
class Flush:
    """One flush by one processor: the same range to everybody who must hear of it."""

    sender: str
    id: str
    """That of the first message."""
    kind: str
    mm: str
    start: int
    end: int
    sent: int
    """The delivery in which it was sent."""
    to: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """Of the messages: ids."""
    done: int = -1
    """The delivery of the last answer; -1: there was none yet."""
    waited: bool = False
    """Its sender went on with that answer, so it had waited for it."""

    def values(self) -> dict[str, object]:
        """Fields of a row."""
        return {
            "flush": self.kind, "mm": self.mm, "start": self.start, "end": self.end, "to": self.to,
        }  # fmt: skip


def flushes_in(moments: Sequence[Moment]) -> list[Flush]:
    """Every flush of a run, in the order in which they were sent."""
    found: list[Flush] = []
    waiting: dict[str, Flush] = {}
    for moment in moments:
        answered = moment.envelope.id.removesuffix(REPLY_MARK)
        flush = waiting.pop(answered, None) if moment.envelope.is_reply else None
        if flush is not None and not any(name in waiting for name in flush.names):
            flush.done, flush.waited = moment.n, bool(moment.handled.messages)
        for flush in _sent(moment):
            found.append(flush)
            waiting |= dict.fromkeys(flush.names, flush)
    return found


def _sent(moment: Moment) -> Iterator[Flush]:
    flushes: dict[tuple[int, int], Flush] = {}
    for message in moment.handled.messages:
        body = message.body
        if not isinstance(body, _KINDS) or message.copy:
            continue
        key = (body.start, body.end)
        flush = flushes.get(key)
        if flush is None:
            flush = flushes[key] = _flush(moment.n, message, body)
        flush.to.append(message.dst)
        flush.names.append(message.id)
        if isinstance(body, (FlushTlbIpi, Tlbi)):  # the same to links names the process by its PID
            flush.mm = body.mm
    yield from flushes.values()


def _flush(n: int, message: Envelope, body: FlushTlbIpi | Tlbi | Tlbie) -> Flush:
    mm = "" if isinstance(body, Tlbie) else body.mm
    return Flush(message.src, message.id, message.kind, mm, body.start, body.end, n)
