"""What a ``kvm`` node answers: one VM's shadow MMU (virt/kvm/kvm_main.c, arch/x86/kvm/mmu)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from mmurace.protocol.lock import Lock
from mmurace.protocol.messages.base import Ack, Message, Request
from mmurace.protocol.messages.memory import Count, Flag
from mmurace.protocol.messages.program import Operation
from mmurace.protocol.pte import describe
from mmurace.protocol.told import (
    DETAIL,
    ESSENTIAL,
    HELPFUL,
    MINOR,
    Told,
    Values,
    finds_entry,
    range_text,
    reply,
    says,
)

# ---- how reports tell of them ------------------------------------------------------------------


def _memslot(values: Values, _: str) -> str:
    slot = values["slot"]
    first = slot["gfn"] if isinstance(slot, Mapping) else slot.gfn
    return f"new memslot: gfn {first:#x}"


def _seq(values: Values, _: str) -> str:
    count = reply(values, "in_progress")
    return f"read mmu_invalidate_seq: {reply(values, 'seq')}, in progress {count}"


def _in_progress(values: Values, _: str) -> str:
    covered = f" [{range_text(values)})" if values["delta"] > 0 else ""
    return f"mmu_invalidate_in_progress = {reply(values, 'value')}{covered}"


def _spte_set(values: Values, _: str) -> str:
    return f"mmu_spte_set of gfn {values['gfn']:#x}: {describe(values['pte'])}"


def _spte_clear(values: Values, _: str) -> str:
    return f"zap spte of gfn {values['gfn']:#x}"


def _gpc_load(values: Values, _: str) -> str:
    valid = "valid" if reply(values, "valid") else "not valid"
    pfn = "" if reply(values, "fill") else ", no pfn"
    return f"gfn_to_pfn_cache of gfn {values['gfn']:#x}: {valid}{pfn}"


def _gpc_set(values: Values, _: str) -> str:
    valid = "valid" if values["valid"] else "not valid"
    pfn = describe(values["pte"]) if values["pte"] else "no pfn"
    return f"gfn_to_pfn_cache of gfn {values['gfn']:#x}: {valid}, {pfn}"


def _gpc_clear(values: Values, _: str) -> str:
    return f"gfn_to_pfn_cache of gfn {values['gfn']:#x}: valid = false"


def _active_read(values: Values, _: str) -> str:
    return f"read mn_active_invalidate_count: {reply(values, 'value')}"


def _request(values: Values, target: str) -> str:
    return f"kvm_make_request({values['request']}) of {target}"


# ---- the shadow MMU ----------------------------------------------------------------------------


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
    TOLD: ClassVar[Told] = Told(function="kvm_memslots")


class MemslotAdd(Request[Flag], frozen=True):
    """``kvm_swap_active_memslots`` with one slot more, under mn_invalidate_lock.

    With ``wait`` it is done, and answered, once ``mn_active_invalidate_count`` is zero.  False:
    guest frames are taken, which a call that waited for ``slots_lock`` would have found.
    """

    slot: Memslot
    wait: bool
    OBJECT: ClassVar[tuple[str, ...]] = ()
    MAY_SLEEP: ClassVar[bool] = True
    MAY_COME_LATER: ClassVar[bool] = True
    TOLD: ClassVar[Told] = Told(
        function="kvm_swap_active_memslots", wording=_memslot, weight=ESSENTIAL, whoever=True
    )


_MMU_LOCK = Lock("MmuLock", "mmu_lock of {target}", spins=True)


class MmuLock(Request[Ack], frozen=True):
    """``KVM_MMU_LOCK`` (write), or ``read_lock(&kvm->mmu_lock)``; granted in order."""

    write: bool
    OBJECT: ClassVar[tuple[str, ...]] = ("mmu_lock",)
    ACCESS: ClassVar[str] = "add"
    TAKES: ClassVar[Lock | None] = _MMU_LOCK
    TOLD: ClassVar[Told] = Told(weight=MINOR)


class MmuUnlock(Request[Ack], frozen=True):
    """``KVM_MMU_UNLOCK``."""

    OBJECT: ClassVar[tuple[str, ...]] = ("mmu_lock",)
    ACCESS: ClassVar[str] = "add"
    GIVES_BACK: ClassVar[Lock | None] = _MMU_LOCK
    TOLD: ClassVar[Told] = Told(weight=MINOR)


class SeqRead(Request[Seq], frozen=True):
    """Read ``mmu_invalidate_seq`` and the counters beside it."""

    OBJECT: ClassVar[tuple[str, ...]] = ("mmu_invalidate",)
    ACCESS: ClassVar[str] = "read"
    TOLD: ClassVar[Told] = Told(function="mmu_invalidate_seq", wording=_seq, weight=HELPFUL)


class SeqBump(Request[Ack], frozen=True):
    """``kvm->mmu_invalidate_seq++``, under mmu_lock."""

    OBJECT: ClassVar[tuple[str, ...]] = ("mmu_invalidate",)
    TOLD: ClassVar[Told] = Told(
        function="mmu_invalidate_seq", wording=says("mmu_invalidate_seq++"), weight=ESSENTIAL,
        whoever=True, whole=True,
    )  # fmt: skip


class InProgress(Request[Count], frozen=True):
    """``kvm->mmu_invalidate_in_progress`` up (+1, with the range added) or down (-1)."""

    delta: int
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("mmu_invalidate",)
    TOLD: ClassVar[Told] = Told(
        function="mmu_invalidate_in_progress", wording=_in_progress, weight=ESSENTIAL,
        whoever=True, whole=True,
    )  # fmt: skip


class ActiveInvalidate(Request[Count], frozen=True):
    """``kvm->mn_active_invalidate_count`` up or down, under mn_invalidate_lock (v5.15)."""

    delta: int
    OBJECT: ClassVar[tuple[str, ...]] = ("mn_active_invalidate_count",)
    TOLD: ClassVar[Told] = Told(function="mn_active_invalidate_count")


class RetryWait(Request[Ack], frozen=True):
    """A vCPU that must retry sleeps until no invalidation is in progress.

    The kernel re-enters the guest and faults again; the emulator waits for the event instead.
    """

    OBJECT: ClassVar[tuple[str, ...]] = ("mmu_invalidate",)
    MAY_COME_LATER: ClassVar[bool] = True
    TOLD: ClassVar[Told] = Told(function="wait for the invalidation")


class SpteLoad(Request[SpteValue], frozen=True):
    """The vCPU's hardware walks the shadow table for a gfn."""

    gfn: int
    OBJECT: ClassVar[tuple[str, ...]] = ("spte", "gfn")
    ACCESS: ClassVar[str] = "read"
    TOLD: ClassVar[Told] = Told(
        function="hardware walk of the shadow table",
        wording=finds_entry("walk of the shadow table"),
        weight=DETAIL,
    )
    OWN_PAGE: ClassVar[str] = "gfn"


