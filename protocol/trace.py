"""One step of a merged trace: a delivery and what the receiver recorded while handling it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmurace.protocol.records import Record


@dataclass(frozen=True, slots=True)
class TraceStep:
    """Delivery ``n`` of message ``id`` to ``dst``; steps come in the order of their numbers.

    ``causes`` are the deliveries whose handling released the message.  Together with the order
    of deliveries at each node they give happens-before.
    """

    n: int
    id: str
    src: str
    dst: str
    kind: str
    causes: tuple[int, ...]
    records: Sequence[Record]
    lost: tuple[str, ...] = ()
    """Nodes that died before this delivery and after the one before it."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended.

    ``complete``: every program ran to its end, or feeding was stopped and what was in flight
    finished.  ``waiting`` lists requests that were never answered (id, kind, who asked, who
    should answer).
    """

    deliveries: int
    finished: int
    complete: bool
    waiting: tuple[tuple[str, str, str, str], ...]
