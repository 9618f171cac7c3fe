"""mm/gup.c: from a host virtual address to a referenced page."""

from __future__ import annotations

from dataclasses import dataclass

from mmurace.nodes.kernel import memory, pgtable
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EAGAIN, EINTR
from mmurace.protocol import pte as ptes
from mmurace.protocol.limits import FAULT_RETRIES_MAX
from mmurace.protocol.messages.memory import PageGet, PagePut, PteLoad
from mmurace.protocol.ranges import page_of
from mmurace.protocol.records import FaultRetry

ZERO_PAGE = 0


@dataclass(frozen=True, slots=True)
class Gup:
    """A page with a reference: its entry, and the name of the load that found it."""

    pte: int
    walk: str

    @property
    def frame(self) -> int:
        """The frame number."""
        return ptes.frame_of(self.pte)


async def get_user_page(cpu: Processor, mm: str, address: int, write: bool) -> Gup | int:
    """``get_user_pages_unlocked`` for one page: fast, else fault it in and try again.

    The kernel's slow path looks the page up under mmap_lock after the fault; here the lockless
    walk is repeated instead, which sees the same entries.  -errno if the fault fails; -EINTR
    if the thread is to die, which is looked at before each attempt.
    """
    address = page_of(address)
    for _ in range(FAULT_RETRIES_MAX):
        got = await get_user_page_fast(cpu, mm, address, write)
        if got is not None:
            return got
        if cpu.fatal_signal_pending:
            return -EINTR
        result = await memory.handle_mm_fault(cpu, mm, address, write)
        if result:
            return result
        cpu.port.emit(FaultRetry(mm, address, write, "gup", cpu.port.operation))
    return -EAGAIN


async def get_user_page_fast(cpu: Processor, mm: str, address: int, write: bool) -> Gup | None:
    """``gup_pte_range``: a lockless walk with interrupts off; None: use the slow way.

    vcpu0 (fast GUP)                    cpu0 (zap)
    load pte: frame f
                                        clear pte; flush; free f
    try_get_page(f)
    load pte again                      [Required: it is no longer f, so put and give up]
    """
    cpu.irq_disable()
    got = await _gup_pte(cpu, mm, address, write)
    cpu.irq_enable()
    return got


async def _gup_pte(cpu: Processor, mm: str, address: int, write: bool) -> Gup | None:
    table = await pgtable.find_leaf_table(cpu, mm, address)
    if table < 0:
        return None
    index = pgtable.pte_index(cpu, address)
    pte = (await cpu.mem(PteLoad(table, index))).pte
    if not ptes.permits(pte, write):
        return None
    if not await _try_get(cpu, pte):
        return None
    walk = cpu.port.upcoming
    again = (await cpu.mem(PteLoad(table, index))).pte
    if ptes.frame_of(again) == ptes.frame_of(pte) and ptes.permits(again, write):
        return Gup(again, walk)
    await put_page(cpu, ptes.frame_of(pte))
    return None


async def _try_get(cpu: Processor, pte: int) -> bool:
    """``try_get_page``; the zero page is not counted."""
    if pte & ptes.SPECIAL:
        return True
    return (await cpu.mem(PageGet(ptes.frame_of(pte)))).value


async def put_page(cpu: Processor, frame: int) -> None:
    """``put_page``; the zero page is not counted."""
    if frame != ZERO_PAGE:
        await cpu.mem(PagePut(frame))


async def get_page(cpu: Processor, frame: int) -> None:
    """``get_page``: the caller knows that the page has a reference."""
    await cpu.mem(PageGet(frame))