class SpteScan(Request[SpteFound], frozen=True):
    """The next gfn with a shadow entry in [first, last), under mmu_lock."""

    first: int
    last: int
    OBJECT: ClassVar[tuple[str, ...]] = ("spte",)
    ACCESS: ClassVar[str] = "read"
    TOLD: ClassVar[Told] = Told(function="kvm_unmap_gfn_range")


class SpteSet(Request[Ack], frozen=True):
    """``mmu_spte_set``: install a shadow entry, under mmu_lock.

    ``walk`` names the load of the host entry that it was made from.
    """

    gfn: int
    pte: int
    walk: str
    OBJECT: ClassVar[tuple[str, ...]] = ("spte", "gfn")
    TOLD: ClassVar[Told] = Told(
        function="mmu_spte_set", wording=_spte_set, weight=ESSENTIAL, whole=True, fills=True
    )
    OWN_PAGE: ClassVar[str] = "gfn"


class SpteClear(Request[Ack], frozen=True):
    """``mmu_spte_clear_track_bits``: zap one shadow entry, under mmu_lock."""

    gfn: int
    OBJECT: ClassVar[tuple[str, ...]] = ("spte", "gfn")
    TOLD: ClassVar[Told] = Told(
        function="mmu_spte_clear_track_bits", called="zap of the spte", wording=_spte_clear,
        weight=ESSENTIAL, whole=True,
    )  # fmt: skip
    OWN_PAGE: ClassVar[str] = "gfn"


# ---- gfn_to_pfn_cache (virt/kvm/pfncache.c, v5.17) ---------------------------------------------


class GpcValue(Message, frozen=True):
    """``valid`` and ``pfn`` of a cache: the entry (0: ``KVM_PFN_ERR_FAULT``) and its fill."""

    valid: bool
    pte: int
    fill: str


