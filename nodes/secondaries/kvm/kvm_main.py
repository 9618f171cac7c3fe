"""virt/kvm/kvm_main.c: KVM's notifier callbacks, requests and kicks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmurace.nodes.kernel import mmu_notifier
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EEXIST, EIO
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondaries.kvm.kvm_mm import kvm_mmu_lock, kvm_mmu_unlock
from mmurace.nodes.secondaries.kvm.messages import (
    ActiveInvalidate,
    InProgress,
    KvmAddMemslot,
    KvmCreateVm,
    KvmDestroyVm,
    KvmRequest,
    KvmVcpuRelease,
    Memslot,
    MemslotAdd,
    MemslotsLoad,
    Seq,
    SeqBump,
    SpteClear,
    SpteScan,
    TlbiVmid,
)
from mmurace.nodes.secondaries.kvm.part import Vm
from mmurace.nodes.secondaries.kvm.pfncache_invalidate import (
    gfn_to_pfn_cache_invalidate_start,
    kvm_gpc_deactivate,
)
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
    """``kvm_mmu_notifier_ops``; ``invalidate_page`` to v4.12, ``invalidate_range`` v5.8 to v6.4."""
    ops: dict[str, Any] = {
        "invalidate_range_start": kvm_mmu_notifier_invalidate_range_start,
        "invalidate_range_end": kvm_mmu_notifier_invalidate_range_end,
        "clear_flush_young": kvm_mmu_notifier_clear_flush_young,
    }
    if kernel.mm.rmap_notifies != "range":
        ops["invalidate_page"] = kvm_mmu_notifier_invalidate_page
    if KvmSwitches.of(kernel).apic_reload == "invalidate_range":
        ops["invalidate_range"] = kvm_mmu_notifier_invalidate_range
    ops["release"] = kvm_mmu_notifier_release
    return ops


async def kvm_make_all_cpus_request(cpu: Processor, vm: str, request: str) -> None:
    """``kvm_make_all_cpus_request``: set the bit of every vCPU, kick those in guest mode.

    Both requests used here are ``KVM_REQUEST_WAIT``: it returns once every vCPU has been seen
    out of guest mode after its bit was set.  The bit, then the look at the mode, pair with the mode
    of ``vcpu_enter_guest``, then its look at the bits (a full barrier between the two on either
    side): at least one of them sees the other.
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


def hva_to_gfn_memslot(hva: int, slot: Memslot) -> int:
    """``hva_to_gfn_memslot``."""
    return slot.gfn + ((hva - slot.hva) >> PAGE_SHIFT)


def gfn_range(slot: Memslot, start: int, end: int) -> tuple[int, int]:
    """``struct kvm_gfn_range``: the gfns of a slot whose hva lies in [start, end): (first, end)."""
    hva_start, hva_end = max(start, slot.hva), min(end, slot.hva + slot.pages * PAGE_SIZE)
    first = hva_to_gfn_memslot(hva_start, slot)
    return first, hva_to_gfn_memslot(hva_end + PAGE_SIZE - 1, slot)


async def kvm_for_each_memslot_in_hva_range(
    cpu: Processor, vm: str, start: int, end: int
) -> list[Memslot]:
    """``kvm_for_each_memslot_in_hva_range``."""
    slots = (await cpu.port.call(vm, MemslotsLoad())).slots
    return [s for s in slots if s.hva < end and start < s.hva + s.pages * PAGE_SIZE]


def kvm_check_memslot_overlap(slots: Iterable[Memslot], new: Memslot) -> bool:
    """``kvm_check_memslot_overlap``: whether guest frames of a new slot are taken."""
    return any(s.gfn < new.gfn + new.pages and new.gfn < s.gfn + s.pages for s in slots)


async def kvm_vm_ioctl_set_memory_region(cpu: Processor, operation: KvmAddMemslot) -> int:
    """``KVM_SET_USER_MEMORY_REGION`` for a new slot: 0, or -EEXIST if guest frames overlap.

    -EIO if the VM is dead (``kvm_vm_ioctl``: ``kvm->vm_dead``).

    cpu0 (invalidate)                   cpu1 (KVM_SET_USER_MEMORY_REGION)
    start: no slot, so no count++
                                        install a slot  [Required: not before the end]
    end: a slot, so count--
    """
    slot = Memslot(operation.gfn, operation.length >> PAGE_SHIFT, operation.address)
    return await kvm_set_memory_region(cpu, operation.vm, slot)


