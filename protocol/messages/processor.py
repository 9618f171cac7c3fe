"""What a processor (a ``cpu`` node, or the CPU that a ``vcpu`` thread runs on) answers."""

from __future__ import annotations

from typing import ClassVar

from protocol.messages.base import Ack, Request
from protocol.messages.memory import Flag


class FlushTlbIpi(Request[Ack], frozen=True):
    """``flush_tlb_func``: drop translations of [start, end); waits while interrupts are off."""

    mm: str
    start: int
    end: int


class Tlbi(Request[Ack], frozen=True):
    """Broadcast TLB maintenance (arm64 ``tlbi``): takes effect whatever the interrupt state.

    The issuer learns of completion only by its own ``dsb``, which waits for every observer.
    """

    mm: str
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("tlb", "mm")


class TlbiVmid(Request[Ack], frozen=True):
    """Broadcast maintenance of one guest (arm64 ``tlbi ipas2e1is`` and ``vmalle1is``).

    What its vCPUs have cached for the VMID is gone, whether they are in guest mode or not.
    """

    vm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("gtlb", "vm")


class SyncIpi(Request[Ack], frozen=True):
    """``tlb_remove_table_smp_sync``: an empty interrupt; answered with interrupts on."""

    OBJECT: ClassVar[tuple[str, ...]] = ("interrupts",)


class PageRequest(Request[Flag], frozen=True):
    """An I/O page fault, queued to this CPU's workqueue (``iommu_sva_handle_iopf``)."""

    mm: str
    address: int
    write: bool


class SendSigkill(Request[Ack], frozen=True):
    """``do_send_sig_info(SIGKILL)`` to the threads of ``mm`` on this processor."""

    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("signals",)


class KvmVcpuRelease(Request[Ack], frozen=True):
    """``kvm_vcpu_release``: the file of a vCPU is closed, which drops its reference to the VM."""

    OBJECT: ClassVar[tuple[str, ...]] = ("requests",)


class KvmRequest(Request[Ack], frozen=True):
    """``kvm_make_request`` and kick: set a request bit of a vCPU.

    With ``wait`` (``KVM_REQUEST_WAIT``) it is answered once the vCPU is out of guest mode.
    """

    request: str
    wait: bool
    OBJECT: ClassVar[tuple[str, ...]] = ("requests",)


class SynchronizeSrcu(Request[Ack], frozen=True):
    """Answered once no srcu read section is left on this CPU of those that are open now.

    The counters of sections are per CPU (kernel/rcu/srcutree.c), so a reader sends no message.
    """

    OBJECT: ClassVar[tuple[str, ...]] = ("srcu",)
