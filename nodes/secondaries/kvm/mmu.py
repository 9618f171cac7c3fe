"""arch/x86/kvm/mmu/mmu.c: a guest page fault becomes a shadow entry."""

from __future__ import annotations

from typing import Final

from mmurace.nodes.kernel import gup
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EFAULT
from mmurace.nodes.secondaries.kvm import kvm_main
from mmurace.nodes.secondaries.kvm.hva_to_pfn import hva_to_pfn, look_at_vma
from mmurace.nodes.secondaries.kvm.kvm_mm import kvm_mmu_lock, kvm_mmu_unlock, read_lock
from mmurace.nodes.secondaries.kvm.messages import (
    Memslot,
    MemslotsLoad,
    RetryWait,
    Seq,
    SeqRead,
    SpteSet,
)
from mmurace.nodes.secondaries.kvm.variant import KvmSwitches
from mmurace.protocol import pte as ptes
from mmurace.protocol.limits import PAGE_SHIFT, PAGE_SIZE
from mmurace.protocol.messages.swap import FolioMarkDirty
from mmurace.protocol.records import FaultRetry

RET_PF_FIXED: Final = 0
RET_PF_RETRY: Final = 1


async def gfn_to_memslot(cpu: Processor, vm: str, gfn: int) -> Memslot | None:
    """``gfn_to_memslot``."""
    slots = (await cpu.port.call(vm, MemslotsLoad())).slots
    return next((s for s in slots if s.gfn <= gfn < s.gfn + s.pages), None)


def gfn_to_hva_memslot(slot: Memslot, gfn: int) -> int:
    """``gfn_to_hva_memslot``."""
    return slot.hva + (gfn - slot.gfn) * PAGE_SIZE


async def kvm_mmu_page_fault(cpu: Processor, vm: str, gpa: int, write: bool) -> int:
    """``direct_page_fault`` and ``kvm_tdp_page_fault``: RET_PF_*, or -EFAULT.

    The load of seq before the look-up of the page (``smp_rmb`` between them) pairs with
    ``invalidate_range_end``, which raises seq after the entry has changed and before the page is
    free: a page that was looked up too early comes with a seq that is old by now.

    cpu0 (invalidate)                   vcpu0
                                        seq = mmu_invalidate_seq
                                        pfn = hva_to_pfn() -> f
    start: in_progress++; zap
    clear pte; flush
    end: seq++; in_progress--
    free f                              mmu_lock
                                        [Required: seq differs, so do not install f]
    """
    gfn = gpa >> PAGE_SHIFT
    slot = await gfn_to_memslot(cpu, vm, gfn)
    if slot is None:
        return -EFAULT
    hva = gfn_to_hva_memslot(slot, gfn)
    mm = kvm_main.vm_named(cpu.world, vm).mm
    kernel = cpu.world.kernel
    if KvmSwitches.of(kernel).kvm_looks_at_vma and not await look_at_vma(cpu, mm, hva):
        return -EFAULT
    early = (
        await cpu.port.call(vm, SeqRead())
        if KvmSwitches.of(kernel).kvm_seq_sample == "before"
        else None
    )
    # smp_rmb(): the reply to SeqRead comes before the page is looked up
    page = await hva_to_pfn(cpu, mm, hva, write)
    if isinstance(page, int):
        return page
    sampled = early or await cpu.port.call(vm, SeqRead())
    now = await _lock_and_read(cpu, vm)
    retry = kvm_main.mmu_invalidate_retry(kernel, sampled.seq, now, hva)
    if not retry:
        rights = ptes.flags_of(page.pte) & (ptes.PRESENT | ptes.WRITE)
        if rights & ptes.WRITE and not page.pte & ptes.DIRTY:
            await kvm_set_pfn_dirty(cpu, page.frame)
        await cpu.port.call(vm, SpteSet(gfn, ptes.make(page.frame, rights), page.walk))
    await kvm_mmu_unlock(cpu, vm)
    await gup.put_page(cpu, page.frame)
    if not retry:
        return RET_PF_FIXED
    cpu.port.emit(FaultRetry(vm, gpa, write, "mmu_invalidate_retry", cpu.port.operation))
    if now.in_progress:
        await cpu.port.call(vm, RetryWait())
    return RET_PF_RETRY


async def kvm_set_pfn_dirty(cpu: Processor, frame: int) -> None:
    """``kvm_set_pfn_dirty``: the guest may write, and no entry of the mm will say so.

    The kernel says it when it zaps the shadow entry (from v6.13 when it makes one).  An entry that
    was dirty then is dirty still: whoever cleans it zaps first.  So it is said here for the others.
    """
    await cpu.mem(FolioMarkDirty(frame))


async def _lock_and_read(cpu: Processor, vm: str) -> Seq:
    """Take mmu_lock and read the counters that the decision to retry rests on.

    ``kvm_tdp_mmu_page_fault`` and arm64 ``user_mem_abort`` take it for read.

    cpu0 (invalidate)                   vcpu0 (page fault)
                                        mmu_lock; read seq and count; install
    mmu_lock                            [Required: all three under one hold of the lock]
    """
    kernel = cpu.world.kernel
    early = KvmSwitches.of(kernel).kvm_retry_check == "before_mmu_lock"
    now = await cpu.port.call(vm, SeqRead()) if early else None
    exclusive = KvmSwitches.of(kernel).kvm_fault_lock == "exclusive"
    await (kvm_mmu_lock if exclusive else read_lock)(cpu, vm)
    return now or await cpu.port.call(vm, SeqRead())
