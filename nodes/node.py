"""What every node is: a name, the world it is part of, a port, and handlers by message class."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar

from mmurace.nodes.driver import Handler, Port
from mmurace.nodes.world import World
from mmurace.protocol.messages.base import Message
from mmurace.protocol.messages.program import OpDone, Operation
from mmurace.protocol.records import OpBegin, OpEnd

Handlers = Mapping[type[Message], Handler]


class Node:
    """Base of all nodes.  State is plain values, so that it can be fingerprinted."""

    SHOWN: ClassVar[Mapping[str, Callable[[Any], Mapping[str, str]]]] = {}
    """What a debugger shows of a field, name and text, where that is not the field itself."""

    def __init__(self, name: str, world: World, port: Port) -> None:
        self.name, self.world, self.port = name, world, port

    def handlers(self) -> Handlers:
        """Which function handles which message.

        It gets (message, envelope) and returns the reply, None (``port.reply`` later), or a
        coroutine that returns the reply.
        """
        raise NotImplementedError

    async def operate(self, operation: Operation, work: Awaitable[int]) -> OpDone:
        """Do what a program asked for, from its begin to its end record; 0 or -errno."""
        kind, port = type(operation).__name__, self.port
        start = getattr(operation, "address", 0)
        end = start + getattr(operation, "length", 1)
        port.emit(OpBegin(kind, getattr(operation, "mm", ""), start, end, port.operation))
        result = await work
        port.emit(OpEnd(kind, result, port.operation))
        return OpDone(result)
