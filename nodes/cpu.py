"""A processor: user accesses through its TLB, and the kernel code that its threads run."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

from mmurace.nodes.driver import Handler, Port
from mmurace.nodes.kernel import (
    fork,
    ksm,
    madvise,
    mempolicy,
    migrate,
    mmap,
    mprotect,
    mremap,
    oom_reaper,
    page_writeback,
    task_mmu,
    truncate,
    umem,
    vmscan,
)
from mmurace.nodes.kernel.errno import EAGAIN, EINTR
from mmurace.nodes.kernel.exec import exec_mmap
from mmurace.nodes.kernel.exit import exit_group, exit_mm
from mmurace.nodes.kernel.fault import do_user_addr_fault
from mmurace.nodes.node import Node
from mmurace.nodes.pwc import mapped_by_tables
from mmurace.nodes.secondary import Secondary, SystemCall, Work, secondaries
from mmurace.nodes.translation import Attempts, TranslationCache, data_access, walk_page_table
from mmurace.nodes.world import MEMORY, World
from mmurace.protocol import pte as ptes
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.errors import PeerLost
from mmurace.protocol.limits import ULONG_MAX
from mmurace.protocol.messages import processor as p
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.base import Ack, Message, Request
from mmurace.protocol.messages.memory import CpumaskSet, Vma
from mmurace.protocol.records import FaultRetry, OpBegin, OpEnd

R = TypeVar("R", bound=Message)


class Processor(Node):
    """What all processors have, whatever they run: one thread at a time, a TLB, interrupts."""

    def __init__(self, name: str, world: World, port: Port) -> None:
        super().__init__(name, world, port)
        self.tlb = TranslationCache("tlb", world, port)
        self.busy = False
        """A thread is on the processor."""
        self.irqs_off = False
        self.active_mms: list[str] = []
        """mms that this processor is in the cpumask of."""
        self.killed: tuple[str, ...] = ()
        """mms whose threads here are to die."""
        self.fatal_signal_pending = False
        self.srcu_readers: tuple[str, ...] = ()
        """Operations with a notifier callback running here, once for each read section."""

    def handlers(self) -> Mapping[type[Message], Handler]:
        """Interrupts, broadcast TLB maintenance and the workqueue."""
        return {
            p.FlushTlbIpi: self.flush_tlb_func,
            p.Tlbi: self.tlbi,
            p.SyncIpi: self.sync_ipi,
            p.SendSigkill: self.send_sigkill,
            p.SynchronizeSrcu: self.synchronize_srcu,
            **dict.fromkeys(workers(secondaries()), self.work),
        }

    # -- nodes.kernel.context.Processor ---------------------------------------------------

    def mem(self, message: Request[R]) -> Awaitable[R]:
        """One access to shared memory; the thread keeps the processor."""
        return self.port.call(MEMORY, message)

    async def sleep(self, dst: str, message: Request[R]) -> R:
        """Give the processor away until the reply is there, then wait for a turn."""
        self.leave()
        try:
            reply = await self.port.call(dst, message)
        except PeerLost:
            await self.enter()
            raise
        await self.enter()
        return reply

    async def sleep_all(self, requests: Iterable[tuple[str, Request[Any]]]) -> None:
        """Give the processor away until every reply is there, then wait for a turn."""
        self.leave()
        await self.port.gather(requests)
        await self.enter()

    def srcu_read_lock(self) -> None:
        """A section begins: the counters are this processor's own."""
        self.srcu_readers = (*self.srcu_readers, self.port.operation)

    def srcu_read_unlock(self) -> None:
        """A section ends; who waits for it goes on."""
        readers = list(self.srcu_readers)
        readers.remove(self.port.operation)
        self.srcu_readers = tuple(readers)
        self.port.wake("srcu")

    async def synchronize_srcu(self, _message: p.SynchronizeSrcu, _: Envelope) -> Ack:
        """Wait for the sections that are open now, not for those that begin later."""
        before = set(self.srcu_readers)
        while before & set(self.srcu_readers):
            await self.port.park("srcu")
            before &= set(self.srcu_readers)
        return Ack()

    def irq_disable(self) -> None:
        """Interrupts wait from here on."""
        self.irqs_off = True

    def irq_enable(self) -> None:
        """Interrupts that waited are taken now."""
        self.irqs_off = False
        self.port.wake("interrupts on")

    async def flush_tlb_local(self, mm: str, start: int, end: int, tables: bool = False) -> None:
        """Drop this processor's own translations."""
        await self.tlb.invalidate(mm, start, end, self._walked(start, end, tables))

    def _walked(self, start: int, end: int, tables: bool) -> tuple[int, int] | None:
        """Whose walks an invalidation waits for, if not for those of its own pages.

        cpu1                                cpu0 (munmap)
        walk of another page: has loaded
        the upper entry of a table
                                            clears it; flush of one page that the table maps
                                            [Required: no acknowledgement yet]
        loads the leaf                      acknowledgement; the table may be freed

        x86: INVLPG drops what leads to tables, and an interrupt is taken between instructions.
        arm64: a TLBI that is not for the last level does so for its address.
        """
        return mapped_by_tables(self.world, start, end) if tables else None

    # -- the thread on the processor -------------------------------------------------------

    async def enter(self) -> None:
        """Wait until no other thread is on the processor, and be it."""
        while self.busy:
            await self.port.park("processor free")
        self.busy = True

    def leave(self) -> None:
        """Let the next thread run."""
        self.busy = False
        self.port.wake("processor free")

    async def switch_mm(self, mm: str) -> None:
        """``switch_mm``: join the mm's cpumask before its first translation is cached.

        The bit stays set: entries are tagged and outlive a switch to another mm.
        """
        if mm not in self.active_mms:
            self.active_mms.append(mm)
            await self.mem(CpumaskSet(mm, self.name, True))

    # -- interrupts -------------------------------------------------------------------------

    async def _interrupt(self) -> None:
        """An IPI runs on top of whatever waits, once interrupts are on."""
        while self.irqs_off:
            await self.port.park("interrupts on")

    async def flush_tlb_func(self, message: p.FlushTlbIpi, _: Envelope) -> Ack:
        """``flush_tlb_func``: flush, then acknowledge."""
        await self._interrupt()
        walked = self._walked(message.start, message.end, message.tables)
        await self.tlb.invalidate(message.mm, message.start, message.end, walked)
        return Ack()

    async def tlbi(self, message: p.Tlbi, _: Envelope) -> Ack:
        """Broadcast maintenance: no interrupt is involved.

        cpu1                                        cpu0 (munmap)
        a store through the old entry goes out
                                                    clear pte; TLBI
        drops the entry                             DSB
        the store arrives                           [Required: not after the DSB]
                                                    the frame may be freed
        """
        walked = self._walked(message.start, message.end, message.tables)
        left = self.tlb.leaves_stores
        await self.tlb.invalidate(message.mm, message.start, message.end, walked, left)
        return Ack()

    async def sync_ipi(self, _message: p.SyncIpi, _: Envelope) -> Ack:
        """An empty interrupt."""
        await self._interrupt()
        return Ack()

    async def work(self, message: Request[Any], _: Envelope) -> Message:
        """A worker thread of this processor serves a secondary."""
        await self.enter()
        reply = await workers(secondaries())[type(message)](self, message)
        self.leave()
        return reply

    # -- signals ----------------------------------------------------------------------------

    def send_sigkill(self, message: p.SendSigkill, _: Envelope) -> Ack:
        """Note it; it is taken on the way back to user mode."""
        self.port.touch(("field", "killed"))
        self.killed = (*self.killed, message.mm)
        return Ack()

    async def get_signal(self, mm: str) -> None:
        """``get_signal``: a thread of a process that was killed leaves nothing behind.

        Each of them unmaps what it finds; the last one leaves nothing.
        """
        if mm in self.killed:
            await exit_mm(self, mm)

    # -- user accesses ----------------------------------------------------------------------

    async def user_access(self, mm: str, address: int, write: bool, value: int) -> int:
        """A load or store in user mode: 0, -EFAULT for SIGSEGV, -ENOMEM for the OOM killer."""
        await self.switch_mm(mm)
        attempts = Attempts()
        while True:
            entry = self.tlb.lookup(mm, address)
            if entry is not None and not ptes.serves(entry.pte, write):
                self.tlb.evict(entry)  # a fault drops the entry that caused it
                entry = None
            if entry is None:
                entry = await walk_page_table(self.tlb, mm, address, write)
            if entry is not None:
                await data_access(self.tlb, entry, address, write, value)
                return 0
            result = await do_user_addr_fault(self, mm, address, write)
            if result:
                return result
            if attempts.refusals:
                self.port.emit(FaultRetry(mm, address, write, "page fault", self.port.operation))
            if not attempts.refused():
                return -EAGAIN


