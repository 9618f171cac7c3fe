"""What travels: a message with its address, and what a node answers to a delivery.

Identity.  A message's id comes from its cause alone: ``program/operation.send.send...``.  A
coroutine that handles request X sends X.0, X.1, ...; the reply to X is ``X~``.  No counter is
shared between coroutines, so an id does not move when unrelated deliveries swap.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mmurace.protocol.messages.base import Message
from mmurace.protocol.records import Record

REPLY_MARK = "~"
BROKER = "broker"
"""The sender of operations; their replies (``OpDone``) end at the broker and are its own."""


class Envelope(msgspec.Struct, gc=False, array_like=True):
    """A message on its way.

    ``path`` is the sending coroutine (the id of what it handles); ``stream`` names a declared
    stream or is empty.  First-in-first-out holds per (path, dst) and per stream.  ``body`` is a
    ``Message``, or its bytes where nobody needs to look inside.
    """

    id: str
    src: str
    dst: str
    kind: str
    path: str
    stream: str
    body: Message | bytes
    copy: int = 0
    """0: as sent; k > 0: the k-th repetition (duplicate or retransmission)."""
    causes: tuple[int, ...] = ()
    """Deliveries whose handling released this message; set by the broker."""
    blocked: bool = False
    """Chaos keeps it back for now; set by the broker."""

    @property
    def is_reply(self) -> bool:
        """Whether this answers a request."""
        return self.id[-1] == REPLY_MARK


class Handled(msgspec.Struct, gc=False):
    """A node's answer to delivery ``n``: what it sent, chose and recorded, in order."""

    n: int
    messages: list[Envelope] = []
    choices: list[tuple[str, int, int]] = []
    """(name, how many there were, which one was taken)."""
    records: list[Record] = []


def reply_id(request: str) -> str:
    """The id of the reply to a request."""
    return request + REPLY_MARK


def request_id(reply: str) -> str:
    """The id of the request that a reply answers."""
    return reply[: -len(REPLY_MARK)]


def operation_of(message_id: str) -> str:
    """``program/index``: the operation that caused a message."""
    operation, dot, _ = message_id.partition(".")  # a quarter faster than find and a slice
    return operation if dot else operation.rstrip(REPLY_MARK)


def header_of(envelope: Envelope) -> list[Any]:
    """The part of an envelope that the broker reads without decoding the body."""
    return [
        envelope.id,
        envelope.dst,
        envelope.kind,
        envelope.path,
        envelope.stream,
    ]
