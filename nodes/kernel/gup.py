"""mm/gup.c: from a host virtual address to a referenced page."""

from __future__ import annotations

from dataclasses import dataclass

from mmurace.nodes.kernel import memory, pgtable
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EAGAIN, EFAULT, EINTR, ENOENT
from mmurace.nodes.translation import table_index
from mmurace.protocol import pte as ptes
from mmurace.protocol.limits import FAULT_ATTEMPTS_MAX
from mmurace.protocol.messages.memory import PageGet, PagePut, PteLoad, PtlLock, PtlUnlock
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
    for _ in range(FAULT_ATTEMPTS_MAX):
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
    load pte again                      [Required: it is the same, to the bit, or put and give up]

    From v6.1 (70cbc3cc78a9) the upper entry must be the same, too: whoever takes a table away does
    not change what is in it.
    """
    cpu.irq_disable()
    got = await _gup_pte(cpu, mm, address, write)
    cpu.irq_enable()
    return got


async def _gup_pte(cpu: Processor, mm: str, address: int, write: bool) -> Gup | None:
    pmds = await pgtable.find_leaf_table(cpu, mm, address, down_to=1)
    if pmds < 0:
        return None
    above = PteLoad(pmds, table_index(cpu.world, 1, address))
    pmd = (await cpu.mem(above)).pte
    if not ptes.hw_present(pmd):
        return None
    load = PteLoad(ptes.frame_of(pmd), pgtable.pte_index(cpu, address))
    pte = (await cpu.mem(load)).pte
    if not ptes.permits(pte, write) or not await _try_get(cpu, pte):
        return None
    same = not cpu.world.kernel.mm.gup_fast_rechecks_pmd or (await cpu.mem(above)).pte == pmd
    walk = cpu.port.upcoming
    if same and (await cpu.mem(load)).pte == pte:
        return Gup(pte, walk)
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


async def follow_page(cpu: Processor, mm: str, address: int) -> int:
    """``follow_page`` (``FOLL_GET | FOLL_DUMP``): the page that is mapped, with a reference.

    Under mmap_lock, and the PTL for the look (``follow_page_pte``), whatever the rights.  -ENOENT:
    nothing is mapped; -EFAULT: the zero page.
    """
    table = await pgtable.find_leaf_table(cpu, mm, address)
    if table < 0:
        return -ENOENT
    await cpu.mem(PtlLock(table))
    pte = (await cpu.mem(PteLoad(table, pgtable.pte_index(cpu, address)))).pte
    found = ptes.frame_of(pte) if ptes.pte_present(pte) else -ENOENT
    if found >= 0 and pte & ptes.SPECIAL:
        found = -EFAULT
    if found >= 0:
        await get_page(cpu, found)
    await cpu.mem(PtlUnlock(table))
    return found
