"""arch/x86/kvm/vmx/vmx.c: the APIC-access page's address in the VMCS (``apic_reload``).

The VMCS holds a host frame number that hardware uses without consulting any table: an access to
the APIC page traps only if the shadow entry of its gfn maps this very frame.
"""

from __future__ import annotations

from typing import Protocol

from mmurace.nodes.kernel import gup
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.secondaries.kvm import kvm_main
from mmurace.nodes.secondaries.kvm import mmu as kvm_mmu
from mmurace.nodes.secondaries.kvm.hva_to_pfn import hva_to_pfn
from mmurace.nodes.secondaries.kvm.kvm_main import KVM_REQ_APIC_PAGE_RELOAD
from mmurace.nodes.secondaries.kvm.kvm_mm import kvm_mmu_unlock, read_lock
from mmurace.nodes.secondaries.kvm.messages import RetryWait, SeqRead
from mmurace.nodes.secondaries.kvm.variant import KvmSwitches
from mmurace.protocol.limits import PAGE_SHIFT
from mmurace.protocol.records import FaultRetry


class VcpuThread(Processor, Protocol):
    """A processor that runs a vCPU."""

    vm: str
    apic_gpa: int

    def vmcs_write_apic_access_addr(self, pte: int, walk: str) -> None:
        """``vmcs_write64(APIC_ACCESS_ADDR, ...)``."""

    def vmcs_apic_access_addr_stays(self) -> None:
        """Return without it (``is_error_noslot_pfn``, ``is_error_page``)."""

    def make_request(self, request: str) -> None:
        """``kvm_make_request`` on itself."""


async def kvm_vcpu_reload_apic_access_page(vcpu: VcpuThread) -> None:
    """``kvm_vcpu_reload_apic_access_page``: look the page up and write its frame."""
    reload = KvmSwitches.of(vcpu.world.kernel).apic_reload
    if reload == "zap_retries":
        await vmx_set_apic_access_page_addr(vcpu)
        return
    if reload == "zap_spins":
        while not await vmx_set_apic_access_page_addr(vcpu):
            pass  # it has waited until no invalidation was open
        return
    gfn = vcpu.apic_gpa >> PAGE_SHIFT
    slot = await kvm_mmu.gfn_to_memslot(vcpu, vcpu.vm, gfn)
    if slot is None:
        vcpu.vmcs_apic_access_addr_stays()
        return
    mm = kvm_main.vm_named(vcpu.world, vcpu.vm).mm
    page = await hva_to_pfn(vcpu, mm, kvm_mmu.gfn_to_hva_memslot(slot, gfn), True)
    if isinstance(page, int):
        vcpu.vmcs_apic_access_addr_stays()
        return
    vcpu.vmcs_write_apic_access_addr(page.pte, page.walk)
    # The page is not pinned: the notifier asks for a reload when it moves.
    await gup.put_page(vcpu, page.frame)


async def vmx_set_apic_access_page_addr(vcpu: VcpuThread) -> bool:
    """``vmx_set_apic_access_page_addr`` (v6.5): as a page fault; False if it must be tried again.

    cpu0 (migrate)                      vcpu0 (reload)
                                        seq = mmu_invalidate_seq
    start: in_progress++; zap; request
                                        pfn = gfn_to_pfn() -> f
    clear pte; flush; end; free f       mmu_lock
                                        [Required: do not write f; post the request again
                                        (``zap_retries``), or begin anew here (``zap_spins``)]

    The first holds up nothing: the vCPU may do something else before it enters the guest.
    """
    gfn, vm = vcpu.apic_gpa >> PAGE_SHIFT, vcpu.vm
    slot = await kvm_mmu.gfn_to_memslot(vcpu, vm, gfn)
    if slot is None:
        vcpu.vmcs_apic_access_addr_stays()
        return True
    hva = kvm_mmu.gfn_to_hva_memslot(slot, gfn)
    sampled = await vcpu.port.call(vm, SeqRead())
    page = await hva_to_pfn(vcpu, kvm_main.vm_named(vcpu.world, vm).mm, hva, True)
    if isinstance(page, int):
        vcpu.vmcs_apic_access_addr_stays()
        return True
    await read_lock(vcpu, vm)
    now = await vcpu.port.call(vm, SeqRead())
    retry = kvm_main.mmu_invalidate_retry(vcpu.world.kernel, sampled.seq, now, hva)
    if not retry:
        vcpu.vmcs_write_apic_access_addr(page.pte, page.walk)
    elif KvmSwitches.of(vcpu.world.kernel).apic_reload == "zap_retries":
        vcpu.make_request(KVM_REQ_APIC_PAGE_RELOAD)
    await kvm_mmu_unlock(vcpu, vm)
    await gup.put_page(vcpu, page.frame)
    if retry:
        vcpu.port.emit(FaultRetry(vm, vcpu.apic_gpa, True, "apic reload", vcpu.port.operation))
        if now.in_progress:
            await vcpu.port.call(vm, RetryWait())
    return not retry