def _wanted(o: op.Mmap) -> Vma:
    """The VMA that an mmap asks for."""
    return Vma(o.address, o.address + o.length, o.read, o.write, o.file, o.offset, o.shared)


SYSTEM_CALLS: dict[type[op.Operation], SystemCall] = {
    op.Mmap: lambda c, o: mmap.mmap_region(c, o.mm, _wanted(o)),
    op.Munmap: lambda c, o: mmap.vm_munmap(c, o.mm, o.address, o.length),
    op.Brk: lambda c, o: mmap.sys_brk(c, o.mm, o.address),
    op.Mprotect: lambda c, o: mprotect.do_mprotect_pkey(
        c, o.mm, o.address, o.length, o.read, o.write
    ),
    op.ChangeProtNuma: lambda c, o: mempolicy.task_numa_work(c, o.mm, o.address, o.length),
    op.MadviseDontneed: lambda c, o: madvise.madvise_dontneed(c, o.mm, o.address, o.length),
    op.MadviseFree: lambda c, o: madvise.madvise_free(c, o.mm, o.address, o.length),
    op.MadviseNohugepage: lambda c, o: madvise.madvise_nohugepage(c, o.mm, o.address, o.length),
    op.Mremap: lambda c, o: mremap.do_mremap(
        c, o.mm, o.address, o.length, o.new_address, o.new_length
    ),
    op.Fork: lambda c, o: fork.dup_mmap(c, o.mm, o.child),
    op.ClearRefs: lambda c, o: task_mmu.clear_refs_write(c, o.mm),
    op.Execve: lambda c, o: exec_mmap(c, o.mm),
    op.Exit: lambda c, o: exit_group(c, o.mm),
    op.Truncate: lambda c, o: truncate.truncate_setsize(c, o.file, o.size),
    op.Writeback: lambda c, o: page_writeback.write_cache_pages(c, o.file),
    op.MigratePages: lambda c, o: migrate.move_pages(c, o.mm, o.address, o.length),
    op.PinnedAccess: lambda c, o: umem.pinned_access(c, o.mm, o.address, o.write, o.value),
    op.OomReap: lambda c, o: oom_reaper.oom_reap_task_mm(c, o.mm),
    op.Kswapd: lambda c, o: vmscan.balance_pgdat(c, o.pages),
    op.KsmScan: lambda c, o: ksm.ksm_do_scan(c, o.mm, o.address, o.length),
    op.ShrinkActiveList: lambda c, o: vmscan.shrink_active_list(c, o.pages),
    op.Touch: lambda c, o: c.user_access(o.mm, o.address, o.write, o.value),
}