_GPC_LOCK = Lock("GpcLock", "gpc->lock of {target}", spins=True)
_GPC_REFRESH_LOCK = Lock("GpcRefreshLock", "gpc->refresh_lock of {target}")


class GpcLock(Request[Ack], frozen=True):
    """``write_lock_irq(&gpc->lock)``, or ``read_lock_irq``; granted in order."""

    gfn: int
    write: bool
    OBJECT: ClassVar[tuple[str, ...]] = ("gpc_lock", "gfn")
    ACCESS: ClassVar[str] = "add"
    TAKES: ClassVar[Lock | None] = _GPC_LOCK
    TOLD: ClassVar[Told] = Told(weight=MINOR)


class GpcUnlock(Request[Ack], frozen=True):
    """``write_unlock_irq(&gpc->lock)``, ``read_unlock_irq``."""

    gfn: int
    OBJECT: ClassVar[tuple[str, ...]] = ("gpc_lock", "gfn")
    ACCESS: ClassVar[str] = "add"
    GIVES_BACK: ClassVar[Lock | None] = _GPC_LOCK
    TOLD: ClassVar[Told] = Told(weight=MINOR)


class GpcRefreshLock(Request[Ack], frozen=True):
    """``mutex_lock(&gpc->refresh_lock)``; granted in order."""

    gfn: int
    OBJECT: ClassVar[tuple[str, ...]] = ("gpc_refresh_lock", "gfn")
    MAY_SLEEP: ClassVar[bool] = True
    TAKES: ClassVar[Lock | None] = _GPC_REFRESH_LOCK
    TOLD: ClassVar[Told] = Told(weight=MINOR)


class GpcRefreshUnlock(Request[Ack], frozen=True):
    """``mutex_unlock(&gpc->refresh_lock)``."""

    gfn: int
    OBJECT: ClassVar[tuple[str, ...]] = ("gpc_refresh_lock", "gfn")
    GIVES_BACK: ClassVar[Lock | None] = _GPC_REFRESH_LOCK
    TOLD: ClassVar[Told] = Told(weight=MINOR)


class GpcLoad(Request[GpcValue], frozen=True):
    """Read a cache, under its lock."""

    gfn: int
    OBJECT: ClassVar[tuple[str, ...]] = ("gpc", "gfn")
    ACCESS: ClassVar[str] = "read"
    TOLD: ClassVar[Told] = Told(function="kvm_gpc_check", wording=_gpc_load, weight=HELPFUL)
    OWN_PAGE: ClassVar[str] = "gfn"


class GpcSet(Request[Ack], frozen=True):
    """Write a cache, under its lock; ``pte`` 0 is ``KVM_PFN_ERR_FAULT``.

    ``walk`` names the load of the host entry that it was made from.
    """

    gfn: int
    valid: bool
    pte: int
    walk: str
    OBJECT: ClassVar[tuple[str, ...]] = ("gpc", "gfn")
    TOLD: ClassVar[Told] = Told(
        function="kvm_gpc_refresh", wording=_gpc_set, weight=ESSENTIAL, whole=True, fills=True
    )
    OWN_PAGE: ClassVar[str] = "gfn"


class GpcClear(Request[Ack], frozen=True):
    """``gpc->valid = false``, under its lock: by an invalidation."""

    gfn: int
    OBJECT: ClassVar[tuple[str, ...]] = ("gpc", "gfn")
    TOLD: ClassVar[Told] = Told(
        function="gfn_to_pfn_cache_invalidate_start",
        wording=_gpc_clear,
        weight=ESSENTIAL,
        whole=True,
    )
    OWN_PAGE: ClassVar[str] = "gfn"


class ActiveRead(Request[Count], frozen=True):
    """Read ``kvm->mn_active_invalidate_count``, without a lock."""

    OBJECT: ClassVar[tuple[str, ...]] = ("mn_active_invalidate_count",)
    ACCESS: ClassVar[str] = "read"
    TOLD: ClassVar[Told] = Told(
        function="mn_active_invalidate_count", wording=_active_read, weight=HELPFUL
    )


class ActiveWait(Request[Ack], frozen=True):
    """A refresh that must retry sleeps until no bracket is open.

    The kernel looks the page up again at once; the emulator waits for the event instead.
    """

    OBJECT: ClassVar[tuple[str, ...]] = ("mn_active_invalidate_count",)
    MAY_COME_LATER: ClassVar[bool] = True
    TOLD: ClassVar[Told] = Told(function="wait for the invalidation")


