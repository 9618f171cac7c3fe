"""virt/kvm/pfncache.c: pages of a guest that KVM itself writes (v5.17).

Each cache is of one guest page for good, and memslots are only added here, so the steps by which
a cache comes to another ``uhva`` are left out.
"""

from __future__ import annotations

from typing import Final

from mmurace.nodes.kernel import gup
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EAGAIN, EFAULT, ENODEV
from mmurace.nodes.secondaries.kvm import kvm_main
from mmurace.nodes.secondaries.kvm.hva_to_pfn import hva_to_pfn
from mmurace.nodes.secondaries.kvm.kvm_mm import kvm_mmu_unlock, read_lock
from mmurace.nodes.secondaries.kvm.messages import (
    ActiveRead,
    ActiveWait,
    GpcLoad,
    GpcLock,
    GpcRefreshLock,
    GpcRefreshUnlock,
    GpcSet,
    GpcUnlock,
    RetryWait,
    SeqRead,
)
from mmurace.nodes.secondaries.kvm.part import Vm
from mmurace.nodes.secondaries.kvm.pfncache_invalidate import release_pfn
from mmurace.nodes.secondaries.kvm.variant import KvmSwitches
from mmurace.nodes.translation import Attempts, word_of
from mmurace.protocol import pte as ptes
from mmurace.protocol.limits import PAGE_SHIFT
from mmurace.protocol.messages.memory import FrameWrite
from mmurace.protocol.records import FaultRetry, Use

RIGHTS: Final = ptes.PRESENT | ptes.WRITE


async def kvm_gpc_write(cpu: Processor, vm: Vm, gpa: int, value: int) -> int:
    """Write a word through a cache, refreshed as often as it takes: 0, or -errno.

    -ENODEV in a kernel without such caches.  -EFAULT, too, if the cache is valid and has no pfn
    yet: what the kernel writes to then is at NULL.
    """
    if KvmSwitches.of(cpu.world.kernel).gpc_retry == "no_cache":
        return -ENODEV
    gfn, attempts = gpa >> PAGE_SHIFT, Attempts()
    while attempts.refused():
        await cpu.port.call(vm.name, GpcLock(gfn, False))
        now = await cpu.port.call(vm.name, GpcLoad(gfn))
        usable = now.valid and bool(now.fill)
        if usable:
            cpu.port.emit(Use(now.fill, cpu.port.upcoming))
            await cpu.mem(FrameWrite(ptes.frame_of(now.pte), word_of(gpa), value))
        await cpu.port.call(vm.name, GpcUnlock(gfn))
        if now.valid:
            return 0 if usable else -EFAULT
        result = await kvm_gpc_refresh(cpu, vm, gpa)
        if result < 0:
            return result
    return -EAGAIN


async def kvm_gpc_refresh(cpu: Processor, vm: Vm, gpa: int) -> int:
    """``kvm_gpc_refresh`` (``kvm_gfn_to_pfn_cache_refresh``, to v6.1): 0, or -EFAULT.

    cpu0 (refresh)                      cpu1 (refresh)
    refresh_lock
    not valid; unlock; look up          refresh_lock  [Required: waits, then finds it valid]
    valid = true
    """
    switches, gfn = KvmSwitches.of(cpu.world.kernel), gpa >> PAGE_SHIFT
    if switches.gpc_refresh_lock:
        await cpu.sleep(vm.name, GpcRefreshLock(gfn))
    await cpu.port.call(vm.name, GpcLock(gfn, True))
    old = await cpu.port.call(vm.name, GpcLoad(gfn))
    result = 0
    if not old.valid and switches.gpc_retry == "active_count+seq":
        result = await _look_up(cpu, vm, gpa)
    elif not old.valid:
        result = await _look_up_valid(cpu, vm, gpa)
    await cpu.port.call(vm.name, GpcUnlock(gfn))
    if not old.valid:
        await release_pfn(cpu, old)
    if switches.gpc_refresh_lock:
        await cpu.port.call(vm.name, GpcRefreshUnlock(gfn))
    return result


