"""The ``memory`` node of a POWER machine: MMU contexts, and what the driver of links keeps."""

from __future__ import annotations

from collections.abc import Mapping

from nodes.driver import Handler, Port
from nodes.memory import Memory
from nodes.world import World
from protocol.envelope import Envelope
from protocol.errors import EmulatorError
from protocol.messages import ocxl as o
from protocol.messages.base import Ack, Message
from protocol.messages.memory import Count
from protocol.messages.ocxl import MmName, pid_tag
from protocol.records import Coverage, Registered, TagAlloc, TagFree


def lowest_free(used: set[int]) -> int:
    """As ``ida_alloc`` gives numbers out: the lowest from 1, so that one is used again at once."""
    return next(number for number in range(1, len(used) + 2) if number not in used)


class PowerMemory(Memory):
    """``memory`` with ``mm->context`` of book3s64 and ``struct ocxl_link`` of each link."""

    def __init__(self, name: str, world: World, port: Port) -> None:
        super().__init__(name, world, port)
        self.context_ids = world.context_ids()
        self.mm_counts = dict.fromkeys(world.mms, 1)
        self.copros = dict.fromkeys(world.mms, 0)
        self.active_extra = dict.fromkeys(world.mms, 0)
        self.pasids: dict[tuple[str, int], str] = {}
        """(link, PASID) -> whose context it is."""
        self.spa: dict[tuple[str, int], int] = {}
        """(link, PASID) -> PID of a valid process element."""
        self.pe_tree: dict[tuple[str, int], str] = {}
        self.given = {("pid", pid): mm for mm, pid in self.context_ids.items()}
        """Number -> whose it was last."""
        for link in world.links:
            for pasid, mm in link.contexts():
                self._attached(link.name, pasid, mm)

    def _attached(self, link: str, pasid: int, mm: str) -> None:
        """A context that is there from the start."""
        self.pasids[link, pasid] = self.pe_tree[link, pasid] = mm
        self.given[link, pasid] = mm
        self.spa[link, pasid] = self.context_ids[mm]
        self.mm_counts[mm] += 1
        if self.world.kernel.ocxl_counts_copro:
            self.copros[mm] += 1
            self.active_extra[mm] = 1

    def handlers(self) -> Mapping[type[Message], Handler]:
        """Those of any memory, and one for each message of ``protocol.messages.ocxl`` to it."""
        return {
            **super().handlers(),
            o.ContextIdAlloc: self.context_id_alloc, o.ContextIdLoad: self.context_id_load,
            o.Mmgrab: self.mmgrab, o.Mmdrop: self.mmdrop,
            o.ProcessTableLoad: self.process_table_load,
            o.ActiveCpusLoad: self.active_cpus_load, o.ActiveCpusAdd: self.active_cpus_add,
            o.CoprosAdd: self.copros_add, o.NotifierAdd: self.notifier_add,
            o.SpaLock: self.spa_lock, o.SpaUnlock: self.spa_unlock,
            o.AtsdLock: self.atsd_lock, o.AtsdUnlock: self.atsd_unlock,
            o.PasidAlloc: self.pasid_alloc, o.PasidFind: self.pasid_find,
            o.PasidFree: self.pasid_free,
            o.SpaStore: self.spa_store, o.SpaLoad: self.spa_load,
            o.PeTreeInsert: self.pe_tree_insert, o.PeTreeLookup: self.pe_tree_lookup,
            o.PeTreeDelete: self.pe_tree_delete,
        }  # fmt: skip

    # -- mm->context ---------------------------------------------------------------------

    def context_id_alloc(self, message: o.ContextIdAlloc, _: Envelope) -> Count:
        """Give the mm a PID if it has none."""
        mm = message.mm
        self.mm_counts[mm] = max(self.mm_counts[mm], 1)
        if mm not in self.context_ids:
            pid = self.context_ids[mm] = lowest_free(set(self.context_ids.values()))
            self._given("pid_reused", ("pid", pid), mm)
            self.port.emit(TagAlloc(pid_tag(pid), mm))
        return Count(self.context_ids[mm])

    def context_id_load(self, message: o.ContextIdLoad, _: Envelope) -> Count:
        """The mm's PID."""
        return Count(self.context_ids.get(message.mm, 0))

    def mmgrab(self, message: o.Mmgrab, _: Envelope) -> Ack:
        """Take a reference to the mm."""
        self.mm_counts[message.mm] += 1
        return Ack()

    def mmdrop(self, message: o.Mmdrop, _: Envelope) -> Ack:
        """Drop a reference; with the last one the PID goes."""
        mm = message.mm
        if self.mm_counts[mm] == 0:
            return Ack()  # the process had ended before, and nobody has begun another one
        self.mm_counts[mm] -= 1
        if self.mm_counts[mm] == 0 and mm in self.context_ids:
            self.port.emit(TagFree(pid_tag(self.context_ids.pop(mm)), mm))
        return Ack()

    def process_table_load(self, message: o.ProcessTableLoad, _: Envelope) -> MmName:
        """Whose page table it is."""
        return MmName(next((m for m, pid in self.context_ids.items() if pid == message.pid), ""))

    def active_cpus_load(self, message: o.ActiveCpusLoad, _: Envelope) -> Count:
        """The count, which ``switch_mm`` keeps beside the mask."""
        mm = message.mm
        return Count(len(self.mms[mm].cpumask) + self.active_extra[mm])

    def active_cpus_add(self, message: o.ActiveCpusAdd, _: Envelope) -> Ack:
        """Move what coprocessors add to it."""
        self.active_extra[message.mm] += message.delta
        return Ack()

    def copros_add(self, message: o.CoprosAdd, _: Envelope) -> Count:
        """Move or read the count of contexts of coprocessors (``atomic_dec_if_positive``)."""
        self.copros[message.mm] = max(0, self.copros[message.mm] + message.delta)
        return Count(self.copros[message.mm])

    def notifier_add(self, message: o.NotifierAdd, _: Envelope) -> Ack:
        """Put a subscriber at the head of the list."""
        mm = self.mms[message.mm]
        mm.subscribers = ((message.driver, message.node), *mm.subscribers)
        self.port.emit(Registered(message.node, message.mm))
        return Ack()

    # -- struct ocxl_link ----------------------------------------------------------------

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

    def _given(self, point: str, number: tuple[str, int], mm: str) -> None:
        """Note that a number was another mm's before."""
        if self.given.get(number, mm) != mm:
            self.port.emit(Coverage(point))
        self.given[number] = mm

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

    def pasid_free(self, message: o.PasidFree, _: Envelope) -> Ack:
        """The number is free."""
        if self.pasids.pop((message.link, message.pasid), None) is None:
            raise EmulatorError(f"PASID {message.pasid} of {message.link} is not in use")
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
