"""A bus master behind an IOMMU: its programs are loads and stores to virtual addresses.

Without ATS the unit translates each access.  With ATS the device asks the unit for translations,
keeps them in its ATC and goes to memory by itself, so they must be invalidated there too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mmurace.nodes.driver import Handler, Port
from mmurace.nodes.kernel.errno import EFAULT, ENODEV
from mmurace.nodes.node import Node
from mmurace.nodes.secondaries.iommu_sva.messages import (
    AtsTranslate,
    Dma,
    DmaAccess,
    InvalidateRequest,
    PriRequest,
    SurpriseDown,
)
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.iommu_sva.variant import SvaSwitches
from mmurace.nodes.translation import Attempts, Entry, TranslationCache, data_access
from mmurace.nodes.world import World
from mmurace.protocol import pte as ptes
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.base import Ack, Message
from mmurace.protocol.records import FaultRetry, OpBegin, OpEnd

DOWN: Final = "link down"
"""What waits for this waits for ever."""


class Device(Node):
    """The ``device`` node."""

    def __init__(self, name: str, world: World, port: Port) -> None:
        super().__init__(name, world, port)
        unit = world.part_of(name)
        assert isinstance(unit, Unit)
        self.iommu, self.ats = unit.name, unit.ats
        self.atc = TranslationCache("atc", world, port)
        self.gone = False
        """It has been pulled out."""

    def handlers(self) -> Mapping[type[Message], Handler]:
        """Operations, invalidations by the unit, and the end of the link to it."""
        return {
            Dma: self.dma,
            InvalidateRequest: self.invalidate,
            SurpriseDown: self.surprise_down,
        }

    async def surprise_down(self, _message: SurpriseDown, _: Envelope) -> Ack:
        """It is pulled out: its ATC is gone, and it begins no access any more.

        cpu1 (hotplug worker)               device              cpu0 (munmap)
                                            link down: the ATC
                                            and all in it are gone
        the unit forgets the device         (answers nothing)   ATC invalidation: left out, or
                                                                a time-out, here an answer
                                                                frees the page
                                            [Required: sends nothing any more]
        """
        self.gone = True
        await self.atc.lose_all()
        return Ack()

    async def invalidate(self, message: InvalidateRequest, _: Envelope) -> Ack:
        """Drop translations; complete once no access through them is left.

        A translation request that overlaps it is answered first, and its answer thrown away.  A
        device that is gone answers nothing; that this is answered is the time-out.
        """
        if self.gone and not SvaSwitches.of(self.world.kernel).ats_gives_up:
            await self.port.park(DOWN)
        await self.atc.invalidate(message.pasid, message.start, message.end)
        return Ack()

    async def dma(self, operation: Dma, _: Envelope) -> op.OpDone:
        """One DMA: 0, -EFAULT if the unit could not resolve its fault, -ENODEV if it is gone."""
        self.port.emit(
            OpBegin(
                "Dma", operation.mm, operation.address, operation.address + 1, self.port.operation
            )
        )
        result = -ENODEV
        if not self.gone:
            result = await (
                self._translated(operation) if self.ats else self._untranslated(operation)
            )
        self.port.emit(OpEnd("Dma", result, self.port.operation))
        return op.OpDone(result)

    async def _untranslated(self, operation: Dma) -> int:
        """The unit translates and does the access."""
        access = DmaAccess(operation.mm, operation.address, operation.write, operation.value)
        return 0 if (await self.port.call(self.iommu, access)).ok else -EFAULT

    async def _translated(self, operation: Dma) -> int:
        """Through the ATC; what the unit cannot translate becomes a page request."""
        mm, address, write = operation.mm, operation.address, operation.write
        attempts = Attempts()
        while True:
            if attempts.refusals > 1:
                self.port.emit(FaultRetry(mm, address, write, "page request", self.port.operation))
            entry, denied_by = await self._translate(mm, address, write)
            if entry is not None:
                await data_access(self.atc, entry, address, write, operation.value)
                return 0
            if self.gone:
                return -ENODEV
            if not (await self.port.call(self.iommu, PriRequest(mm, address, write))).value:
                return -EFAULT
            if self.gone:
                return -ENODEV
            if not attempts.refused(denied_by):
                return -EFAULT

    async def _translate(self, mm: str, address: int, write: bool) -> tuple[Entry | None, str]:
        """From the ATC, else by a translation request; again if an invalidation overlaps it.

        With None comes the unit's fill that denies it, if one does.
        """
        entry = self.atc.lookup(mm, address)
        if entry is not None and ptes.serves(entry.pte, write):
            return entry, ""
        if entry is not None:
            self.atc.evict(entry)
        while True:
            walk = self.atc.begin_walk(mm, address)
            reply = await self.port.call(self.iommu, AtsTranslate(mm, address, write))
            self.atc.touch(mm, address, "read")  # whether the walk is stale
            if not walk.stale and ptes.permits(reply.pte, write):
                return self.atc.fill(walk, reply.pte, reply.fill, walk.load), ""
            stale = walk.stale
            self.atc.end_walk(walk)
            if not stale or self.gone:
                return None, reply.fill
