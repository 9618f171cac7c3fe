"""Frames: what a broker and a node say to each other, and what a node's journal holds.

A multipart message is a header frame and then bodies; whoever routes reads the header alone.

===========  ===============================================================================
Deliver      header ``[n, id, src, kind, path, stream, copy, choices]``, body
Handled      header ``[n, [id, dst, kind, path, stream], ...]``, one body each, tail
             ``[choices, records]``
control      header ``[word, ...]``: the first element is a word, not a number
===========  ===============================================================================

``choices`` is None, or a list that the node must follow (search and replay).  A journal record of
a node is ``[id of the request or reply handled, header, body, ..., tail]``, made of the very
frames that were sent; it holds nothing that depends on the broker, on time or on the machine.
Pure functions; malformed frames raise ``PeerError``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from mmurace.protocol import codec
from mmurace.protocol.envelope import Envelope, Handled, header_of
from mmurace.protocol.errors import PeerError
from mmurace.protocol.limits import JOURNAL_RECORD_BYTES_MAX, ZMQ_MESSAGE_BYTES_MAX
from mmurace.protocol.messages.base import Message
from mmurace.protocol.records import Record

Choices = list[tuple[str, int, int]]

_EMPTY_TAIL = msgpack.packb([[], []])


def body_bytes(envelope: Envelope) -> bytes:
    """The body as bytes, whether or not somebody has decoded it."""
    body = envelope.body
    return body if type(body) is bytes else codec.pack(body)


def control_frame(word: str, *values: Any) -> bytes:
    """The header of a control message."""
    return codec.pack([word, *values])


def header(frame: bytes) -> list[Any]:
    """A header frame as a list that is not empty.  Raises ``PeerError``."""
    value = codec.unpack(frame, ZMQ_MESSAGE_BYTES_MAX)
    if type(value) is not list or not value:
        raise PeerError("header is not a list")
    return value


# ---- deliver -------------------------------------------------------------------------------


def deliver_header(n: int, envelope: Envelope, choices: Choices | None = None) -> bytes:
    """The header frame of delivery ``n``."""
    e = envelope
    packed: bytes = msgpack.packb([n, e.id, e.src, e.kind, e.path, e.stream, e.copy, choices])
    return packed


def read_deliver(fields: list[Any], dst: str, body: bytes) -> tuple[Envelope, Choices | None]:
    """What was delivered to ``dst``, its body decoded.  Raises ``PeerError``."""
    try:
        _n, id_, src, kind, path, stream, copy, choices = fields
    except ValueError:
        raise PeerError(f"deliver header has {len(fields)} fields") from None
    message = codec.decode_message(body)
    envelope = Envelope(id_, src, dst, kind, path, stream, message, copy)
    return envelope, None if choices is None else [tuple(choice) for choice in choices]


# ---- handled -------------------------------------------------------------------------------


def handled_frames(handled: Handled) -> list[bytes]:
    """The frames of a node's answer."""
    messages = handled.messages
    frames = [msgpack.packb([handled.n, *map(header_of, messages)])]
    frames += [body_bytes(envelope) for envelope in messages]
    if handled.choices or handled.records:
        frames.append(codec.pack([handled.choices, handled.records]))
    else:
        frames.append(_EMPTY_TAIL)
    return frames


def journal_record(request: str, frames: Sequence[bytes]) -> bytes:
    """What a node's journal holds of one handling."""
    packed: bytes = msgpack.packb([request, *frames])
    return packed


@dataclass(frozen=True, slots=True)
class HandledRecord:
    """One record of a node's journal, read back.  ``messages`` are ``[header, body bytes]``."""

    n: int
    id: str
    messages: list[tuple[list[str], bytes]]
    choices: Choices
    records: list[Record]

    def decoded(self) -> list[tuple[list[str], Message]]:
        """The messages with typed bodies.  Raises ``PeerError``."""
        return [(head, codec.decode_message(body)) for head, body in self.messages]


def read_journal_record(record: bytes) -> HandledRecord:
    """One record of a node's journal.  Raises ``PeerError``."""
    try:
        request, head, *bodies, tail = codec.unpack(record, JOURNAL_RECORD_BYTES_MAX)
        n, *heads = header(head)
        choices, records = codec.unpack(tail, ZMQ_MESSAGE_BYTES_MAX)
        return HandledRecord(
            n=n,
            id=request,
            messages=list(zip(heads, bodies, strict=True)),
            choices=[tuple(choice) for choice in choices],
            records=[codec.record_from(value) for value in records],
        )
    except (TypeError, ValueError) as error:
        raise PeerError(f"not a handled record: {error}") from None


def read_journal_choices(record: bytes) -> tuple[int, str, Choices]:
    """Delivery, id and choices of one record of a node's journal.  Raises ``PeerError``."""
    try:
        request, head, *_, tail = codec.unpack(record, JOURNAL_RECORD_BYTES_MAX)
        choices, _records = codec.unpack(tail, ZMQ_MESSAGE_BYTES_MAX)
        return header(head)[0], request, [tuple(choice) for choice in choices]
    except (TypeError, ValueError) as error:
        raise PeerError(f"not a handled record: {error}") from None


def journal_record_number(record: bytes) -> int:
    """The delivery number of a node's journal record.  Raises ``PeerError``."""
    try:
        n = header(codec.unpack(record, JOURNAL_RECORD_BYTES_MAX)[1])[0]
    except (TypeError, LookupError) as error:
        raise PeerError(f"not a handled record: {error}") from None
    if type(n) is not int:
        raise PeerError("delivery number is not a number")
    return n
