"""KVM: a shadow MMU and its vCPUs (virt/kvm, arch/x86/kvm)."""

from __future__ import annotations

from collections.abc import Mapping

from mmurace.nodes.beside import Private
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.node import Node
from mmurace.nodes.secondaries.kvm import kvm_main
from mmurace.nodes.secondaries.kvm.kvm_main import KVM_REQ_APIC_PAGE_RELOAD, KVM_REQ_TLB_FLUSH
from mmurace.nodes.secondaries.kvm.messages import (
    GpcClear,
    GpcWrite,
    GuestApic,
    GuestTouch,
    KvmAddMemslot,
    KvmCreateVm,
    KvmDestroyVm,
    KvmRequest,
    Sigkill,
    SpteClear,
    TlbiVmid,
)
from mmurace.nodes.secondaries.kvm.part import (
    Guests,
    Vm,
    another_slot,
    apic_access,
    cached_page,
    guest_access,
    not_there_yet,
    row,
)
from mmurace.nodes.secondaries.kvm.shadow_mmu import Kvm
from mmurace.nodes.secondaries.kvm.variant import KvmSwitches
from mmurace.nodes.secondaries.kvm.vcpu import Vcpu
from mmurace.nodes.secondary import Cache, Drawn, Secondary
from mmurace.nodes.world import World
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SHIFT


def node_class(vm: Vm, name: str) -> type[Node]:
    """The VM's own node, or a vCPU."""
    return Kvm if name == vm.name else Vcpu


def tags(world: World) -> Mapping[str, str]:
    """A VM's entries are tagged with its name."""
    return {vm.name: vm.mm for vm in world.parts_of(Vm)}


def passes_over(kernel: Kernel, event: MmuNotifierEvent) -> bool:
    """Nothing is to be dropped when a right was added; nor, in one patch, when pages of a fork
    became read-only."""
    if event is MmuNotifierEvent.PROTECTION_PAGE:
        return KvmSwitches.of(kernel).shadow_passes_over == "protection_page"
    upgrade = event is MmuNotifierEvent.PROTECTION_UPGRADE
    return upgrade and kernel.mm.upgrade_notify == "generic_after_ptl+event_filter"


def drawn(vm: Vm, what: Drawn) -> GuestTouch | GuestApic:
    """An access of the guest: to its APIC page where all are on that, or on what is not the
    guest's; else one time in four."""
    apic = next((slot for slot in vm.slots if slot.apic), None)
    if apic and (
        what.page == apic.hva
        or vm.slot_of(what.address) is None
        or (what.anywhere and what.number >> 18 & 3 == 0)
    ):
        return GuestApic(apic.gfn << PAGE_SHIFT, what.write, what.value)
    return GuestTouch(vm.guest_address(what.address), what.write, what.value)


KVM = Secondary(
    name="kvm",
    key="vms",
    named_by={"vm": lambda vm: (vm.name,)},
    idle=frozenset({"KvmAddMemslot", "KvmCreateVm", "Sigkill", "KvmDestroyVm"}),
    place=1,
    part=Vm,
    node_class=node_class,
    caches=(
        Cache(
            "spte", "shadow", refused="mmu_invalidate_retry", filled_by="kvm_mmu_page_fault",
            held_in="a shadow entry",
            dropped_by=(SpteClear,),
        ),
        Cache(
            "gtlb", "shadow", source="spte", by_guest_address=True,
            dropped_by=(KvmRequest, TlbiVmid),
            drops=lambda message: getattr(message, "request", KVM_REQ_TLB_FLUSH)
            == KVM_REQ_TLB_FLUSH,
            filled_by="hardware walk of the shadow table", held_in="the guest's TLB",
        ),
        Cache(
            "vmcs", "shadow", by_guest_address=True, latched=True, read_only=True,
            refused="apic reload", dropped_on=KVM_REQ_APIC_PAGE_RELOAD,
            dropped_by=(KvmRequest,), filled_by="kvm_vcpu_reload_apic_access_page",
            held_in="the VMCS", shows="VMCS: APIC page = frame {frame:#x}",
            drops=lambda message: message.request == KVM_REQ_APIC_PAGE_RELOAD,
        ),
        Cache(
            "gpc", "shadow", refused="mmu_notifier_retry_cache", filled_by="kvm_gpc_refresh",
            held_in="a gfn_to_pfn_cache", shows="gfn_to_pfn_cache: frame {frame:#x}",
            dropped_by=(GpcClear,),
        ),
    ),
    ops=kvm_main.notifier_ops,
    tags=tags,
    own_bracket=True,
    passes_over=passes_over,
    calls={
        KvmAddMemslot: kvm_main.kvm_vm_ioctl_set_memory_region,
        KvmCreateVm: kvm_main.kvm_create_vm,
        KvmDestroyVm: kvm_main.kvm_destroy_vm,
    },
    accesses=dict.fromkeys((GuestTouch, GuestApic, GpcWrite, Sigkill), lambda vm: vm.vcpus),
    drawn={GuestTouch: drawn},
    rights="guest",
    private=Private("apic", percent=4, page=Vm.apic_page),
    beside=Guests,
    row=row,
    given={
        GuestTouch: guest_access, GuestApic: apic_access, GpcWrite: cached_page,
        KvmAddMemslot: another_slot, KvmCreateVm: not_there_yet,
    },
)  # fmt: skip
"""The declaration."""
