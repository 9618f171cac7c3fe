"""mm/mmu_notifier.c and include/linux/mmu_notifier.h: the calls that the core makes.

Two kinds of subscriber (catalogue 1).  A *shadow* (KVM) owns a parallel table: it drops at
``invalidate_range_start`` and installs nothing until ``invalidate_range_end``.  A *shared-table*
secondary (an IOMMU with SVA) walks the mm's own table: it must be flushed when the CPU is, by
``invalidate_range`` (v3.19 to v6.5) or ``arch_invalidate_secondary_tlbs`` (v6.6).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from mmurace.nodes.kernel import interval_notifier
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.locking import mmap_write_lock, mmap_write_unlock
from mmurace.nodes.kernel.mm_all_locks import mm_drop_all_locks, mm_take_all_locks
from mmurace.nodes.kernel.mmu_notifier_range import MmuNotifierRange as MmuNotifierRange
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondary import Callback, named, secondaries
from mmurace.nodes.world import World
from mmurace.protocol.errors import PeerLost
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import PAGE_SIZE, ULONG_MAX
from mmurace.protocol.messages.memory import (
    NotifierAdd,
    NotifierDelete,
    NotifierList,
)
from mmurace.protocol.messages.processor import SynchronizeSrcu
from mmurace.protocol.records import Coverage, NotifierCall, Unregistered

BRACKET: Final = ("invalidate_range_start", "invalidate_range_end")


async def _call(cpu: Processor, callback: str, range_: MmuNotifierRange) -> None:
    """Call ``callback`` of every subscriber that has it, in list order, under srcu.

    ``srcu_read_lock``, then the walk of the list, pair with ``hlist_del_init_rcu``, then
    ``synchronize_srcu`` of ``mmu_notifier_unregister``: who was found on the list is not freed
    before the section ends, and a section that begins later does not find it.
    """
    cpu.srcu_read_lock()
    subscribers = await cpu.mem(NotifierList(range_.mm))
    for driver, node in subscribers.entries:
        await _call_one(cpu, callback, driver, node, range_)
    cpu.srcu_read_unlock()


async def _call_one(
    cpu: Processor, callback: str, driver: str, node: str, range_: MmuNotifierRange,
    within: str = "",
) -> bool:  # fmt: skip
    """False: a callback that must not sleep would have had to."""
    function, done = _callback(cpu.world.kernel, driver, callback, range_), None
    if function is None:
        return True
    mm, start, end, event = range_.mm, range_.start, range_.end, range_.event
    op = cpu.port.operation
    cpu.port.emit(NotifierCall(callback, node, mm, start, end, event, "begin", op, within))
    # PeerLost: what the callback works on is freed.  Only where nobody waited for its end.
    with suppress(PeerLost):
        done = await function(cpu, node, mm, start, end)
    cpu.port.emit(NotifierCall(callback, node, mm, start, end, event, "end", op, within))
    return done is not False


def _callback(
    kernel: Kernel, driver: str, callback: str, range_: MmuNotifierRange
) -> Callback | None:
    """The function of a driver's ``struct mmu_notifier_ops``, unless it passes this event over."""
    secondary = named(driver)
    if callback in BRACKET and secondary.passes_over(kernel, range_.event):
        return None
    ops = secondary.ops(kernel)
    nonblock = None if range_.blockable else ops.get(f"{callback}_nonblock")
    return nonblock or ops.get(callback)


async def invalidate_range_start(cpu: Processor, range_: MmuNotifierRange) -> None:
    """``mmu_notifier_invalidate_range_start`` (all releases); may sleep.

    From v5.5 interval notifiers come first.
    """
    await interval_notifier.mn_itree_invalidate(cpu, range_)
    await _call(cpu, "invalidate_range_start", range_)


async def invalidate_range_start_nonblock(cpu: Processor, range_: MmuNotifierRange) -> bool:
    """``mmu_notifier_invalidate_range_start_nonblock`` (v5.0; v4.19: with ``blockable`` false).

    False: a subscriber would have had to sleep, and the caller calls no end.  So what was begun
    for the others is ended here, that of interval notifiers too (6d65925777ec).
    """
    if not await interval_notifier.mn_itree_invalidate(cpu, range_):
        return False
    if await mn_hlist_invalidate_range_start(cpu, range_):
        return True
    if cpu.world.kernel.mm.start_fails_itree == "ended":
        await interval_notifier.mn_itree_inv_end(cpu, range_)
    return False


async def mn_hlist_invalidate_range_start(cpu: Processor, range_: MmuNotifierRange) -> bool:
    """``mn_hlist_invalidate_range_start`` where nobody may sleep (v4.19).

    Every subscriber is called, whatever those before it say.  Who says that it would have to sleep
    has no end to be called, and all others hear theirs (c2655835fd8c, v5.12).

    cpu0 (OOM reaper)
    start of kvm0: its count goes up
    start of gpu0: -EAGAIN
    end of kvm0                         [Required: or its count is never zero again]
    """
    cpu.srcu_read_lock()
    start, end = BRACKET
    subscribers = (await cpu.mem(NotifierList(range_.mm))).entries
    done = [await _call_one(cpu, start, driver, node, range_) for driver, node in subscribers]
    if not all(done):
        cpu.port.emit(Coverage("start_refused"))
        if cpu.world.kernel.mm.start_fails == "ends_all":
            for driver, node in subscribers:
                await _call_one(cpu, end, driver, node, range_)
    cpu.srcu_read_unlock()
    return all(done)


