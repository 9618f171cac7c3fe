"""include/linux/mm_inline.h, include/linux/mm_types.h: flushes that an mm still owes.

``mm->tlb_flush_pending`` counts who has changed entries, or is about to, and has not flushed.
``inc_tlb_flush_pending`` pairs with ``mm_tlb_flush_pending`` and ``mm_tlb_flush_nested`` by way of
the PTL: it is raised before the lock is taken, so whoever finds a changed entry under the same lock
finds it raised.  ``dec_tlb_flush_pending`` comes behind the flush and pairs with nothing: who reads
too high a count flushes for nothing.

    cpu0                                cpu1
    tlb_flush_pending++
    PTL; change pte; unlock
                                        PTL; pte is none already; unlock
                                        tlb_flush_pending?   [Required: > 0 until the flush, or
    flush                               cpu1 returns while others still have the old entry]
    tlb_flush_pending--
"""

from __future__ import annotations

from mmurace.nodes.kernel.context import Processor
from mmurace.protocol.messages.memory import TlbFlushPending


async def inc_tlb_flush_pending(cpu: Processor, mm: str) -> None:
    """``inc_tlb_flush_pending``: before the first entry is changed."""
    await cpu.mem(TlbFlushPending(mm, 1))


async def dec_tlb_flush_pending(cpu: Processor, mm: str) -> None:
    """``dec_tlb_flush_pending``: after the flush."""
    await cpu.mem(TlbFlushPending(mm, -1))


async def mm_tlb_flush_pending(cpu: Processor, mm: str) -> bool:
    """``mm_tlb_flush_pending``, under the PTL of the entry in question: somebody owes a flush."""
    return (await cpu.mem(TlbFlushPending(mm, 0))).value > 0


async def mm_tlb_flush_nested(cpu: Processor, mm: str) -> bool:
    """``mm_tlb_flush_nested``: somebody besides the caller owes one."""
    return (await cpu.mem(TlbFlushPending(mm, 0))).value > 1
