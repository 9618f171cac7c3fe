"""The one place where values become bytes and bytes become typed values.

``msgpack`` packs and unpacks; ``msgspec`` converts, strictly.  Whatever does not fit raises
``PeerError`` with the reason, so a malformed frame can be counted and dropped by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgpack
import msgspec

from mmurace.protocol import records
from mmurace.protocol.errors import PeerError
from mmurace.protocol.limits import MESSAGE_BYTES_MAX
from mmurace.protocol.messages import Message, kinds

T = TypeVar("T")

RECORD_KINDS = {cls.__name__: cls for cls in records.Record.__subclasses__()}


def pack(value: Any) -> bytes:
    """Any builtin or struct as msgpack bytes."""
    return msgpack.packb(msgspec.to_builtins(value))


def unpack(data: bytes, bytes_max: int = MESSAGE_BYTES_MAX) -> Any:
    """msgpack bytes as builtins (lists, not tuples).  Raises ``PeerError``."""
    if len(data) > bytes_max:
        raise PeerError(f"oversized: {len(data)} bytes, limit {bytes_max}")
    try:
        return msgpack.unpackb(data)
    except Exception as error:  # msgpack raises many kinds; all mean malformed
        raise PeerError(f"not msgpack: {error}") from None


def convert(value: Any, kind: type[T]) -> T:
    """Builtins as a typed value, strictly.  Raises ``PeerError``."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise PeerError(str(error)) from None


def encode_message(message: Message) -> bytes:
    """A message as bytes."""
    return pack(message)


def decode_message(data: bytes) -> Message:
    """Bytes as a message of any kind.  Raises ``PeerError``."""
    return _by_tag(unpack(data), kinds())


def record_from(value: Any) -> records.Record:
    """Builtins as a trace record of any kind.  Raises ``PeerError``."""
    return _by_tag(value, RECORD_KINDS)


def _by_tag(value: Any, known: Mapping[str, type[T]]) -> T:
    """Convert by the leading tag.  (A union would be analysed anew on every call.)"""
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise PeerError("not a tagged array")
    kind = known.get(value[0])
    if kind is None:
        raise PeerError(f"unknown kind {value[0]!r}")
    return convert(value, kind)
