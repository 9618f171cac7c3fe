"""A bus master behind an IOMMU: its programs are loads and stores to virtual addresses."""

from __future__ import annotations

from collections.abc import Mapping

from nodes.driver import Handler, Port
from nodes.kernel.errno import EFAULT
from nodes.node import Node
from nodes.world import World
from protocol.envelope import Envelope
from protocol.messages import program as op
from protocol.messages.base import Message
from protocol.messages.iommu import DmaAccess
from protocol.records import OpBegin, OpEnd


class Device(Node):
    """The ``device`` node."""

    def __init__(self, name: str, world: World, port: Port) -> None:
        super().__init__(name, world, port)
        self.iommu = next(unit.name for unit in world.units if name in unit.devices)

    def handlers(self) -> Mapping[type[Message], Handler]:
        """Operations only: nobody else talks to a device."""
        return {op.Dma: self.dma}

    async def dma(self, operation: op.Dma, _: Envelope) -> op.OpDone:
        """One DMA: 0, or -EFAULT if the unit could not resolve its fault."""
        self.port.emit(
            OpBegin(
                "Dma", operation.mm, operation.address, operation.address + 1, self.port.operation
            )
        )
        access = DmaAccess(operation.mm, operation.address, operation.write, operation.value)
        done = await self.port.call(self.iommu, access)
        result = 0 if done.ok else -EFAULT
        self.port.emit(OpEnd("Dma", result, self.port.operation))
        return op.OpDone(result)
