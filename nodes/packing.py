"""A world as bytes, for another process."""

from __future__ import annotations

import msgspec

from mmurace.nodes.world import World, from_plain, to_plain
from mmurace.protocol import codec, limits
from mmurace.protocol.errors import PeerError


def read_world(data: bytes) -> World:
    """The world that ``pack_world`` made bytes of.  Raises ``PeerError``."""
    try:
        return from_plain(codec.unpack(data, limits.ZMQ_MESSAGE_BYTES_MAX))
    except (msgspec.ValidationError, LookupError, TypeError, ValueError) as error:
        raise PeerError(f"no world: {error}") from None


def pack_world(world: World) -> bytes:
    """A world as bytes, for another process."""
    return codec.pack(to_plain(world))
