"""mm/mmu_notifier.c and include/linux/mmu_notifier.h: the calls that the core makes.

Two kinds of subscriber (catalogue 1).  A *shadow* (KVM) owns a parallel table: it drops at
``invalidate_range_start`` and installs nothing until ``invalidate_range_end``.  A *shared-table*
secondary (an IOMMU with SVA) walks the mm's own table: it must be flushed when the CPU is, by
``invalidate_range`` (v3.19 to v6.5) or ``arch_invalidate_secondary_tlbs`` (v6.6).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from nodes.kernel import iommu_sva, kvm_main, ocxl
from nodes.kernel.context import Processor
from nodes.kernel.variant import Kernel
from protocol.errors import PeerLost
from protocol.events import MmuNotifierEvent
from protocol.limits import ULONG_MAX
from protocol.messages.memory import NotifierDelete, NotifierList
from protocol.messages.processor import SynchronizeSrcu
from protocol.records import NotifierCall, Unregistered


@dataclass(frozen=True, slots=True)
class MmuNotifierRange:
    """``struct mmu_notifier_range``: [start, end) of an mm and why."""

    mm: str
    start: int
    end: int
    event: MmuNotifierEvent


Callback = Callable[[Processor, str, str, int, int], Awaitable[None]]
"""(processor, subscriber's node, mm, start, end)."""


def subscriber_ops(driver: str, kernel: Kernel) -> Mapping[str, Callback]:
    """``struct mmu_notifier_ops`` of a driver in this kernel, by the callback's name."""
    ops = {"kvm": kvm_main.notifier_ops, "sva": iommu_sva.notifier_ops, "ocxl": ocxl.notifier_ops}
    return ops[driver](kernel)


async def _call(cpu: Processor, callback: str, range_: MmuNotifierRange) -> None:
    """Call ``callback`` of every subscriber that has it, in list order, under srcu."""
    cpu.srcu_read_lock()
    subscribers = await cpu.mem(NotifierList(range_.mm))
    for driver, node in subscribers.entries:
        await _call_one(cpu, callback, driver, node, range_)
    cpu.srcu_read_unlock()


async def _call_one(
    cpu: Processor, callback: str, driver: str, node: str, range_: MmuNotifierRange,
    within: str = "",
) -> None:  # fmt: skip
    function = subscriber_ops(driver, cpu.world.kernel).get(callback)
    if function is None or _filtered(cpu.world.kernel, callback, range_.event):
        return
    mm, start, end, event = range_.mm, range_.start, range_.end, range_.event
    op = cpu.port.operation
    cpu.port.emit(NotifierCall(callback, node, mm, start, end, event, "begin", op, within))
    # PeerLost: what the callback works on is freed.  Only where nobody waited for its end.
    with suppress(PeerLost):
        await function(cpu, node, mm, start, end)
    cpu.port.emit(NotifierCall(callback, node, mm, start, end, event, "end", op, within))


def _filtered(kernel: Kernel, callback: str, event: MmuNotifierEvent) -> bool:
    """Events that a shadow MMU passes over: nothing is to be dropped when a right was added."""
    if callback not in ("invalidate_range_start", "invalidate_range_end"):
        return False
    if event is MmuNotifierEvent.PROTECTION_PAGE:
        return kernel.shadow_passes_over == "protection_page"
    upgrade = event is MmuNotifierEvent.PROTECTION_UPGRADE
    return upgrade and kernel.upgrade_notify == "generic_after_ptl+event_filter"


async def invalidate_range_start(cpu: Processor, range_: MmuNotifierRange) -> None:
    """``mmu_notifier_invalidate_range_start`` (all releases); may sleep."""
    await _call(cpu, "invalidate_range_start", range_)


async def invalidate_range_end(
    cpu: Processor, range_: MmuNotifierRange, only_end: bool = False
) -> None:
    """``mmu_notifier_invalidate_range_end``, or ``..._only_end`` (v4.15 to v6.5).

    Up to v6.5 ``mn_hlist_invalidate_end`` calls each subscriber's ``invalidate_range`` before
    its ``invalidate_range_end``, unless ``only_end``.
    """
    cpu.srcu_read_lock()
    subscribers = await cpu.mem(NotifierList(range_.mm))
    for driver, node in subscribers.entries:
        if cpu.world.kernel.end_calls_ir and not only_end:
            within = "invalidate_range_end"
            await _call_one(cpu, "invalidate_range", driver, node, range_, within)
        await _call_one(cpu, "invalidate_range_end", driver, node, range_)
    cpu.srcu_read_unlock()


async def invalidate_range(cpu: Processor, mm: str, start: int, end: int) -> None:
    """``mmu_notifier_invalidate_range`` (v3.19 to v6.5); atomic, often under the PTL."""
    await _call(cpu, "invalidate_range", MmuNotifierRange(mm, start, end, MmuNotifierEvent.CLEAR))


async def arch_invalidate_secondary_tlbs(cpu: Processor, mm: str, start: int, end: int) -> None:
    """``mmu_notifier_arch_invalidate_secondary_tlbs`` (v6.6): beside the arch's own flush."""
    await _call(
        cpu,
        "arch_invalidate_secondary_tlbs",
        MmuNotifierRange(mm, start, end, MmuNotifierEvent.CLEAR),
    )


async def mmu_notifier_unregister(cpu: Processor, driver: str, node: str, mm: str) -> None:
    """``mmu_notifier_unregister`` (all releases): ``release``, off the list, wait for callbacks.

    An invalidation may be between its start and its end: its end then finds the subscriber no
    longer on the list.

    cpu0 (zap)                          cpu1 (unregister)
    srcu_read_lock; reads the list
                                        hlist_del_init_rcu
    callback of the subscriber          synchronize_srcu
    srcu_read_unlock                    [Required: now, and not before, it may be freed]
    """
    cpu.srcu_read_lock()
    whole = MmuNotifierRange(mm, 0, ULONG_MAX, MmuNotifierEvent.RELEASE)
    await _call_one(cpu, "release", driver, node, whole)
    cpu.srcu_read_unlock()
    await cpu.mem(NotifierDelete(mm, node))
    if cpu.world.kernel.unregister_waits:
        await synchronize_srcu(cpu)
    cpu.port.emit(Unregistered(node, mm))


async def synchronize_srcu(cpu: Processor) -> None:
    """``synchronize_srcu(&srcu)``: every read section that is open on any processor has ended."""
    await cpu.sleep_all((name, SynchronizeSrcu()) for name in cpu.world.processors())
