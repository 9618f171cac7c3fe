"""An OpenCAPI link with its accelerator: process elements, and translations tagged by their PID.

The accelerator (AFU) says a PASID and an address.  The link finds the PID in the process element of
the PASID, which it may keep, and the translation under the PID, for which it walks the page table
that the process table names.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmurace.nodes.driver import Handler, Port
from mmurace.nodes.kernel.errno import EFAULT, EINVAL
from mmurace.nodes.node import Node
from mmurace.nodes.pwc import mapped_by_tables
from mmurace.nodes.secondaries.ocxl import messages as o
from mmurace.nodes.secondaries.ocxl.messages import AfuTouch
from mmurace.nodes.secondaries.ocxl.part import Link
from mmurace.nodes.translation import (
    Attempts,
    Entry,
    TranslationCache,
    Walk,
    data_access,
    table_index,
)
from mmurace.nodes.world import MEMORY, World
from mmurace.protocol import pte as ptes
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.base import Ack, Message
from mmurace.protocol.messages.book3s64 import ProcessTableLoad, Tlbie, pid_tag
from mmurace.protocol.messages.memory import PteLoad, PteWalk
from mmurace.protocol.records import FaultRetry, OpBegin, OpEnd, PermissionFault

XSL = "xsl"


class Ocxl(Node):
    """The ``ocxl`` node."""

    def __init__(self, name: str, world: World, port: Port) -> None:
        super().__init__(name, world, port)
        self.link = next(link for link in world.parts_of(Link) if link.name == name)
        self.xsl = TranslationCache(XSL, world, port)
        self.pe_cache: dict[int, int] = {}
        """PASID -> PID of a process element that was loaded."""
        self.pe_loads: list[Walk] = []
        """Loads of process elements in flight; stale once the element was dropped."""
        self.contexts = {mm: pasid for pasid, mm in self.link.contexts()}
        """What the accelerator works for: mm -> PASID."""
        self.working: list[int] = []
        """PASIDs under which it works now, once for each operation."""
        self.fault_pending = False

    def handlers(self) -> Mapping[type[Message], Handler]:
        """The accelerator's programs, invalidations, and the driver's commands."""
        return {
            AfuTouch: self.afu_touch,
            Tlbie: self.invalidate,
            o.AtsdLaunch: self.invalidate,
            o.SpaClearCache: self.spa_clear_cache,
            o.AfuStart: self.afu_start,
            o.TerminatePasid: self.terminate_pasid,
        }

    async def invalidate(self, message: Tlbie | o.AtsdLaunch, _: Envelope) -> Ack:
        """Drop translations; complete once no access through them is left.

        A walk may be in a table of the range that is to be freed, whatever page it is for.
        """
        tables = mapped_by_tables(self.world, message.start, message.end)
        await self.xsl.invalidate(pid_tag(message.pid), message.start, message.end, tables)
        return Ack()

    # -- the driver ----------------------------------------------------------------------

    async def spa_clear_cache(self, message: o.SpaClearCache, _: Envelope) -> Ack:
        """Forget a process element; a load of it that is in flight is thrown away."""
        self.pe_cache.pop(message.pasid, None)
        stale = [load for load in self.pe_loads if load.address == message.pasid]
        for load in stale:
            load.stale = True
        while any(load in self.pe_loads for load in stale):
            await self.port.park("process element")
        return Ack()

    def afu_start(self, message: o.AfuStart, _: Envelope) -> Ack:
        """Work for a process from here on."""
        self.contexts[message.mm] = message.pasid
        return Ack()

    async def terminate_pasid(self, message: o.TerminatePasid, _: Envelope) -> Ack:
        """Finish what is under way under a PASID, and begin nothing new."""
        self.contexts = {m: p for m, p in self.contexts.items() if p != message.pasid}
        while message.pasid in self.working:
            await self.port.park("accelerator idle")
        return Ack()

    # -- the accelerator -----------------------------------------------------------------

    async def afu_touch(self, operation: AfuTouch, _: Envelope) -> op.OpDone:
        """One access: 0, -EFAULT if its fault was not resolved, -EINVAL without a context."""
        mm, address = operation.mm, operation.address
        self.port.emit(OpBegin("AfuTouch", mm, address, address + 1, self.port.operation))
        pasid = self.contexts.get(mm, 0)
        result = -EINVAL
        if pasid:
            self.working.append(pasid)
            result = await self._access(operation, pasid)
            self.working.remove(pasid)
            self.port.wake("accelerator idle")
        self.port.emit(OpEnd("AfuTouch", result, self.port.operation))
        return op.OpDone(result)

    async def _access(self, operation: AfuTouch, pasid: int) -> int:
        """Translate and access; a fault is raised to the driver, and tried again after it."""
        mm, address, write = operation.mm, operation.address, operation.write
        attempts = Attempts()
        while True:
            if attempts.refusals > 1:
                self.port.emit(FaultRetry(mm, address, write, "xsl fault", self.port.operation))
            pid = await self._process_element(pasid)
            entry = await self._translate(pid, address, write) if pid else None
            if entry is not None:
                await data_access(self.xsl, entry, address, write, operation.value)
                return 0
            denied_by = self.xsl.denied_by(pid_tag(pid), address) if pid else ""
            if not await self._fault(pasid, address, write):
                return -EFAULT
            if not attempts.refused(denied_by):
                return -EFAULT

    async def _fault(self, pasid: int, address: int, write: bool) -> bool:
        """Interrupt the driver; the next one waits for its answer (``ack_irq``)."""
        while self.fault_pending:
            await self.port.park("xsl fault")
        self.fault_pending = True
        fault = o.XslFault(self.name, pasid, address, write)
        restart = (await self.port.call(self.link.fault_cpu, fault)).value
        self.fault_pending = False
        self.port.wake("xsl fault")
        return restart

    # -- translation ---------------------------------------------------------------------

    async def _process_element(self, pasid: int) -> int:
        """The PID of a PASID, kept or loaded; 0 if its element is not valid."""
        while pasid not in self.pe_cache:
            load = Walk("", pasid, self.port.upcoming)
            self.pe_loads.append(load)
            pid = (await self.port.call(MEMORY, o.SpaLoad(self.name, pasid))).value
            self.pe_loads.remove(load)
            if load.stale:
                self.port.wake("process element")
            elif pid:
                self.pe_cache[pasid] = pid
            else:
                return 0
        return self.pe_cache[pasid]

    async def _translate(self, pid: int, address: int, write: bool) -> Entry | None:
        """A kept translation or a walk; None is a fault.

        The nest MMU of POWER9 faults on an entry that is too weak; others walk again.
        """
        entry = self.xsl.lookup(pid_tag(pid), address)
        if entry is not None and ptes.serves(entry.pte, write):
            return entry
        if entry is not None:
            if (
                not ptes.permits(entry.pte, write)
                and not self.world.kernel.arch.refetch_on_perm_fault
            ):
                self.port.emit(PermissionFault(XSL, entry.fill, write))
                return None
            self.xsl.evict(entry)
        return await self._walk(pid, address, write)

    async def _walk(self, pid: int, address: int, write: bool) -> Entry | None:
        """Through the process table and the page table; again if an invalidation overlaps it."""
        while True:
            walk = self.xsl.begin_walk(pid_tag(pid), address)
            table = await self._leaf_table(walk, pid, address)
            if table >= 0 and not walk.stale:
                source = self.port.upcoming
                leaf = PteWalk(table, table_index(self.world, 0, address), write)
                pte = (await self.port.call(MEMORY, leaf)).pte
                self.xsl.touch(walk.tag, address, "read")  # whether the walk is stale
                if not walk.stale and ptes.permits(pte, write):
                    return self.xsl.fill(walk, pte, source)
            stale = walk.stale
            self.xsl.end_walk(walk)
            if not stale:
                return None

    async def _leaf_table(self, walk: Walk, pid: int, address: int) -> int:
        """The table with the leaf entry; -1 if there is none."""
        mm = (await self.port.call(MEMORY, ProcessTableLoad(pid))).mm
        self.xsl.touch(walk.tag, address, "read")  # whether the walk is stale
        if not mm or address >= self.world.address_end():
            return -1
        table = self.world.pgd(mm)
        for level in range(self.world.levels - 1, 0, -1):
            index = table_index(self.world, level, address)
            upper = (await self.port.call(MEMORY, PteLoad(table, index))).pte
            self.xsl.touch(walk.tag, address, "read")
            if walk.stale or not ptes.hw_present(upper):
                return -1
            table = ptes.frame_of(upper)
        return table
