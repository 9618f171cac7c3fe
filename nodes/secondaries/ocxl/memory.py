"""What the driver of OpenCAPI links keeps in memory: ``struct ocxl_link`` of each."""

from __future__ import annotations

from collections.abc import Mapping

from mmurace.nodes.book3s64 import Book3s64Memory, lowest_free
from mmurace.nodes.driver import Handler, Port
from mmurace.nodes.secondaries.ocxl import messages as o
from mmurace.nodes.secondaries.ocxl.part import Link, first_context_ids
from mmurace.nodes.secondaries.ocxl.variant import OcxlSwitches
from mmurace.nodes.world import World
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.errors import EmulatorError
from mmurace.protocol.messages.base import Ack, Message
from mmurace.protocol.messages.book3s64 import MmName
from mmurace.protocol.messages.memory import Count


class OcxlMemory(Book3s64Memory):
    """``memory`` with the links: contexts, process elements, whose faults are whose."""

    def __init__(self, name: str, world: World, port: Port) -> None:
        super().__init__(name, world, port)
        self.pasids: dict[tuple[str, int], str] = {}
        """(link, PASID) -> whose context it is."""
        self.spa: dict[tuple[str, int], int] = {}
        """(link, PASID) -> PID of a valid process element."""
        self.pe_tree: dict[tuple[str, int], str] = {}
        self.closed: list[tuple[str, int]] = []
        """Contexts that somebody is about to take down."""
        links = world.parts_of(Link)
        self.context_ids = first_context_ids(world)
        self.given = {("pid", pid): mm for mm, pid in self.context_ids.items()}
        for link in links:
            for pasid, mm in link.contexts():
                self._attached(link.name, pasid, mm)

    def _attached(self, link: str, pasid: int, mm: str) -> None:
        """A context that is there from the start."""
        self.pasids[link, pasid] = self.pe_tree[link, pasid] = mm
        self.given[link, pasid] = mm
        self.spa[link, pasid] = self.context_ids[mm]
        self.mm_counts[mm] += 1
        if OcxlSwitches.of(self.world.kernel).ocxl_counts_copro:
            self.copros[mm] += 1
            self.active_extra[mm] = 1

    def handlers(self) -> Mapping[type[Message], Handler]:
        """Those of any memory of the machine, and those of the links."""
        return {
            **super().handlers(),
            o.SpaLock: self.spa_lock, o.SpaUnlock: self.spa_unlock,
            o.AtsdLock: self.atsd_lock, o.AtsdUnlock: self.atsd_unlock,
            o.PasidAlloc: self.pasid_alloc, o.PasidFind: self.pasid_find,
            o.ContextClose: self.context_close, o.PasidFree: self.pasid_free,
            o.SpaStore: self.spa_store, o.SpaLoad: self.spa_load,
            o.PeTreeInsert: self.pe_tree_insert, o.PeTreeLookup: self.pe_tree_lookup,
            o.PeTreeDelete: self.pe_tree_delete,
        }  # fmt: skip

    def spa_lock(self, message: o.SpaLock, envelope: Envelope) -> Ack | None:
        """Grant a link's ``spa_lock``, now or in turn."""
        return self._acquire(("spa_lock", message.link), envelope.id, True)

    def spa_unlock(self, message: o.SpaUnlock, _: Envelope) -> Ack:
        """Release it."""
        return self._release(("spa_lock", message.link))

    def atsd_lock(self, message: o.AtsdLock, envelope: Envelope) -> Ack | None:
        """Grant a link's ``atsd_lock``, now or in turn."""
        return self._acquire(("atsd_lock", message.link), envelope.id, True)

    def atsd_unlock(self, message: o.AtsdUnlock, _: Envelope) -> Ack:
        """Release it."""
        return self._release(("atsd_lock", message.link))

    def _pasid(self, link: str, mm: str) -> int:
        owned = (pasid for (at, pasid), own in self.pasids.items() if (at, own) == (link, mm))
        return next(owned, 0)

    def pasid_alloc(self, message: o.PasidAlloc, _: Envelope) -> Count:
        """Give a process a context on a link."""
        link, mm = message.link, message.mm
        if self._pasid(link, mm):
            return Count(0)
        pasid = lowest_free({p for own, p in self.pasids if own == link})
        self.pasids[link, pasid] = mm
        self._given("pasid_reused", (link, pasid), mm)
        return Count(pasid)

    def pasid_find(self, message: o.PasidFind, _: Envelope) -> Count:
        """The context that a process has there."""
        return Count(self._pasid(message.link, message.mm))

    def context_close(self, message: o.ContextClose, _: Envelope) -> Count:
        """Whoever comes first closes it."""
        key = message.link, self._pasid(message.link, message.mm)
        self.port.touch(("pe_tree", message.link), "read")
        if key not in self.pe_tree or key in self.closed:
            return Count(0)
        self.closed.append(key)
        return Count(key[1])

    def pasid_free(self, message: o.PasidFree, _: Envelope) -> Ack:
        """The number is free."""
        if self.pasids.pop((message.link, message.pasid), None) is None:
            raise EmulatorError(f"PASID {message.pasid} of {message.link} is not in use")
        self.closed.remove((message.link, message.pasid))
        return Ack()

    def spa_store(self, message: o.SpaStore, _: Envelope) -> Ack:
        """Write or clear a process element."""
        key = (message.link, message.pasid)
        if message.pid:
            self.spa[key] = message.pid
        else:
            self.spa.pop(key, None)
        return Ack()

    def spa_load(self, message: o.SpaLoad, _: Envelope) -> Count:
        """A process element."""
        return Count(self.spa.get((message.link, message.pasid), 0))

    def pe_tree_insert(self, message: o.PeTreeInsert, _: Envelope) -> Ack:
        """Note whose faults they are."""
        self.pe_tree[message.link, message.pasid] = message.mm
        return Ack()

    def pe_tree_lookup(self, message: o.PeTreeLookup, _: Envelope) -> MmName:
        """Whose faults they are."""
        return MmName(self.pe_tree.get((message.link, message.pasid), ""))

    def pe_tree_delete(self, message: o.PeTreeDelete, _: Envelope) -> MmName:
        """Nobody's any more."""
        return MmName(self.pe_tree.pop((message.link, message.pasid), ""))
