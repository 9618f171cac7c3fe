"""Nodes with next to no logic, for tests and benchmarks of what carries messages.

A ``Touch`` makes a node ask every other node in turn for a value (``PteLoad``); what else it does
hangs on the address.  All messages are real ones, so that the codec takes them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from mmurace.broker.programs import Program, Step
from mmurace.nodes.driver import Driver, Handler
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.node import Node
from mmurace.nodes.packing import pack_world
from mmurace.nodes.secondaries.iommu_sva.messages import Dma
from mmurace.nodes.world import World
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.messages.base import Message
from mmurace.protocol.messages.memory import PteLoad, PteValue, PtlLock
from mmurace.protocol.messages.program import (
    OpDone,
    Touch,
)
from mmurace.protocol.records import Access, OpBegin

NODES = ("cpu0", "cpu1", "cpu2")
BUILD = "tests.toy:build"

RAISE, HANG, DIE = 1, 2, 3
"""Addresses of a ``Touch`` that fails, is never answered, or kills its process."""


def world(nodes: tuple[str, ...] = NODES) -> bytes:
    """A world whose CPUs are the toy nodes, packed."""
    return pack_world(World(kernel=preset("v6.6.5"), cpus=nodes))


def build(name: str, of: World, seed: int) -> Driver:
    """The driver of one toy node (see ``nodes.build.build``)."""
    driver = Driver(name, seed)
    node = Toy(name, of, driver.port)
    driver.handlers = node.handlers()
    driver.node = node
    return driver


class Toy(Node):
    """Counts, chooses, records, asks around."""

    count = 0

    def handlers(self) -> Mapping[type[Message], Handler]:
        """See the module's docstring."""
        return {Touch: self.touch, PteLoad: self.load, PtlLock: self.never, Dma: self.relay}

    def load(self, message: PteLoad, envelope: Envelope) -> Message:
        """A value that depends on the order of deliveries here."""
        self.count += 1
        self.port.emit(Access(message.table, message.index, False, self.count))
        return PteValue(self.count)

    def never(self, message: PtlLock, envelope: Envelope) -> None:
        """No answer, ever."""

    def touch(self, message: Touch, envelope: Envelope) -> Coroutine[Any, Any, Message]:
        """Ask everybody."""
        if message.address == RAISE:
            raise RuntimeError("as told")
        if message.address == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._touch(message)

    async def _touch(self, message: Touch) -> Message:
        self.port.emit(OpBegin("Touch", self.name, message.address, self.port.choose("toy", 7)))
        others = [name for name in self.world.cpus if name != self.name]
        if message.address == HANG:
            await self.port.call(others[0], PtlLock(0))
        total = 0
        for other in others:
            total += (await self.port.call(other, PteLoad(message.address, message.value))).pte
        await self.port.gather((other, PteLoad(0, total)) for other in others)
        return OpDone(total)

    def relay(self, message: Dma, envelope: Envelope) -> Coroutine[Any, Any, Message]:
        """For the benchmark: ``value`` calls to the node after this one, one at a time."""
        return self._relay(message)

    async def _relay(self, message: Dma) -> Message:
        cpus = self.world.cpus
        target = cpus[(cpus.index(self.name) + 1) % len(cpus)]
        for index in range(message.value):
            await self.port.call(target, PteLoad(message.address, index))
        return OpDone(0)


@dataclass(frozen=True)
class Touches:
    """Steps of a toy program."""

    count: int
    address: int = 0x1000

    def __iter__(self) -> Any:
        return (Step(Touch("mm0", self.address, True, n)) for n in range(self.count))


def programs(count: int, nodes: tuple[str, ...] = NODES, each: int = 1) -> tuple[Program, ...]:
    """``each`` programs per node of so many touches."""
    return tuple(
        Program(f"{name}-{index}", name, Touches(count)) for name in nodes for index in range(each)
    )
