"""An IOMMU that walks the CPU's own page table (SVA), with its IOTLB and command queue."""

from __future__ import annotations

from collections.abc import Mapping

from mmurace.nodes.driver import Handler, Port
from mmurace.nodes.node import Node
from mmurace.nodes.pwc import PWC, PagingStructureCache, mapped_by_tables
from mmurace.nodes.secondaries.iommu_sva import messages as i
from mmurace.nodes.secondaries.iommu_sva.driver import unit_named
from mmurace.nodes.secondaries.iommu_sva.messages import InvalidateRequest, PageRequest
from mmurace.nodes.translation import (
    Attempts,
    Entry,
    TranslationCache,
    data_access,
    walk_page_table,
)
from mmurace.nodes.world import World
from mmurace.protocol import pte as ptes
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.messages.base import Ack, Message
from mmurace.protocol.messages.memory import Flag, Word
from mmurace.protocol.messages.processor import (
    Tlbi,
)
from mmurace.protocol.records import FaultRetry, InvalidateBegin, InvalidateDone, PermissionFault


class Iommu(Node):
    """The ``iommu`` node.  A PASID is named after the mm that it is bound to."""

    def __init__(self, name: str, world: World, port: Port) -> None:
        super().__init__(name, world, port)
        self.iotlb = TranslationCache("iotlb", world, port)
        self.unit = unit_named(world, name)
        self.pwc = PagingStructureCache(world, port) if self.unit.pwc else None
        self.devices = self.unit.devices
        """Those that have not been removed."""

    def handlers(self) -> Mapping[type[Message], Handler]:
        """Accesses of devices, commands of the driver, and with BTM the CPUs' broadcasts."""
        return {
            i.DmaAccess: self.dma,
            i.IotlbInvalidate: self.invalidate,
            i.AtsTranslate: self.ats_translate,
            i.PriRequest: self.pri_request,
            i.AtcInvalidate: self.atc_invalidate,
            i.DetachDevice: self.detach_device,
            Tlbi: self.tlbi,
        }

    async def invalidate(self, message: i.IotlbInvalidate, _: Envelope) -> Ack:
        """A command and its sync: complete once no access through an old entry is left."""
        await self._invalidate(message.pasid, message.start, message.end, message.leaf)
        return Ack()

    async def _invalidate(self, pasid: str, start: int, end: int, leaf: bool) -> None:
        """Translations, and unless it is for leaves only the tables that lead to them.

        device, by another address          cpu (munmap)
        walk: has read the upper entry, or goes through a kept one
                                            flush of a page that the same table maps
                                            [Required: no acknowledgement yet]
        reads the leaf                      acknowledgement; the table may be freed
        """
        tables = None if leaf else mapped_by_tables(self.world, start, end)
        if self.pwc is None or leaf:
            await self.iotlb.invalidate(pasid, start, end, tables)
            return
        fills = self.pwc.drop(pasid, start, end)
        self.port.emit(InvalidateBegin(PWC, pasid, start, end, fills))
        await self.iotlb.invalidate(pasid, start, end, tables)
        self.port.emit(InvalidateDone(PWC, pasid, start, end, fills))

    async def ats_translate(self, message: i.AtsTranslate, _: Envelope) -> i.Translation:
        """A translation request: from the IOTLB, or a walk."""
        entry = None
        if message.pasid in self.unit.mms:
            entry = await self._translate(message.pasid, message.address, message.write)
        if entry is None:
            return i.Translation(0, self.iotlb.denied_by(message.pasid, message.address))
        return i.Translation(entry.pte, entry.fill)

    async def pri_request(self, message: i.PriRequest, _: Envelope) -> Flag:
        """A page request of a device goes to the workqueue."""
        if message.pasid not in self.unit.mms:
            return Flag(False)
        request = PageRequest(message.pasid, message.address, message.write)
        return await self.port.call(self.unit.iopf_cpu, request)

    async def atc_invalidate(self, message: i.AtcInvalidate, _: Envelope) -> Ack:
        """Pass the command on to every device and wait for all of them.

        One that is gone does not answer; the command then times out, and its translations are
        gone with it (``arm_smmu_cmdq_skip_err``: ``CERROR_ATC_INV``).
        """
        request = InvalidateRequest(message.pasid, message.start, message.end)
        posted = [self.port.post(name, request, f"{name}.atc") for name in self.devices]
        await self.port.settle(posted)
        return Ack()

    def detach_device(self, message: i.DetachDevice, _: Envelope) -> Ack:
        """Nothing is passed on to that device from here on."""
        self.devices = tuple(name for name in self.devices if name != message.device)
        return Ack()

    async def tlbi(self, message: Tlbi, _: Envelope) -> Ack:
        """Broadcast TLB maintenance, where the unit takes part in it."""
        await self._invalidate(message.mm, message.start, message.end, False)
        return Ack()

    async def dma(self, message: i.DmaAccess, _: Envelope) -> i.DmaDone:
        """Translate and do a device's access; a fault becomes a page request."""
        if message.pasid not in self.unit.mms:
            return i.DmaDone(False, 0)
        attempts = Attempts()
        while True:
            if attempts.refusals > 1:
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
            denied_by = self.iotlb.denied_by(message.pasid, message.address)
            if not (await self.port.call(self.unit.iopf_cpu, request)).value:
                return i.DmaDone(False, 0)
            if not attempts.refused(denied_by):
                return i.DmaDone(False, 0)

    async def _try(self, message: i.DmaAccess) -> Message | None:
        """One attempt; None is a fault."""
        entry = await self._translate(message.pasid, message.address, message.write)
        if entry is None:
            return None
        return await data_access(self.iotlb, entry, message.address, message.write, message.value)

    async def _translate(self, pasid: str, address: int, write: bool) -> Entry | None:
        """Through the IOTLB or a walk; None is a fault.

        A unit that does not refetch faults on an entry that is too weak, as often as it is
        asked, until somebody invalidates the entry (SMMU); others walk again.
        """
        entry = self.iotlb.lookup(pasid, address)
        if entry is not None and not ptes.permits(entry.pte, write):
            if not self.world.kernel.arch.refetch_on_perm_fault:
                self.port.emit(PermissionFault("iotlb", entry.fill, write))
                return None
            self.iotlb.evict(entry)
            entry = None
        elif entry is not None and not ptes.serves(entry.pte, write):
            self.iotlb.evict(entry)
            entry = None
        return entry or await walk_page_table(self.iotlb, pasid, address, write, self.pwc)