# ---- operations, and what a processor answers ------------------------------------------------


class KvmAddMemslot(Operation, frozen=True):
    """``KVM_SET_USER_MEMORY_REGION``: guest frames from ``gfn`` are at [address, + length)."""

    vm: str
    gfn: int
    address: int
    length: int
    FUNCTION: ClassVar[str] = "kvm_set_memslot"
    CHANGES: ClassVar[str] = "kvm_set_memslot"
    GIVES_RANGE: ClassVar[bool] = True


class GuestTouch(Operation, frozen=True):
    """A guest load or store to a guest-physical address."""

    gpa: int
    write: bool
    value: int = 0
    FUNCTION: ClassVar[str] = "kvm_mmu_page_fault"
    CHANGES: ClassVar[str] = "wp_page_copy"
    AGENT: ClassVar[str] = "guest"
    CALLED: ClassVar[str] = "vcpu_enter_guest"
    OWN_ADDRESS: ClassVar[str] = "gpa"


class GuestApic(Operation, frozen=True):
    """A guest access to its APIC page: must trap, never reach memory."""

    gpa: int
    write: bool
    value: int = 0
    FUNCTION: ClassVar[str] = "vcpu_enter_guest"
    CHANGES: ClassVar[str] = "wp_page_copy"
    AGENT: ClassVar[str] = "guest"
    DATA: ClassVar[str] = "guest {} of the APIC page"
    OWN_ADDRESS: ClassVar[str] = "gpa"


class GpcWrite(Operation, frozen=True):
    """KVM writes a word of the guest's memory through a ``gfn_to_pfn_cache``.

    As ``kvm_xen_set_evtchn_fast`` does (arch/x86/kvm/xen.c, v5.17): under ``gpc->lock`` for read,
    after a refresh if the cache is not valid.
    """

    gpa: int
    value: int
    FUNCTION: ClassVar[str] = "kvm_gpc_refresh"
    CHANGES: ClassVar[str] = "wp_page_copy"
    CALLED: ClassVar[str] = "kvm_gpc_check"
    OWN_ADDRESS: ClassVar[str] = "gpa"


class Sigkill(Operation, frozen=True):
    """``SIGKILL`` for a vCPU's thread; done once ``do_exit`` has run."""

    FUNCTION: ClassVar[str] = "do_exit"
    CHANGES: ClassVar[str] = "do_exit"


class KvmCreateVm(Operation, frozen=True):
    """``KVM_CREATE_VM``, then a ``KVM_SET_USER_MEMORY_REGION`` for each of its memslots.

    For a VM that is not there from the start; nothing is done with it before.
    """

    vm: str
    FUNCTION: ClassVar[str] = "kvm_create_vm"
    CHANGES: ClassVar[str] = "kvm_create_vm"


class KvmDestroyVm(Operation, frozen=True):
    """The last reference to a VM is dropped (``kvm_put_kvm``), so it is destroyed.

    Each of its vCPUs holds one: it comes after all that they do, or after their ``SIGKILL``.
    """

    vm: str
    FUNCTION: ClassVar[str] = "mmu_notifier_unregister"
    CHANGES: ClassVar[str] = "kvm_flush_shadow_all"


class KvmRequest(Request[Ack], frozen=True):
    """``kvm_make_request`` and kick: set a request bit of a vCPU.

    With ``wait`` (``KVM_REQUEST_WAIT``) it is answered once the vCPU is out of guest mode.
    """

    request: str
    wait: bool
    OBJECT: ClassVar[tuple[str, ...]] = ("requests",)
    TOLD: ClassVar[Told] = Told(
        function="kvm_make_request", wording=_request, weight=ESSENTIAL, row="arrow"
    )


class KvmVcpuRelease(Request[Ack], frozen=True):
    """``kvm_vcpu_release``: the file of a vCPU is closed, which drops its reference to the VM."""

    OBJECT: ClassVar[tuple[str, ...]] = ("requests",)
    TOLD: ClassVar[Told] = Told(function="kvm_vcpu_release", wording=says("kvm_vcpu_release"))


class TlbiVmid(Request[Ack], frozen=True):
    """Broadcast maintenance of one guest (arm64 ``tlbi ipas2e1is`` and ``vmalle1is``).

    What its vCPUs have cached for the VMID is gone, whether they are in guest mode or not.
    """

    vm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("gtlb", "vm")