async def _look_up(cpu: Processor, vm: Vm, gpa: int) -> int:
    """``hva_to_pfn_retry`` (v5.19): ``gpc->lock`` is held, and dropped for the lookup.

    The count that is read here goes up before an invalidation looks at the cache, and down after
    it has raised seq; ``smp_rmb`` between the two reads pairs with the ``smp_wmb`` of
    ``kvm_mmu_invalidate_end``.
    """
    gfn, hva = gpa >> PAGE_SHIFT, _uhva(vm, gpa)
    await cpu.port.call(vm.name, GpcSet(gfn, False, 0, ""))
    while True:
        sampled = await cpu.port.call(vm.name, SeqRead())
        await cpu.port.call(vm.name, GpcUnlock(gfn))
        page = await hva_to_pfn(cpu, vm.mm, hva, True)
        await cpu.port.call(vm.name, GpcLock(gfn, True))
        if isinstance(page, int):
            return -EFAULT
        active = (await cpu.port.call(vm.name, ActiveRead())).value
        # smp_rmb(): the reply to ActiveRead comes before seq is read
        if not active and (await cpu.port.call(vm.name, SeqRead())).seq == sampled.seq:
            break
        await cpu.port.call(vm.name, GpcUnlock(gfn))
        await gup.put_page(cpu, page.frame)
        _retries(cpu, vm, gpa)
        await cpu.port.call(vm.name, ActiveWait())
        await cpu.port.call(vm.name, GpcLock(gfn, True))
    await _write_pfn(cpu, vm, gfn, True, page)
    return 0


async def _look_up_valid(cpu: Processor, vm: Vm, gpa: int) -> int:
    """The same from v5.17 to v5.18: the cache is valid, and without a pfn, during the lookup.

    cpu0 (invalidate)                   vcpu0 (refresh)
                                        valid = true, no pfn; unlock
                                        pfn = hva_to_pfn() -> f; mmu_lock: no retry; unlock
    the cache has no pfn: nothing
    mmu_lock; count++; zap; unlock
                                        lock; pfn = f  [Required: not f]
    """
    gfn, hva = gpa >> PAGE_SHIFT, _uhva(vm, gpa)
    await cpu.port.call(vm.name, GpcSet(gfn, True, 0, ""))
    await cpu.port.call(vm.name, GpcUnlock(gfn))
    while True:
        sampled = await cpu.port.call(vm.name, SeqRead())
        page = await hva_to_pfn(cpu, vm.mm, hva, True)
        if isinstance(page, int) or not await _refused(cpu, vm, hva, sampled.seq):
            break
        await gup.put_page(cpu, page.frame)
        _retries(cpu, vm, gpa)
        await cpu.port.call(vm.name, RetryWait())
    await cpu.port.call(vm.name, GpcLock(gfn, True))
    if isinstance(page, int):
        await cpu.port.call(vm.name, GpcSet(gfn, False, 0, ""))
        return -EFAULT
    # From here on valid may have been cleared already.
    valid = (await cpu.port.call(vm.name, GpcLoad(gfn))).valid
    await _write_pfn(cpu, vm, gfn, valid, page)
    return 0


async def _write_pfn(cpu: Processor, vm: Vm, gfn: int, valid: bool, page: gup.Gup) -> None:
    """The end of a refresh: the pfn, and what becomes of the reference to its page.

    Nothing marks the page as dirty (``kvm_release_pfn_clean``; to v5.18 ``kvm_release_pfn``, with
    ``dirty`` false): its entry is writable.
    """
    pte = ptes.make(page.frame, RIGHTS)
    await cpu.port.call(vm.name, GpcSet(gfn, valid, pte, page.walk))
    if not KvmSwitches.of(cpu.world.kernel).gpc_pins_page:
        await gup.put_page(cpu, page.frame)


async def _refused(cpu: Processor, vm: Vm, hva: int, sampled: int) -> bool:
    """``mmu_notifier_retry_hva`` under mmu_lock, which is given back at once."""
    kernel = cpu.world.kernel
    if KvmSwitches.of(kernel).gpc_retry == "none":
        return False
    await read_lock(cpu, vm.name)
    now = await cpu.port.call(vm.name, SeqRead())
    await kvm_mmu_unlock(cpu, vm.name)
    return kvm_main.mmu_invalidate_retry(kernel, sampled, now, hva)


def _retries(cpu: Processor, vm: Vm, gpa: int) -> None:
    why = "mmu_notifier_retry_cache"
    cpu.port.emit(FaultRetry(vm.name, gpa, True, why, cpu.port.operation))


def _uhva(vm: Vm, gpa: int) -> int:
    """``gfn_to_hva_memslot``; that there is a memslot is looked at when the world is made."""
    page = vm.host_page(gpa)
    assert page is not None
    return page[1]