async def kvm_set_memory_region(cpu: Processor, vm: str, slot: Memslot) -> int:
    """``kvm_set_memory_region``: 0, or -errno as its caller returns it."""
    try:
        slots = (await cpu.port.call(vm, MemslotsLoad())).slots
        if kvm_check_memslot_overlap(slots, slot):
            return -EEXIST
        waits = KvmSwitches.of(cpu.world.kernel).kvm_memslots_wait
        installed = await cpu.sleep(vm, MemslotAdd(slot, waits))
    except PeerLost:
        return -EIO
    return 0 if installed.value else -EEXIST


async def kvm_create_vm(cpu: Processor, operation: KvmCreateVm) -> int:
    """``kvm_create_vm``: ``kvm_init_mmu_notifier``, and then its memslots: 0, or -errno.

    A count of brackets that an end without a start has made negative holds a new memslot off for
    ever (``kvm_swap_active_memslots`` waits until it is zero; v5.15).
    """
    vm = vm_named(cpu.world, operation.vm)
    await mmu_notifier.mmu_notifier_register(cpu, "kvm", vm.name, vm.mm)
    for slot in vm.memslots():
        if result := await kvm_set_memory_region(cpu, vm.name, slot):
            return result
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

    No vCPU is left that could fault anything in again, or have KVM write through a
    ``gfn_to_pfn_cache``: the kernel leaves those to the end of the VM, and here they go at once.
    """
    await kvm_gpc_deactivate(cpu, vm_named(cpu.world, vm))
    await kvm_mmu_lock(cpu, vm)
    gfn = 0
    while (gfn := (await cpu.port.call(vm, SpteScan(gfn, ULONG_MAX))).gfn) >= 0:
        await cpu.port.call(vm, SpteClear(gfn))
    await kvm_flush_remote_tlbs(cpu, vm)
    await kvm_mmu_unlock(cpu, vm)


async def kvm_mmu_notifier_invalidate_range_start(
    cpu: Processor, vm: str, _mm: str, start: int, end: int
) -> None:
    """``kvm_mmu_notifier_invalidate_range_start``: bar installs, zap, flush the vCPUs.

    To v5.14 the memslots are looked up under mmu_lock, when the count is up; from v5.15 before, to
    see whether the lock is needed at all (``__kvm_handle_hva_range``, 071064f14d87).

    The count that goes up under mmu_lock pairs with the look that a page fault has at it, under
    mmu_lock, before it installs: whichever takes the lock later sees what the other has done.

    cpu0 (invalidate)                   vcpu0 (page fault)
                                        seq = mmu_invalidate_seq
                                        pfn = hva_to_pfn()
    lock; in_progress++; zap; unlock
                                        lock  [Required: sees in_progress or a moved seq]
    """
    kernel = cpu.world.kernel
    skips = KvmSwitches.of(kernel).kvm_lockless_skip
    if skips:
        await cpu.port.call(vm, ActiveInvalidate(1))
    await gfn_to_pfn_cache_invalidate_start(cpu, vm_named(cpu.world, vm), start, end)
    slots = await kvm_for_each_memslot_in_hva_range(cpu, vm, start, end) if skips else []
    if slots or not skips:
        await kvm_mmu_lock(cpu, vm)
        await kvm_mmu_invalidate_begin(cpu, vm, start, end)
        if not skips:  # a memslot may come meanwhile, but nothing of it is installed now
            slots = await kvm_for_each_memslot_in_hva_range(cpu, vm, start, end)
        flush = False
        for slot in slots:
            flush |= await kvm_unmap_gfn_range(cpu, vm, slot, start, end)
        if flush:
            await kvm_flush_remote_tlbs(cpu, vm)
        await kvm_mmu_unlock(cpu, vm)
    if KvmSwitches.of(kernel).apic_reload == "range_start":
        await kvm_arch_mmu_notifier_invalidate_range(cpu, vm, start, end)


async def kvm_unmap_gfn_range(cpu: Processor, vm: str, slot: Memslot, start: int, end: int) -> bool:
    """``kvm_unmap_gfn_range``, under mmu_lock: zap a slot's part; whether the caller must flush.

    From v6.5 it also asks for the APIC-access page to be loaded again.  On arm64 nothing is left to
    the caller: ``unmap_stage2_ptes`` (to v5.9) and ``stage2_put_pte`` flush each entry when it is
    cleared; from v6.6 ``kvm_pgtable_stage2_unmap`` flushes the range at its end (7657ea920c54).
    """
    how = KvmSwitches.of(cpu.world.kernel).kvm_tlb_flush
    first, last = gfn_range(slot, start, end)
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
    if slot.apic and KvmSwitches.of(cpu.world.kernel).apic_reload in ("zap_retries", "zap_spins"):
        await kvm_make_all_cpus_request(cpu, vm, KVM_REQ_APIC_PAGE_RELOAD)
    return zapped and how == "request_and_kick"


async def kvm_mmu_notifier_clear_flush_young(
    cpu: Processor, vm: str, _mm: str, start: int, end: int
) -> None:
    """``kvm_mmu_notifier_clear_flush_young``: make shadow entries old, and flush if any was young.

    ``kvm_age_hva``, ``kvm_age_gfn`` (v5.13).  Nobody writes down here when a guest uses an entry,
    so each that is there counts as young.  Processors without accessed bits in these tables, for
    which KVM takes the entry away instead, are left out.
    """
    await kvm_mmu_lock(cpu, vm)
    for slot in await kvm_for_each_memslot_in_hva_range(cpu, vm, start, end):
        first, last = gfn_range(slot, start, end)
        if (await cpu.port.call(vm, SpteScan(first, last))).gfn >= 0:
            await kvm_flush_remote_tlbs(cpu, vm)
    await kvm_mmu_unlock(cpu, vm)


async def kvm_mmu_notifier_invalidate_page(
    cpu: Processor, vm: str, _mm: str, start: int, end: int
) -> None:
    """``kvm_mmu_notifier_invalidate_page`` (to v4.12): the entry has changed; raise seq, and zap.

    cpu0 (reclaim)                      vcpu0 (page fault)
    clear pte                           seq = mmu_notifier_seq before; pfn = the old page
    lock; seq++; zap; unlock
                                        lock  [Required: sees a moved seq]
    put the page
    """
    await kvm_mmu_lock(cpu, vm)
    await cpu.port.call(vm, SeqBump())
    zapped = [
        await kvm_unmap_gfn_range(cpu, vm, slot, start, end)
        for slot in await kvm_for_each_memslot_in_hva_range(cpu, vm, start, end)
    ]
    if any(zapped):
        await kvm_flush_remote_tlbs(cpu, vm)
    await kvm_mmu_unlock(cpu, vm)
    if KvmSwitches.of(cpu.world.kernel).apic_reload == "invalidate_page":
        await kvm_arch_mmu_notifier_invalidate_range(cpu, vm, start, end)


async def kvm_mmu_notifier_invalidate_range(
    cpu: Processor, vm: str, _mm: str, start: int, end: int
) -> None:
    """``kvm_mmu_notifier_invalidate_range`` (v5.8 to v6.4): only for the APIC-access page."""
    await kvm_arch_mmu_notifier_invalidate_range(cpu, vm, start, end)


async def kvm_arch_mmu_notifier_invalidate_range(
    cpu: Processor, vm: str, start: int, end: int
) -> None:
    """``kvm_arch_mmu_notifier_invalidate_range`` (``..._page``, v4.12): if it has the APIC page."""
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
    skips = KvmSwitches.of(kernel).kvm_lockless_skip
    if not skips or await kvm_for_each_memslot_in_hva_range(cpu, vm, start, end):
        await kvm_mmu_lock(cpu, vm)
        await kvm_mmu_invalidate_end(cpu, vm, start, end)
        await kvm_mmu_unlock(cpu, vm)
    if KvmSwitches.of(kernel).kvm_lockless_skip:
        await cpu.port.call(vm, ActiveInvalidate(-1))


async def kvm_mmu_invalidate_begin(cpu: Processor, vm: str, start: int, end: int) -> None:
    """``kvm_mmu_invalidate_begin`` (``kvm_inc_notifier_count`` before), under mmu_lock."""
    await cpu.port.call(vm, InProgress(1, start, end))


async def kvm_mmu_invalidate_end(cpu: Processor, vm: str, start: int, end: int) -> None:
    """``kvm_mmu_invalidate_end``, under mmu_lock.

    The ``smp_wmb`` between the two pairs with the ``smp_rmb`` of ``mmu_invalidate_retry``, which
    reads them the other way round: who sees the count down sees the new seq.
    """
    count_first = KvmSwitches.of(cpu.world.kernel).kvm_end_order == "count_first"
    if not count_first:
        await cpu.port.call(vm, SeqBump())
        # smp_wmb(): the reply says that seq has moved
    await cpu.port.call(vm, InProgress(-1, start, end))
    if count_first:
        await cpu.port.call(vm, SeqBump())


def mmu_invalidate_retry(kernel: Kernel, sampled: int, now: Seq, hva: int) -> bool:
    """``mmu_invalidate_retry_hva`` (v5.12), ``mmu_notifier_retry`` before; under mmu_lock.

    Its ``smp_rmb``, between the count and seq, pairs with the ``smp_wmb`` of
    ``kvm_mmu_invalidate_end``.
    """
    in_range = not KvmSwitches.of(kernel).kvm_retry_hva or now.start <= hva < now.end
    if "count" in KvmSwitches.of(kernel).kvm_retry and now.in_progress and in_range:
        return True
    return "seq" in KvmSwitches.of(kernel).kvm_retry and now.seq != sampled