async def invalidate_range_end(
    cpu: Processor, range_: MmuNotifierRange, only_end: bool = False
) -> None:
    """``mmu_notifier_invalidate_range_end``, or ``..._only_end`` (v4.15 to v6.5).

    Up to v6.5 ``mn_hlist_invalidate_end`` calls each subscriber's ``invalidate_range`` before
    its ``invalidate_range_end``, unless ``only_end``.
    """
    await interval_notifier.mn_itree_inv_end(cpu, range_)
    cpu.srcu_read_lock()
    subscribers = await cpu.mem(NotifierList(range_.mm))
    for driver, node in subscribers.entries:
        if cpu.world.kernel.mm.end_calls_ir and not only_end:
            within = "invalidate_range_end"
            await _call_one(cpu, "invalidate_range", driver, node, range_, within)
        await _call_one(cpu, "invalidate_range_end", driver, node, range_)
    cpu.srcu_read_unlock()


async def invalidate_range(cpu: Processor, mm: str, start: int, end: int) -> None:
    """``mmu_notifier_invalidate_range`` (v3.19 to v6.5); atomic, often under the PTL."""
    await _call(cpu, "invalidate_range", MmuNotifierRange(mm, start, end, MmuNotifierEvent.CLEAR))


async def invalidate_page(cpu: Processor, mm: str, address: int) -> None:
    """``mmu_notifier_invalidate_page`` (to v4.12): the entry has changed, the page is not free yet.

    ``invalidate_range`` is not called beside it: a subscriber that shares the table has both.
    """
    range_ = MmuNotifierRange(mm, address, address + PAGE_SIZE, MmuNotifierEvent.CLEAR)
    await _call(cpu, "invalidate_page", range_)


async def arch_invalidate_secondary_tlbs(cpu: Processor, mm: str, start: int, end: int) -> None:
    """``mmu_notifier_arch_invalidate_secondary_tlbs`` (v6.6): beside the arch's own flush."""
    await _call(
        cpu,
        "arch_invalidate_secondary_tlbs",
        MmuNotifierRange(mm, start, end, MmuNotifierEvent.CLEAR),
    )


async def clear_flush_young(cpu: Processor, mm: str, start: int, end: int) -> None:
    """``mmu_notifier_clear_flush_young`` (all releases; one address to v3.18); under the PTL.

    It comes without a bracket: nothing is taken away that the mm still grants.
    """
    range_ = MmuNotifierRange(mm, start, end, MmuNotifierEvent.CLEAR)
    await _call(cpu, "clear_flush_young", range_)


async def mmu_notifier_register(cpu: Processor, driver: str, node: str, mm: str) -> None:
    """``mmu_notifier_register``: under mmap_lock and ``mm_take_all_locks``, so in no bracket.

    Both pair with the locks under which brackets are opened: a subscriber gets no end without a
    start, and knows of every change that is on its way.

    cpu0 (invalidate)                   cpu1 (register)
    start: the list is empty
                                        on the list  [Required: not before the end]
                                        the subscriber looks the entry up, and keeps it
    clear the entry; flush; free
    end
    """
    takes_all = cpu.world.kernel.mm.register_locks != "mmap_lock"
    await mmap_write_lock(cpu, mm)
    files = await mm_take_all_locks(cpu, mm) if takes_all else ()
    await cpu.mem(NotifierAdd(mm, driver, node))
    if takes_all:
        await mm_drop_all_locks(cpu, mm, files)
    await mmap_write_unlock(cpu, mm)


async def mmu_notifier_release(cpu: Processor, mm: str) -> None:
    """``__mmu_notifier_release`` (all releases): every subscriber that goes with the process.

    First interval notifiers (``mn_itree_release``, v5.5), which stay in the tree.

    cpu0 (exits)                        cpu1 (zap of a page of the mm, by rmap)
    release                             callback of the subscriber
    off the list; synchronize_srcu      [Required: it has returned before anything is freed]

    ``mn_hlist_release``: the callbacks are in a read section, for which an unregistration waits.
    """
    await interval_notifier.mn_itree_release(cpu, mm)
    if not _any_released_at_exit(cpu.world):
        return
    whole = MmuNotifierRange(mm, 0, ULONG_MAX, MmuNotifierEvent.RELEASE)
    cpu.srcu_read_lock()
    subscribers = (await cpu.mem(NotifierList(mm))).entries
    going = [(driver, node) for driver, node in subscribers if named(driver).released_at_exit]
    for driver, node in going:
        await _call_one(cpu, "release", driver, node, whole)
    for _, node in going:
        await cpu.mem(NotifierDelete(mm, node))
    cpu.srcu_read_unlock()
    if going:
        await synchronize_srcu(cpu)


def _any_released_at_exit(world: World) -> bool:
    """Of what may have been subscribed by now."""
    return any(one.released_at_exit and one.parts(world) for one in secondaries())


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
    if cpu.world.kernel.mm.unregister_waits:
        await synchronize_srcu(cpu)
    cpu.port.emit(Unregistered(node, mm))


async def synchronize_srcu(cpu: Processor) -> None:
    """``synchronize_srcu(&srcu)``: every read section that is open on any processor has ended."""
    await cpu.sleep_all((name, SynchronizeSrcu()) for name in cpu.world.processors())
