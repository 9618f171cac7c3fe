"""virt/kvm/kvm_main.c: KVM's notifier callbacks, requests and kicks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmurace.nodes.kernel import mmu_notifier
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EEXIST, EIO
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondaries.kvm.messages import (
    ActiveInvalidate,
    InProgress,
    KvmAddMemslot,
    KvmDestroyVm,
    KvmRequest,
    KvmVcpuRelease,
    Memslot,
    MemslotAdd,
    MemslotsLoad,
    MmuLock,
    MmuUnlock,
    Seq,
    SeqBump,
    SpteClear,
    SpteScan,
    TlbiVmid,
)
from mmurace.nodes.secondaries.kvm.part import Vm
from mmurace.nodes.secondaries.kvm.variant import KvmSwitches
from mmurace.nodes.world import World
from mmurace.protocol.errors import PeerLost
from mmurace.protocol.limits import PAGE_SHIFT, PAGE_SIZE, ULONG_MAX

KVM_REQ_TLB_FLUSH = "TLB_FLUSH"
KVM_REQ_APIC_PAGE_RELOAD = "APIC_PAGE_RELOAD"


def vm_named(world: World, name: str) -> Vm:
    """The VM of a ``kvm`` node."""
    return next(vm for vm in world.parts_of(Vm) if vm.name == name)


def notifier_ops(kernel: Kernel) -> Mapping[str, Any]:
    """``kvm_mmu_notifier_ops``; ``invalidate_range`` only from v5.8 to v6.4."""
    ops: dict[str, Any] = {
        "invalidate_range_start": kvm_mmu_notifier_invalidate_range_start,
        "invalidate_range_end": kvm_mmu_notifier_invalidate_range_end,
    }
    if KvmSwitches.of(kernel).apic_gen == 2:
        ops["invalidate_range"] = kvm_mmu_notifier_invalidate_range
    ops["release"] = kvm_mmu_notifier_release
    return ops


async def kvm_make_all_cpus_request(cpu: Processor, vm: str, request: str) -> None:
    """``kvm_make_all_cpus_request``: set the bit of every vCPU, kick those in guest mode.

    Both requests used here are ``KVM_REQUEST_WAIT``: it returns once every vCPU has been seen
    out of guest mode after its bit was set.
    """
    vcpus = vm_named(cpu.world, vm).vcpus
    await cpu.port.gather((vcpu, KvmRequest(request, True)) for vcpu in vcpus)


async def kvm_flush_remote_tlbs(cpu: Processor, vm: str) -> None:
    """``kvm_flush_remote_tlbs``; on arm64 ``__kvm_tlb_flush_vmid`` (all releases)."""
    if KvmSwitches.of(cpu.world.kernel).kvm_tlb_flush == "request_and_kick":
        await kvm_make_all_cpus_request(cpu, vm, KVM_REQ_TLB_FLUSH)
    else:
        await kvm_tlb_flush_vmid(cpu, vm)


async def kvm_tlb_flush_vmid(cpu: Processor, vm: str) -> None:
    """arm64 ``kvm_tlb_flush_vmid_ipa``, ``kvm_tlb_flush_vmid_range``: broadcast, and DSB.

    Of the second stage the address or the range goes, then everything of both stages together
    (``vmalle1is``): that is all that a vCPU caches here.  Nobody leaves the guest for it.

    cpu0 (invalidate)                   vcpu0 (in the guest)
    clear the entry
    TLBI                                drops its translations; its accesses are answered
    DSB                                 [Required: before the DSB is over]
    unlock; free the page               runs on
    """
    vcpus = vm_named(cpu.world, vm).vcpus
    await cpu.port.gather((vcpu, TlbiVmid(vm)) for vcpu in vcpus)


def _overlap(slot: Memslot, start: int, end: int) -> tuple[int, int]:
    """The gfns of a slot whose hva lies in [start, end): (first, last)."""
    low, high = max(start, slot.hva), min(end, slot.hva + slot.pages * PAGE_SIZE)
    return (
        slot.gfn + ((low - slot.hva) >> PAGE_SHIFT),
        slot.gfn + ((high - slot.hva + PAGE_SIZE - 1) >> PAGE_SHIFT),
    )


async def _slots_in(cpu: Processor, vm: str, start: int, end: int) -> list[Memslot]:
    slots = (await cpu.port.call(vm, MemslotsLoad())).slots
    return [s for s in slots if s.hva < end and start < s.hva + s.pages * PAGE_SIZE]


async def kvm_vm_ioctl_set_memory_region(cpu: Processor, operation: KvmAddMemslot) -> int:
    """``kvm_set_memory_region`` for a new slot: 0, or -EEXIST if guest frames overlap.

    -EIO if the VM is dead (``kvm_vm_ioctl``: ``kvm->vm_dead``).

    cpu0 (invalidate)                   cpu1 (KVM_SET_USER_MEMORY_REGION)
    start: no slot, so no count++
                                        install a slot  [Required: not before the end]
    end: a slot, so count--
    """
    vm = operation.vm
    slot = Memslot(operation.gfn, operation.length >> PAGE_SHIFT, operation.address)
    try:
        slots = (await cpu.port.call(vm, MemslotsLoad())).slots
        if any(s.gfn < slot.gfn + slot.pages and slot.gfn < s.gfn + s.pages for s in slots):
            return -EEXIST
        await cpu.sleep(vm, MemslotAdd(slot, KvmSwitches.of(cpu.world.kernel).kvm_memslots_wait))
    except PeerLost:
        return -EIO
    return 0


async def kvm_destroy_vm(cpu: Processor, operation: KvmDestroyVm) -> int:
    """``kvm_put_kvm`` and ``kvm_destroy_vm``: 0.  The mm lives on, with other users.

    ``kvm_vm_ioctl_create_vcpu`` takes a reference for the file of each vCPU (``kvm_get_kvm``), and
    ``kvm_vcpu_release`` drops it, so all of them are closed (virt/kvm/kvm_main.c, all releases).

    An invalidation that found the VM on the list and did not find it any more at its end leaves
    ``mmu_invalidate_in_progress`` raised, and nobody is left to mind.
    """
    vm = vm_named(cpu.world, operation.vm)
    await cpu.port.gather((vcpu, KvmVcpuRelease()) for vcpu in vm.vcpus)
    await mmu_notifier.mmu_notifier_unregister(cpu, "kvm", vm.name, vm.mm)
    return 0


async def kvm_mmu_notifier_release(
    cpu: Processor, vm: str, _mm: str, _start: int, _end: int
) -> None:
    """``kvm_mmu_notifier_release``: ``kvm_mmu_zap_all``, under mmu_lock.

    No vCPU is left that could fault anything in again.
    """
    await cpu.port.call(vm, MmuLock(True))
    gfn = 0
    while (gfn := (await cpu.port.call(vm, SpteScan(gfn, ULONG_MAX))).gfn) >= 0:
        await cpu.port.call(vm, SpteClear(gfn))
    await kvm_flush_remote_tlbs(cpu, vm)
    await cpu.port.call(vm, MmuUnlock())


async def kvm_mmu_notifier_invalidate_range_start(
    cpu: Processor, vm: str, _mm: str, start: int, end: int
) -> None:
    """``kvm_mmu_notifier_invalidate_range_start``: bar installs, zap, flush the vCPUs.

    cpu0 (invalidate)                   vcpu0 (page fault)
                                        seq = mmu_invalidate_seq
                                        pfn = hva_to_pfn()
    lock; in_progress++; zap; unlock
                                        lock  [Required: sees in_progress or a moved seq]
    """
    kernel = cpu.world.kernel
    if KvmSwitches.of(kernel).kvm_lockless_skip:
        await cpu.port.call(vm, ActiveInvalidate(1))
    slots = await _slots_in(cpu, vm, start, end)
    if slots or not KvmSwitches.of(kernel).kvm_lockless_skip:
        await cpu.port.call(vm, MmuLock(True))
        await cpu.port.call(vm, InProgress(1, start, end))
        flush = False
        for slot in slots:
            flush |= await kvm_unmap_gfn_range(cpu, vm, slot, start, end)
        if flush:
            await kvm_flush_remote_tlbs(cpu, vm)
        await cpu.port.call(vm, MmuUnlock())
    if KvmSwitches.of(kernel).apic_gen == 1:
        await _request_apic_reload(cpu, vm, start, end)


async def kvm_unmap_gfn_range(cpu: Processor, vm: str, slot: Memslot, start: int, end: int) -> bool:
    """``kvm_unmap_gfn_range``, under mmu_lock: zap a slot's part; whether the caller must flush.

    From v6.5 it also asks for the APIC-access page to be loaded again.  On arm64 nothing is left to
    the caller: ``unmap_stage2_ptes`` (to v5.9) and ``stage2_put_pte`` flush each entry when it is
    cleared; from v6.6 ``kvm_pgtable_stage2_unmap`` flushes the range at its end (7657ea920c54).
    """
    how = KvmSwitches.of(cpu.world.kernel).kvm_tlb_flush
    first, last = _overlap(slot, start, end)
    zapped = False
    while True:
        gfn = (await cpu.port.call(vm, SpteScan(first, last))).gfn
        if gfn < 0:
            break
        await cpu.port.call(vm, SpteClear(gfn))
        zapped, first = True, gfn + 1
        if how == "vmid_each":
            await kvm_tlb_flush_vmid(cpu, vm)
    if how == "vmid_range":
        await kvm_tlb_flush_vmid(cpu, vm)
    if slot.apic and KvmSwitches.of(cpu.world.kernel).apic_gen == 3:
        await kvm_make_all_cpus_request(cpu, vm, KVM_REQ_APIC_PAGE_RELOAD)
    return zapped and how == "request_and_kick"


async def kvm_mmu_notifier_invalidate_range(
    cpu: Processor, vm: str, _mm: str, start: int, end: int
) -> None:
    """``kvm_mmu_notifier_invalidate_range`` (v5.8 to v6.4): only for the APIC-access page."""
    await _request_apic_reload(cpu, vm, start, end)


async def _request_apic_reload(cpu: Processor, vm: str, start: int, end: int) -> None:
    """``kvm_arch_mmu_notifier_invalidate_range``: if the APIC page's hva is in the range."""
    slots = (await cpu.port.call(vm, MemslotsLoad())).slots
    if any(slot.apic and start <= slot.hva < end for slot in slots):
        await kvm_make_all_cpus_request(cpu, vm, KVM_REQ_APIC_PAGE_RELOAD)


