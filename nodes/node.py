"""What every node is: a name, the world it is part of, a port, and handlers by message class."""

from __future__ import annotations

from collections.abc import Mapping

from nodes.driver import Handler, Port
from nodes.world import World
from protocol.messages.base import Message


class Node:
    """Base of all nodes.  State is plain values, so that it can be fingerprinted."""

    def __init__(self, name: str, world: World, port: Port) -> None:
        self.name, self.world, self.port = name, world, port

    def handlers(self) -> Mapping[type[Message], Handler]:
        """Which function handles which message.

        It gets (message, envelope) and returns the reply, None (``port.reply`` later), or a
        coroutine that returns the reply.
        """
        raise NotImplementedError
