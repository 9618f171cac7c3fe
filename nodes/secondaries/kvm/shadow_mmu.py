"""One VM's shadow MMU: sPTEs, mmu_lock, the invalidation counters, memslots.

The code that works on them runs on the processors that call it (``kvm_main.py``
and its neighbours); this node is the memory that they share.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from mmurace.nodes.driver import Handler, Port
from mmurace.nodes.locks import LockWord
from mmurace.nodes.node import Node
from mmurace.nodes.secondaries.kvm import messages as k
from mmurace.nodes.secondaries.kvm.kvm_main import kvm_check_memslot_overlap, vm_named
from mmurace.nodes.secondaries.kvm.variant import KvmSwitches
from mmurace.nodes.world import World
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.limits import PAGE_SHIFT, PAGE_SIZE
from mmurace.protocol.messages.base import Ack, Message
from mmurace.protocol.messages.memory import Count, Flag
from mmurace.protocol.records import (
    Evict,
    Fill,
    InvalidateBegin,
    InvalidateDone,
    Invalidation,
    SeqBumped,
)


class Spte(msgspec.Struct, frozen=True, gc=False):
    """A shadow entry and the name of its fill."""

    pte: int
    fill: str


class Gpc:
    """``struct gfn_to_pfn_cache`` (v5.17)."""

    __slots__ = ("fill", "lock", "pte", "refresh_lock", "valid")

    def __init__(self) -> None:
        self.lock, self.refresh_lock = LockWord(), LockWord()
        # lock must be held for these:
        self.valid, self.pte, self.fill = False, 0, ""


class Kvm(Node):
    """The ``kvm`` node.  All handlers are plain functions: each message is one access."""

    def __init__(self, name: str, world: World, port: Port) -> None:
        super().__init__(name, world, port)
        vm = vm_named(world, name)
        self.slots = vm.memslots() if vm.created else ()
        self.mmu_lock = LockWord()
        # mmu_lock must be held for these:
        self.sptes: dict[int, Spte] = {}
        self.mmu_invalidate_seq = 0
        self.mmu_invalidate_in_progress = 0
        self.invalidate_range = (0, 0)
        # mn_invalidate_lock (each access is one message, so it needs no word):
        self.mn_active_invalidate_count = 0
        self.active_waiters: list[str] = []
        self.retry_waiters: list[str] = []
        self.slot_waiters: list[tuple[str, k.Memslot]] = []
        """``mn_memslots_update_rcuwait``: slots that wait until no bracket is open."""

        self.gpcs = {gpa >> PAGE_SHIFT: Gpc() for gpa in vm.gpcs}

    def handlers(self) -> Mapping[type[Message], Handler]:
        """One function for each message of ``nodes.secondaries.kvm.messages``."""
        return {
            k.MemslotsLoad: self.memslots_load, k.MemslotAdd: self.memslot_add,
            k.MmuLock: self.lock, k.MmuUnlock: self.unlock,
            k.SeqRead: self.seq_read, k.SeqBump: self.seq_bump,
            k.InProgress: self.in_progress, k.ActiveInvalidate: self.active_invalidate,
            k.RetryWait: self.retry_wait,
            k.SpteLoad: self.spte_load, k.SpteScan: self.spte_scan,
            k.SpteSet: self.spte_set, k.SpteClear: self.spte_clear,
            k.GpcLock: self.gpc_lock, k.GpcUnlock: self.gpc_unlock,
            k.GpcRefreshLock: self.gpc_refresh_lock, k.GpcRefreshUnlock: self.gpc_refresh_unlock,
            k.GpcLoad: self.gpc_load, k.GpcSet: self.gpc_set, k.GpcClear: self.gpc_clear,
            k.ActiveRead: self.active_read, k.ActiveWait: self.active_wait,
        }  # fmt: skip

    def memslots_load(self, _message: k.MemslotsLoad, _: Envelope) -> k.Memslots:
        """The memslots."""
        return k.Memslots(self.slots)

    def memslot_add(self, message: k.MemslotAdd, envelope: Envelope) -> Flag | None:
        """Install a slot, or keep it until no bracket is open."""
        if message.wait and self.mn_active_invalidate_count:
            self.slot_waiters.append((envelope.id, message.slot))
            return None
        return self._installed(message.slot)

    def _installed(self, slot: k.Memslot) -> Flag:
        """Whether its guest frames are those of no slot that came meanwhile."""
        free = not kvm_check_memslot_overlap(self.slots, slot)
        if free:
            self.slots = (*self.slots, slot)
        return Flag(free)

    def lock(self, message: k.MmuLock, envelope: Envelope) -> Ack | None:
        """Grant mmu_lock, now or in turn."""
        granted = self.mmu_lock.acquire(envelope.id, message.write)
        if message.write or not granted:
            self.port.touch(("mmu_lock",))
        return Ack() if granted else None

    def unlock(self, _message: k.MmuUnlock, _: Envelope) -> Ack:
        """Release mmu_lock."""
        if self.mmu_lock.writer or self.mmu_lock.waiters:
            self.port.touch(("mmu_lock",))
        for request in self.mmu_lock.release():
            self.port.reply(request, Ack())
        return Ack()

    # -- invalidations in progress -----------------------------------------------------------

    def seq_read(self, _message: k.SeqRead, _: Envelope) -> k.Seq:
        """The sequence, the count and the range."""
        return k.Seq(
            self.mmu_invalidate_seq, self.mmu_invalidate_in_progress, *self.invalidate_range
        )

    def seq_bump(self, _message: k.SeqBump, _: Envelope) -> Ack:
        """Raise the sequence."""
        self.mmu_invalidate_seq += 1
        self.port.emit(SeqBumped(self.mmu_invalidate_seq))
        return Ack()

    def in_progress(self, message: k.InProgress, _: Envelope) -> Count:
        """Move the count; a second range is added to the first (``kvm_mmu_invalidate_begin``).

        Or it replaces the first, if the kernel does not add ranges.  What is forgotten at the end
        of one is forgotten for all.
        """
        self.mmu_invalidate_in_progress += message.delta
        count = self.mmu_invalidate_in_progress
        if message.delta > 0:
            low, high = self.invalidate_range
            alone = count == 1 or KvmSwitches.of(self.world.kernel).kvm_second_range == "replaces"
            self.invalidate_range = (
                message.start if alone else min(low, message.start),
                message.end if alone else max(high, message.end),
            )
        elif KvmSwitches.of(self.world.kernel).kvm_range_forgotten == "at_each_end":
            self.invalidate_range = (0, 0)
        self.port.emit(
            Invalidation(
                message.delta > 0, self.mmu_invalidate_seq, count, message.start, message.end
            )
        )
        if count == 0:
            waiters, self.retry_waiters = self.retry_waiters, []
            for request in waiters:
                self.port.reply(request, Ack())
        return Count(count)

    def active_invalidate(self, message: k.ActiveInvalidate, _: Envelope) -> Count:
        """Move the count of notifier brackets that are open, under or above mmu_lock."""
        self.mn_active_invalidate_count += message.delta
        if self.mn_active_invalidate_count == 0:
            waiters, self.slot_waiters = self.slot_waiters, []
            if waiters:
                self.port.touch(("memslots",))
            for request, slot in waiters:
                self.port.reply(request, self._installed(slot))
            refreshes, self.active_waiters = self.active_waiters, []
            for request in refreshes:
                self.port.reply(request, Ack())
        return Count(self.mn_active_invalidate_count)

    def active_read(self, _message: k.ActiveRead, _: Envelope) -> Count:
        """That count."""
        return Count(self.mn_active_invalidate_count)

    def active_wait(self, _message: k.ActiveWait, envelope: Envelope) -> Ack | None:
        """Answer once no bracket is open."""
        if self.mn_active_invalidate_count == 0:
            return Ack()
        self.active_waiters.append(envelope.id)
        return None

    def retry_wait(self, _message: k.RetryWait, envelope: Envelope) -> Ack | None:
        """Answer once nothing is in progress."""
        if self.mmu_invalidate_in_progress == 0:
            return Ack()
        self.retry_waiters.append(envelope.id)
        return None

    # -- shadow entries ----------------------------------------------------------------------

    def spte_load(self, message: k.SpteLoad, _: Envelope) -> k.SpteValue:
        """A vCPU's hardware reads an entry."""
        spte = self.sptes.get(message.gfn)
        return k.SpteValue(0, "") if spte is None else k.SpteValue(spte.pte, spte.fill)

    def spte_scan(self, message: k.SpteScan, _: Envelope) -> k.SpteFound:
        """The next entry in a range."""
        first, last = message.first, message.last
        return k.SpteFound(min((g for g in self.sptes if first <= g < last), default=-1))

    def spte_set(self, message: k.SpteSet, envelope: Envelope) -> Ack:
        """Install an entry."""
        old = self.sptes.get(message.gfn)
        if old is not None:
            self.port.emit(Evict("spte", old.fill))
        spte = Spte(message.pte, f"spte:{envelope.id}")
        self.sptes[message.gfn] = spte
        hva = self._hva(message.gfn)
        self.port.emit(Fill("spte", self.name, hva, spte.pte, spte.fill, message.walk))
        return Ack()

    def spte_clear(self, message: k.SpteClear, _: Envelope) -> Ack:
        """Zap an entry; the vCPUs' TLBs are flushed by a request of their own."""
        spte = self.sptes.pop(message.gfn, None)
        if spte is not None:
            hva = self._hva(message.gfn)
            for record in (InvalidateBegin, InvalidateDone):
                self.port.emit(record("spte", self.name, hva, hva + PAGE_SIZE, (spte.fill,)))
        return Ack()

    # -- gfn_to_pfn_cache --------------------------------------------------------------------

    def gpc_lock(self, message: k.GpcLock, envelope: Envelope) -> Ack | None:
        """Grant ``gpc->lock``, now or in turn."""
        granted = self.gpcs[message.gfn].lock.acquire(envelope.id, message.write)
        if message.write or not granted:
            self.port.touch(("gpc_lock", message.gfn))
        return Ack() if granted else None

    def gpc_unlock(self, message: k.GpcUnlock, _: Envelope) -> Ack:
        """Release it."""
        lock = self.gpcs[message.gfn].lock
        if lock.writer or lock.waiters:
            self.port.touch(("gpc_lock", message.gfn))
        for request in lock.release():
            self.port.reply(request, Ack())
        return Ack()

    def gpc_refresh_lock(self, message: k.GpcRefreshLock, envelope: Envelope) -> Ack | None:
        """Grant ``gpc->refresh_lock``, now or in turn."""
        return Ack() if self.gpcs[message.gfn].refresh_lock.acquire(envelope.id) else None

    def gpc_refresh_unlock(self, message: k.GpcRefreshUnlock, _: Envelope) -> Ack:
        """Release it."""
        for request in self.gpcs[message.gfn].refresh_lock.release():
            self.port.reply(request, Ack())
        return Ack()

    def gpc_load(self, message: k.GpcLoad, _: Envelope) -> k.GpcValue:
        """``valid`` and ``pfn``."""
        gpc = self.gpcs[message.gfn]
        return k.GpcValue(gpc.valid, gpc.pte, gpc.fill)

    def gpc_set(self, message: k.GpcSet, envelope: Envelope) -> Ack:
        """What a refresh writes."""
        gpc = self.gpcs[message.gfn]
        if gpc.fill:
            self.port.emit(Evict("gpc", gpc.fill))
        gpc.valid, gpc.pte = message.valid, message.pte
        gpc.fill = f"gpc:{envelope.id}" if message.pte and message.valid else ""
        if gpc.fill:
            hva = self._hva(message.gfn)
            self.port.emit(Fill("gpc", self.name, hva, gpc.pte, gpc.fill, message.walk))
        return Ack()

    def gpc_clear(self, message: k.GpcClear, _: Envelope) -> Ack:
        """``valid = false``: nobody is using it, for the lock is held."""
        gpc = self.gpcs[message.gfn]
        hva, gpc.valid = self._hva(message.gfn), False
        for record in (InvalidateBegin, InvalidateDone):
            self.port.emit(record("gpc", self.name, hva, hva + PAGE_SIZE, (gpc.fill,)))
        gpc.fill = ""
        return Ack()

    def _hva(self, gfn: int) -> int:
        """``gfn_to_hva``."""
        slot = next(s for s in self.slots if s.gfn <= gfn < s.gfn + s.pages)
        return slot.hva + (gfn - slot.gfn) * PAGE_SIZE