@cache
def system_calls(known: tuple[Secondary, ...]) -> Mapping[type[op.Operation], SystemCall]:
    """The core's, and those of these secondaries' drivers."""
    return SYSTEM_CALLS | {kind: call for one in known for kind, call in one.calls.items()}


@cache
def workers(known: tuple[Secondary, ...]) -> Mapping[type[Request[Any]], Work]:
    """What worker threads do for these secondaries."""
    return {request: work for one in known for request, work in one.work.items()}


class Cpu(Processor):
    """The ``cpu`` node."""

    def handlers(self) -> Mapping[type[Message], Handler]:
        """Interrupts, and every operation that a thread may ask for."""
        return {
            **super().handlers(),
            **dict.fromkeys(system_calls(secondaries()), self.system_call),
        }

    async def system_call(self, operation: op.Operation, _: Envelope) -> op.OpDone:
        """Run one operation of a thread from its begin to its end record."""
        await self.enter()
        kind = type(operation).__name__
        start = getattr(operation, "address", 0)
        end = min(start + getattr(operation, "length", 0), ULONG_MAX)
        mm = getattr(operation, "mm", "")
        self.port.emit(OpBegin(kind, mm, start, end, self.port.operation))
        result = -EINTR
        if mm not in self.killed:
            result = await system_calls(secondaries())[type(operation)](self, operation)
            await self.get_signal(mm)
        self.port.emit(OpEnd(kind, result, self.port.operation))
        self.leave()
        return op.OpDone(result)
