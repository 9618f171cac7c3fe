"""virt/kvm/pfncache.c: how caches of a guest's pages lose them (v5.17)."""

from __future__ import annotations

from mmurace.nodes.kernel import gup
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.secondaries.kvm.messages import (
    GpcClear,
    GpcLoad,
    GpcLock,
    GpcSet,
    GpcUnlock,
    GpcValue,
)
from mmurace.nodes.secondaries.kvm.part import Vm
from mmurace.nodes.secondaries.kvm.variant import KvmSwitches
from mmurace.protocol import pte as ptes
from mmurace.protocol.limits import PAGE_SHIFT, ULONG_MAX


async def gfn_to_pfn_cache_invalidate_start(cpu: Processor, vm: Vm, start: int, end: int) -> None:
    """``gfn_to_pfn_cache_invalidate_start``: before mmu_lock is taken and the count goes up.

    A cache without a pfn is passed over.  ``gpc->lock`` for write waits for whoever writes through
    the cache.

    cpu0 (invalidate)                   vcpu0 (refresh)
                                        pfn = hva_to_pfn() -> f
    active_count++
    the cache has no pfn: nothing
                                        lock  [Required: sees active_count, or a moved seq]
    mmu_lock; count++; zap; unlock
    """
    if KvmSwitches.of(cpu.world.kernel).gpc_retry == "no_cache":
        return
    for gpa in vm.gpcs:
        page = vm.host_page(gpa)
        if page is None or not start <= page[1] < end:
            continue
        gfn = gpa >> PAGE_SHIFT
        await cpu.port.call(vm.name, GpcLock(gfn, True))
        now = await cpu.port.call(vm.name, GpcLoad(gfn))
        if now.valid and now.fill:
            await cpu.port.call(vm.name, GpcClear(gfn))
        await cpu.port.call(vm.name, GpcUnlock(gfn))


async def kvm_gpc_deactivate(cpu: Processor, vm: Vm) -> None:
    """``kvm_gpc_deactivate`` (``kvm_gfn_to_pfn_cache_destroy``, to v6.1) of all caches."""
    await gfn_to_pfn_cache_invalidate_start(cpu, vm, 0, ULONG_MAX)
    for gpa in vm.gpcs if KvmSwitches.of(cpu.world.kernel).gpc_pins_page else ():
        gfn = gpa >> PAGE_SHIFT
        await cpu.port.call(vm.name, GpcLock(gfn, True))
        old = await cpu.port.call(vm.name, GpcLoad(gfn))
        await cpu.port.call(vm.name, GpcSet(gfn, False, 0, ""))
        await cpu.port.call(vm.name, GpcUnlock(gfn))
        await release_pfn(cpu, old)


async def release_pfn(cpu: Processor, old: GpcValue) -> None:
    """``__release_gpc``: the reference to the page that a cache had, if it kept one."""
    if old.pte and KvmSwitches.of(cpu.world.kernel).gpc_pins_page:
        await gup.put_page(cpu, ptes.frame_of(old.pte))
