"""What a ``kvm`` node answers: one VM's shadow MMU (virt/kvm/kvm_main.c, arch/x86/kvm/mmu)."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from mmurace.protocol.messages.base import Ack, Message, Request
from mmurace.protocol.messages.memory import Count
from mmurace.protocol.messages.program import Operation


class Memslot(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """``struct kvm_memory_slot``: ``pages`` guest frames from ``gfn`` are at ``hva`` of the VMM."""

    gfn: int
    pages: int
    hva: int
    apic: bool = False
    """``APIC_ACCESS_PAGE_PRIVATE_MEMSLOT``."""


class Memslots(Message, frozen=True):
    """The VM's memslots."""

    slots: tuple[Memslot, ...]


class Seq(Message, frozen=True):
    """``mmu_invalidate_seq``, ``mmu_invalidate_in_progress`` and the range in progress."""

    seq: int
    in_progress: int
    start: int
    end: int


class SpteValue(Message, frozen=True):
    """A shadow entry (0: none) and the name of the fill that put it there."""

    pte: int
    fill: str


class SpteFound(Message, frozen=True):
    """The next gfn with a shadow entry, or -1."""

    gfn: int


class MemslotsLoad(Request[Memslots], frozen=True):
    """``kvm_memslots`` inside the srcu read section."""

    OBJECT: ClassVar[tuple[str, ...]] = ("memslots",)
    ACCESS: ClassVar[str] = "read"


class MemslotAdd(Request[Ack], frozen=True):
    """``kvm_swap_active_memslots`` with one slot more, under mn_invalidate_lock.

    With ``wait`` it is done, and answered, once ``mn_active_invalidate_count`` is zero.
    """

    slot: Memslot
    wait: bool
    OBJECT: ClassVar[tuple[str, ...]] = ()


class MmuLock(Request[Ack], frozen=True):
    """``KVM_MMU_LOCK`` (write), or ``read_lock(&kvm->mmu_lock)``; granted in order."""

    write: bool
    OBJECT: ClassVar[tuple[str, ...]] = ("mmu_lock",)
    ACCESS: ClassVar[str] = "add"


class MmuUnlock(Request[Ack], frozen=True):
    """``KVM_MMU_UNLOCK``."""

    OBJECT: ClassVar[tuple[str, ...]] = ("mmu_lock",)
    ACCESS: ClassVar[str] = "add"


class SeqRead(Request[Seq], frozen=True):
    """Read ``mmu_invalidate_seq`` and the counters beside it."""

    OBJECT: ClassVar[tuple[str, ...]] = ("mmu_invalidate",)
    ACCESS: ClassVar[str] = "read"


class SeqBump(Request[Ack], frozen=True):
    """``kvm->mmu_invalidate_seq++``, under mmu_lock."""

    OBJECT: ClassVar[tuple[str, ...]] = ("mmu_invalidate",)


class InProgress(Request[Count], frozen=True):
    """``kvm->mmu_invalidate_in_progress`` up (+1, with the range added) or down (-1)."""

    delta: int
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("mmu_invalidate",)


class ActiveInvalidate(Request[Count], frozen=True):
    """``kvm->mn_active_invalidate_count`` up or down, under mn_invalidate_lock (v5.15)."""

    delta: int
    OBJECT: ClassVar[tuple[str, ...]] = ("mn_active_invalidate_count",)


class RetryWait(Request[Ack], frozen=True):
    """A vCPU that must retry sleeps until no invalidation is in progress.

    The kernel re-enters the guest and faults again; the emulator waits for the event instead.
    """

    OBJECT: ClassVar[tuple[str, ...]] = ("mmu_invalidate",)


class SpteLoad(Request[SpteValue], frozen=True):
    """The vCPU's hardware walks the shadow table for a gfn."""

    gfn: int
    OBJECT: ClassVar[tuple[str, ...]] = ("spte", "gfn")
    ACCESS: ClassVar[str] = "read"


class SpteScan(Request[SpteFound], frozen=True):
    """The next gfn with a shadow entry in [first, last), under mmu_lock."""

    first: int
    last: int
    OBJECT: ClassVar[tuple[str, ...]] = ("spte",)
    ACCESS: ClassVar[str] = "read"


class SpteSet(Request[Ack], frozen=True):
    """``mmu_spte_set``: install a shadow entry, under mmu_lock.

    ``walk`` names the load of the host entry that it was made from.
    """

    gfn: int
    pte: int
    walk: str
    OBJECT: ClassVar[tuple[str, ...]] = ("spte", "gfn")


class SpteClear(Request[Ack], frozen=True):
    """``mmu_spte_clear_track_bits``: zap one shadow entry, under mmu_lock."""

    gfn: int
    OBJECT: ClassVar[tuple[str, ...]] = ("spte", "gfn")


# ---- operations, and what a processor answers ------------------------------------------------


class KvmAddMemslot(Operation, frozen=True):
    """``KVM_SET_USER_MEMORY_REGION``: guest frames from ``gfn`` are at [address, + length)."""

    vm: str
    gfn: int
    address: int
    length: int


class GuestTouch(Operation, frozen=True):
    """A guest load or store to a guest-physical address."""

    gpa: int
    write: bool
    value: int = 0


class GuestApic(Operation, frozen=True):
    """A guest access to its APIC page: must trap, never reach memory."""

    gpa: int
    write: bool
    value: int = 0


class Sigkill(Operation, frozen=True):
    """``SIGKILL`` for a vCPU's thread; done once ``do_exit`` has run."""


class KvmDestroyVm(Operation, frozen=True):
    """The last reference to a VM is dropped (``kvm_put_kvm``), so it is destroyed.

    Each of its vCPUs holds one: it comes after all that they do, or after their ``SIGKILL``.
    """

    vm: str


class KvmRequest(Request[Ack], frozen=True):
    """``kvm_make_request`` and kick: set a request bit of a vCPU.

    With ``wait`` (``KVM_REQUEST_WAIT``) it is answered once the vCPU is out of guest mode.
    """

    request: str
    wait: bool
    OBJECT: ClassVar[tuple[str, ...]] = ("requests",)


class KvmVcpuRelease(Request[Ack], frozen=True):
    """``kvm_vcpu_release``: the file of a vCPU is closed, which drops its reference to the VM."""

    OBJECT: ClassVar[tuple[str, ...]] = ("requests",)


class TlbiVmid(Request[Ack], frozen=True):
    """Broadcast maintenance of one guest (arm64 ``tlbi ipas2e1is`` and ``vmalle1is``).

    What its vCPUs have cached for the VMID is gone, whether they are in guest mode or not.
    """

    vm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("gtlb", "vm")
