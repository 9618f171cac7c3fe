"""mm/mmu_notifier.c, include/linux/mmu_notifier.h: interval notifiers (99cb252f5e68, v5.5).

A driver subscribes to a part of an mm.  Its callback comes at the start of an invalidation only;
that one is under way is told by a sequence, which is odd meanwhile:

    cpu0 (invalidate)                   cpu1 (driver's page fault)
                                        seq = read_begin: that of the last callback
                                        snapshot of the page table
    inv_start: the sequence is odd
    callback, under the driver's lock:
      set_seq; drop entries
    clear the entry, flush
    inv_end: even
                                        the driver's lock
                                        read_retry(seq)?  [Required: under that lock, before the
                                        snapshot is installed]

Read before the callback, ``seq`` differs then; read after it, the reader has waited for the end.

The first interval of an mm is inserted under ``mm_take_all_locks``, so that no invalidation is
under way that has not counted itself; here every invalidation does where a device may subscribe.
"""

from __future__ import annotations

from contextlib import suppress

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EOVERFLOW
from mmurace.nodes.kernel.mmu_notifier_range import MmuNotifierRange
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondary import named
from mmurace.nodes.world import MEMORY
from mmurace.protocol.errors import PeerLost
from mmurace.protocol.events import MmuNotifierEvent
from mmurace.protocol.limits import ULONG_MAX
from mmurace.protocol.messages.intervals import (
    IntervalInsert,
    IntervalReadBegin,
    IntervalRemove,
    IntervalSeqLoad,
    IntervalSetSeq,
    IntervalWait,
    ItreeDeferred,
    ItreeInvEnd,
    ItreeInvStart,
)
from mmurace.protocol.records import NONBLOCK, NotifierCall

# ---- by whoever invalidates ----------------------------------------------------------------------


async def mn_itree_invalidate(cpu: Processor, range_: MmuNotifierRange) -> bool:
    """``mn_itree_invalidate``: whether every callback has done it.

    ``out_would_block``: who must not sleep and would have to ends the invalidation at once, and its
    caller does not.
    """
    if not cpu.world.has_itrees():
        return True
    started = await cpu.mem(ItreeInvStart(range_.mm, range_.start, range_.end))
    for driver, node in started.found:
        done = await _invalidate(cpu, driver, node, range_, started.seq)
        if not done and not range_.blockable:
            await mn_itree_inv_end(cpu, range_)
            return False
    return True


async def _invalidate(
    cpu: Processor, driver: str, node: str, range_: MmuNotifierRange, seq: int
) -> bool:
    """``interval_sub->ops->invalidate``."""
    callback = named(driver).interval
    assert callback is not None
    mm, start, end, event = range_.mm, range_.start, range_.end, range_.event
    op, within = cpu.port.operation, "" if range_.blockable else NONBLOCK
    cpu.port.emit(NotifierCall("invalidate", node, mm, start, end, event, "begin", op, within))
    done = True
    with suppress(PeerLost):  # the device is gone, and all that it held
        done = await callback(cpu, node, range_, seq)
    cpu.port.emit(NotifierCall("invalidate", node, mm, start, end, event, "end", op, within))
    return done


async def mn_itree_inv_end(cpu: Processor, range_: MmuNotifierRange) -> None:
    """``mn_itree_inv_end``: the last one makes the sequence even, and then changes the tree.

    cpu0 (end of an invalidation)       cpu1 (mmu_interval_notifier_remove)
    subscriptions->lock
    the sequence is even
                                        the sequence is another one: returns, frees  [Required: not
    takes the subscription out          without the lock]
    unlock
    """
    if not cpu.world.has_itrees():
        return
    left = await cpu.mem(ItreeInvEnd(range_.mm, range_.start, range_.end, range_.owner))
    if left.value:
        await cpu.mem(ItreeDeferred(range_.mm))


async def mn_itree_release(cpu: Processor, mm: str) -> None:
    """``mn_itree_release``: an invalidation of everything, as the mm ends."""
    if cpu.world.has_itrees():
        whole = MmuNotifierRange(mm, 0, ULONG_MAX, MmuNotifierEvent.RELEASE)
        await mn_itree_invalidate(cpu, whole)
        await mn_itree_inv_end(cpu, whole)


# ---- by drivers ----------------------------------------------------------------------------------


async def mmu_interval_notifier_insert(
    cpu: Processor, driver: str, node: str, mm: str, start: int, length: int
) -> int:
    """``mmu_interval_notifier_insert``: 0, and from here on callbacks come, also in one's midst.

    -EOVERFLOW: no such range (``__mmu_interval_notifier_insert``).
    """
    last = start + length - 1
    if length <= 0 or last > ULONG_MAX:
        return -EOVERFLOW
    await cpu.mem(IntervalInsert(mm, driver, node, start, last))
    return 0


def mm_of_subscription(kernel: Kernel, inserted: int) -> bool:
    """Whether ``interval_sub->mm`` is set once an insertion has returned that."""
    return inserted == 0 or kernel.mm.interval_insert_sets_mm == "first"


async def mmu_interval_notifier_remove(
    cpu: Processor, node: str, mm: str, perhaps: bool = False
) -> bool:
    """``mmu_interval_notifier_remove``: when it returns no callback runs, nor ever will.

    False: there was none to remove, or somebody else is about it: a bug unless ``perhaps``.

    It waits for invalidations under way, whose end takes the subscription out of the tree; what it
    waits for is looked at under ``subscriptions->lock`` (319561669a59, v5.18), or without it.
    """
    seq = (await cpu.mem(IntervalRemove(mm, node, perhaps))).value
    if seq > 0:
        locked = cpu.world.kernel.mm.interval_remove_looks == "under_lock"
        await cpu.sleep(MEMORY, IntervalWait(mm, seq, locked))
    return seq >= 0


async def mmu_interval_read_begin(cpu: Processor, node: str, mm: str) -> int:
    """``mmu_interval_read_begin``: the sequence to compare with, once nothing is under way.

    The look at the two sequences, under ``subscriptions->lock``, pairs with
    ``mn_itree_inv_start_range``; that at the interval's with ``mmu_interval_set_seq``.
    """
    found = await cpu.mem(IntervalReadBegin(mm, node))
    if found.invalidating:
        await cpu.sleep(MEMORY, IntervalWait(mm, found.seq, False))
    return found.seq


async def mmu_interval_read_retry(cpu: Processor, node: str, mm: str, seq: int) -> bool:
    """``mmu_interval_read_retry``: whether a callback came since; under the driver's lock.

    ``mmu_interval_check_retry`` is the same without it: a hint, and no more.
    """
    return (await cpu.mem(IntervalSeqLoad(mm, node))).value != seq


async def mmu_interval_set_seq(cpu: Processor, node: str, mm: str, seq: int) -> None:
    """``mmu_interval_set_seq``: by the callback, under the driver's lock, before entries go."""
    await cpu.mem(IntervalSetSeq(mm, node, seq))
