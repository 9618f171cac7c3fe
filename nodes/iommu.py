"""An IOMMU that walks the CPU's own page table (SVA), with its IOTLB and command queue."""

from __future__ import annotations

from collections.abc import Mapping

from nodes.driver import Handler, Port
from nodes.node import Node
from nodes.translation import TranslationCache, data_access, walk_page_table
from nodes.world import World
from protocol import pte as ptes
from protocol.envelope import Envelope
from protocol.limits import FAULT_RETRIES_MAX
from protocol.messages import iommu as i
from protocol.messages.base import Ack, Message
from protocol.messages.memory import Word
from protocol.messages.processor import PageRequest, Tlbi
from protocol.records import FaultRetry


class Iommu(Node):
    """The ``iommu`` node.  A PASID is named after the mm that it is bound to."""

    def __init__(self, name: str, world: World, port: Port) -> None:
        super().__init__(name, world, port)
        self.iotlb = TranslationCache("iotlb", world, port)
        self.unit = next(unit for unit in world.units if unit.name == name)

    def handlers(self) -> Mapping[type[Message], Handler]:
        """Accesses of devices, commands of the driver, and with BTM the CPUs' broadcasts."""
        return {
            i.DmaAccess: self.dma,
            i.IotlbInvalidate: self.invalidate,
            Tlbi: self.tlbi,
        }

    async def invalidate(self, message: i.IotlbInvalidate, _: Envelope) -> Ack:
        """A command and its sync: complete once no access through an old entry is left."""
        await self.iotlb.invalidate(message.pasid, message.start, message.end)
        return Ack()

    async def tlbi(self, message: Tlbi, _: Envelope) -> Ack:
        """Broadcast TLB maintenance, where the unit takes part in it."""
        await self.iotlb.invalidate(message.mm, message.start, message.end)
        return Ack()

    async def dma(self, message: i.DmaAccess, _: Envelope) -> i.DmaDone:
        """Translate and do a device's access; a fault becomes a page request."""
        if message.pasid not in self.unit.mms:
            return i.DmaDone(False, 0)
        for attempt in range(FAULT_RETRIES_MAX):
            if attempt > 1:
                self.port.emit(
                    FaultRetry(
                        message.pasid,
                        message.address,
                        message.write,
                        "page request",
                        self.port.operation,
                    )
                )
            reply = await self._try(message)
            if reply is not None:
                value = reply.value if isinstance(reply, Word) else 0
                return i.DmaDone(True, value)
            request = PageRequest(message.pasid, message.address, message.write)
            if not (await self.port.call(self.unit.iopf_cpu, request)).value:
                return i.DmaDone(False, 0)
        return i.DmaDone(False, 0)

    async def _try(self, message: i.DmaAccess) -> Message | None:
        """One attempt through the IOTLB or a walk; None is a fault.

        A unit that does not refetch faults on an entry that is too weak, as often as it is
        asked, until somebody invalidates the entry (SMMU); others walk again.
        """
        entry = self.iotlb.lookup(message.pasid, message.address)
        if entry is not None and not ptes.permits(entry.pte, message.write):
            if not self.world.kernel.refetch_on_perm_fault:
                return None
            self.iotlb.evict(entry)
            entry = None
        if entry is None:
            entry = await walk_page_table(self.iotlb, message.pasid, message.address, message.write)
        if entry is None:
            return None
        return await data_access(self.iotlb, entry, message.address, message.write, message.value)