async def kvm_mmu_notifier_invalidate_range_end(
    cpu: Processor, vm: str, _mm: str, start: int, end: int
) -> None:
    """``kvm_mmu_notifier_invalidate_range_end``: raise the sequence, then lower the count.

    cpu0 (invalidate end)               vcpu0 (page fault, not under mmu_lock)
    seq++
                                        count is still up, or seq has moved
    count--                             [Required: never count down with the old seq]
    """
    kernel = cpu.world.kernel
    if not KvmSwitches.of(kernel).kvm_lockless_skip or await _slots_in(cpu, vm, start, end):
        await cpu.port.call(vm, MmuLock(True))
        await _invalidate_end(cpu, vm, start, end)
        await cpu.port.call(vm, MmuUnlock())
    if KvmSwitches.of(kernel).kvm_lockless_skip:
        await cpu.port.call(vm, ActiveInvalidate(-1))


async def _invalidate_end(cpu: Processor, vm: str, start: int, end: int) -> None:
    """``kvm_mmu_invalidate_end``, under mmu_lock."""
    count_first = KvmSwitches.of(cpu.world.kernel).kvm_end_order == "count_first"
    if not count_first:
        await cpu.port.call(vm, SeqBump())
    await cpu.port.call(vm, InProgress(-1, start, end))
    if count_first:
        await cpu.port.call(vm, SeqBump())


def mmu_invalidate_retry(kernel: Kernel, sampled: int, now: Seq, hva: int) -> bool:
    """``mmu_invalidate_retry_hva`` (v5.12), ``mmu_notifier_retry`` before; under mmu_lock."""
    in_range = not KvmSwitches.of(kernel).kvm_retry_hva or now.start <= hva < now.end
    if "count" in KvmSwitches.of(kernel).kvm_retry and now.in_progress and in_range:
        return True
    return "seq" in KvmSwitches.of(kernel).kvm_retry and now.seq != sampled
