"""A vCPU thread: guest accesses through its guest TLB, and the host code of its run loop.

The thread is a processor like any other: its GUP and host faults use the same kernel code, and
it takes the same interrupts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from mmurace.nodes.cpu import Processor
from mmurace.nodes.driver import Handler, Port
from mmurace.nodes.kernel.errno import EAGAIN, EINTR
from mmurace.nodes.kernel.exit import do_exit
from mmurace.nodes.secondaries.kvm import kvm_main, pfncache, vmx
from mmurace.nodes.secondaries.kvm import mmu as kvm_mmu
from mmurace.nodes.secondaries.kvm.kvm_main import KVM_REQ_APIC_PAGE_RELOAD, KVM_REQ_TLB_FLUSH
from mmurace.nodes.secondaries.kvm.messages import (
    GpcWrite,
    GuestApic,
    GuestTouch,
    KvmRequest,
    KvmVcpuRelease,
    Sigkill,
    SpteLoad,
    TlbiVmid,
)
from mmurace.nodes.secondaries.kvm.part import Vm
from mmurace.nodes.translation import Attempts, Entry, TranslationCache, data_access
from mmurace.nodes.world import World
from mmurace.protocol import pte as ptes
from mmurace.protocol.envelope import Envelope, operation_of
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import PAGE_SHIFT, ULONG_MAX
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.base import Ack, Message
from mmurace.protocol.records import (
    AccessTrapped,
    Evict,
    Fill,
    GuestEnter,
    GuestExit,
    OpBegin,
    OpEnd,
    RequestPosted,
)


class Vcpu(Processor):
    """The ``vcpu`` node."""

    SHOWN: ClassVar[Mapping[str, Callable[[Any], Mapping[str, str]]]] = {
        "vmcs_apic_access": lambda latched: {
            "VMCS.APIC_ACCESS_ADDR": f"frame {latched[0]:#x}" if latched[0] >= 0 else "none"
        },
    }

    def __init__(self, name: str, world: World, port: Port) -> None:
        super().__init__(name, world, port)
        vm = world.part_of(name)
        assert isinstance(vm, Vm)
        self.vm, self.mm = vm.name, vm.mm
        self.gtlb = TranslationCache("gtlb", world, port)
        apic = [slot.gfn << PAGE_SHIFT for slot in vm.slots if slot.apic]
        self.apic_gpa = apic[0] if apic else -1
        self.requests = [KVM_REQ_APIC_PAGE_RELOAD] if apic else []
        self.in_guest_mode = False
        self.in_flight = 0
        """Operations that its thread has begun, or is to begin."""
        self.released = False
        """Its file is closed: it holds no reference to the VM any more."""
        self.vmcs_apic_access: tuple[int, str] = (-1, "")
        """APIC_ACCESS_ADDR: the frame (-1: none yet) and the name of its fill."""

    def handlers(self) -> Mapping[type[Message], Handler]:
        """Requests, guest accesses, and what every processor answers."""
        return {
            **super().handlers(),
            KvmRequest: self.kvm_request,
            KvmVcpuRelease: self.kvm_vcpu_release,
            TlbiVmid: self.tlbi_vmid,
            GuestTouch: self.guest_access,
            GuestApic: self.guest_access,
            GpcWrite: self.guest_access,
            Sigkill: self.sigkill,
        }

    # -- requests --------------------------------------------------------------------------

    def make_request(self, request: str) -> None:
        """``kvm_make_request``."""
        if request not in self.requests:
            self.requests.append(request)

    async def kvm_request(self, message: KvmRequest, _: Envelope) -> Ack:
        """Set a request; acknowledge once the vCPU is out of guest mode.

        ``kvm_make_request`` and then ``kvm_vcpu_exiting_guest_mode`` pair with ``vcpu->mode =
        IN_GUEST_MODE`` and then ``kvm_request_pending`` of ``vcpu_enter_guest``.

        cpu0 (kick)                         vcpu0
        set the bit
                                            publishes IN_GUEST_MODE, then checks requests
        in guest mode? wait for the exit    [Required: no guest access with the old state]
        """
        self.make_request(message.request)
        self.port.emit(RequestPosted(message.request, False))
        while message.wait and self.in_guest_mode:
            await self.port.park("guest exit")
        if message.request == KVM_REQ_TLB_FLUSH:
            # Done at the next entry; nothing can use the entries before that.
            await self.gtlb.invalidate(self.vm, 0, ULONG_MAX)
        self.port.emit(RequestPosted(message.request, True))
        return Ack()

    async def tlbi_vmid(self, message: TlbiVmid, _: Envelope) -> Ack:
        """The guest goes on: the hardware drops its translations and finishes its accesses."""
        await self.gtlb.invalidate(message.vm, 0, ULONG_MAX)
        return Ack()

    async def _service_requests(self) -> None:
        """The head of ``vcpu_enter_guest``: until none is pending."""
        while self.requests:
            request = self.requests.pop(0)
            if request == KVM_REQ_TLB_FLUSH:
                await self.gtlb.invalidate(self.vm, 0, ULONG_MAX)
            elif request == KVM_REQ_APIC_PAGE_RELOAD:
                await vmx.kvm_vcpu_reload_apic_access_page(self)

    def vmcs_write_apic_access_addr(self, pte: int, walk: str) -> None:
        """Write the VMCS field."""
        old = self.vmcs_apic_access[1]
        if old:
            self.port.emit(Evict("vmcs", old))
        fill = f"vmcs:{walk}"
        self.vmcs_apic_access = (ptes.frame_of(pte), fill)
        self.port.emit(Fill("vmcs", self.vm, self.apic_gpa, pte, fill, walk))

    def vmcs_apic_access_addr_stays(self) -> None:
        """There is no page to load: the field keeps a frame that is no translation any more."""
        frame, fill = self.vmcs_apic_access
        if fill:
            self.port.emit(Evict("vmcs", fill))
        self.vmcs_apic_access = (frame, "")

    def kvm_vcpu_release(self, _message: KvmVcpuRelease, envelope: Envelope) -> Ack:
        """``kvm_vcpu_release``: nothing enters the guest any more, so the VMCS is of no use.

        Raises ``UserError`` if a thread is in KVM_RUN: it has the file open, so this cannot be.
        """
        if self.in_flight:
            raise _in_use(operation_of(envelope.id), self.vm, self.name)
        self.released = True
        _, fill = self.vmcs_apic_access
        if fill:
            self.port.emit(Evict("vmcs", fill))
        self.vmcs_apic_access = (-1, "")
        return Ack()

    # -- running ---------------------------------------------------------------------------

    async def guest_access(
        self, operation: GuestTouch | GuestApic | GpcWrite, _: Envelope
    ) -> op.OpDone:
        """One access of the guest, or for it, with its records; -EINTR once it is to die.

        Raises ``UserError`` if the VM was destroyed before.
        """
        if self.released and not self.fatal_signal_pending:
            raise _in_use(self.port.operation, self.vm, self.name)
        self.in_flight += 1
        await self.enter()
        kind = type(operation).__name__
        self.port.emit(
            OpBegin(kind, self.vm, operation.gpa, operation.gpa + 1, self.port.operation)
        )
        result = -EINTR
        if not self.fatal_signal_pending:
            await self.switch_mm(self.mm)
            result = await self._run(operation)
            await self.get_signal(self.mm)
        self.port.emit(OpEnd(kind, result, self.port.operation))
        self.leave()
        self.in_flight -= 1
        self.port.wake("between operations")
        return op.OpDone(result)

    async def _run(self, operation: GuestTouch | GuestApic | GpcWrite) -> int:
        if isinstance(operation, GpcWrite):
            vm = kvm_main.vm_named(self.world, self.vm)
            return await pfncache.kvm_gpc_write(self, vm, operation.gpa, operation.value)
        return await self.vcpu_run(operation.gpa, operation.write, operation.value)

    async def sigkill(self, _message: Sigkill, _: Envelope) -> op.OpDone:
        """``SIGKILL``: the thread dies where it next looks for a signal, and never before that.

        cpu0                                vcpu0
        SIGKILL                             in the guest, or in a page fault, with locks held
                                            back in its run loop: a signal is pending
                                            do_exit  [Required: it holds nothing]
        """
        self.fatal_signal_pending = True
        while self.in_flight:
            await self.port.park("between operations")
        await self.enter()
        self.port.emit(OpBegin("Sigkill", self.vm, 0, 0, self.port.operation))
        await do_exit(self)
        self.port.emit(OpEnd("Sigkill", 0, self.port.operation))
        self.leave()
        return op.OpDone(0)

    async def vcpu_run(self, gpa: int, write: bool, value: int) -> int:
        """``vcpu_run`` until the access is done: 0, or -errno.

        Before each entry it looks whether it is to die (``kvm_vcpu_exit_request``).  A fault that
        is to be retried (``RET_PF_RETRY``) enters the guest again, however often (``vcpu_run``).
        """
        attempts = Attempts()
        while True:
            await self._service_requests()
            if self.fatal_signal_pending:
                return -EINTR
            if await self.vcpu_enter_guest(gpa, write, value):
                return 0
            result = await kvm_mmu.kvm_mmu_page_fault(self, self.vm, gpa, write)
            if result < 0:
                return result
            if not attempts.refused():
                return -EAGAIN

    async def vcpu_enter_guest(self, gpa: int, write: bool, value: int) -> bool:
        """VM entry with no request pending, the access, VM exit; False: an EPT violation."""
        self.in_guest_mode = True
        self.port.emit(GuestEnter(self.vmcs_apic_access[1]))
        entry = await self._translate(gpa, write)
        if entry is not None:
            await self._guest_access(entry, gpa, write, value)
        self.in_guest_mode = False
        self.port.emit(GuestExit())
        self.port.wake("guest exit")
        return entry is not None

    async def _translate(self, gpa: int, write: bool) -> Entry | None:
        """Through the guest TLB, else a walk of the shadow table."""
        entry = self.gtlb.lookup(self.vm, gpa)
        if entry is not None and ptes.permits(entry.pte, write):
            return entry
        if entry is not None:
            self.gtlb.evict(entry)
        walk = self.gtlb.begin_walk(self.vm, gpa)
        spte = await self.port.call(self.vm, SpteLoad(gpa >> PAGE_SHIFT))
        if not walk.stale and ptes.permits(spte.pte, write):
            return self.gtlb.fill(walk, spte.pte, spte.fill, walk.load)
        self.gtlb.end_walk(walk)
        return None

    async def _guest_access(self, entry: Entry, gpa: int, write: bool, value: int) -> None:
        """A load or store; one to the APIC-access frame traps instead."""
        frame = ptes.frame_of(entry.pte)
        apic = gpa >> PAGE_SHIFT == self.apic_gpa >> PAGE_SHIFT
        trapped = frame == self.vmcs_apic_access[0]
        if apic or trapped:
            self.port.emit(AccessTrapped(trapped, frame))
        if not trapped:
            await data_access(self.gtlb, entry, gpa, write, value)


def _in_use(operation: str, vm: str, vcpu: str) -> UserError:
    return UserError(
        operation,
        f"{vm} is destroyed, and {vcpu} is in KVM_RUN then or later",
        "destroyed after all that its vCPUs do: each of them holds a reference",
    )
