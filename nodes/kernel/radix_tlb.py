"""arch/powerpc/mm/book3s64/radix_tlb.c: a flush of this processor, or of everybody by ``tlbie``.

A ``tlbie`` is broadcast: every processor sees it, and a link that snoops the bus as well.  It is
slow, so an mm that only one processor runs is flushed there (``tlbiel``).  A coprocessor that walks
the page table is on no mask; it has to count as a processor, or nobody tells it:

    cpu0 (munmap)                       link
                                        holds the entry
    clear the entry
    active_cpus is 1, and that is me:
    tlbiel                              [Required: a context of a link has been counted]
    free the frame
                                        reaches it
"""

from __future__ import annotations

from typing import Literal

from mmurace.nodes.kernel import mmu_notifier
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.world import World
from mmurace.protocol.limits import ULONG_MAX
from mmurace.protocol.messages.book3s64 import ActiveCpusLoad, ContextIdLoad, CoprosAdd, Tlbie
from mmurace.protocol.messages.memory import CpumaskLoad
from mmurace.protocol.messages.processor import Tlbi

FlushType = Literal["none", "local", "global"]


async def flush_type_needed(cpu: Processor, mm: str) -> FlushType:
    """``flush_type_needed``; to v4.17 only whether the mm is this processor's alone.

    Since v4.18 (0cef77c7798a) the only thread of a process takes the others, which run no thread of
    it any more, out of the mask, and flushes locally.  Here a processor in the mask runs a thread
    of the mm, so nothing is left to take out.
    """
    active = (await cpu.mem(ActiveCpusLoad(mm))).value
    if active == 0:
        return "none"
    alone = (await cpu.mem(CpumaskLoad(mm))).cpus == (cpu.name,)
    if active == 1 and alone:
        return "local"
    if cpu.world.kernel.arch.tlbie_scope == "by_cpumask":
        return "global"
    if (await cpu.mem(CoprosAdd(mm, 0))).value:
        return "global"  # coprocessors require tlbie
    return "local" if alone else "global"


async def radix__flush_tlb_range(
    cpu: Processor, mm: str, start: int, end: int, tables: bool = False
) -> None:
    """``radix__flush_tlb_range``, ``..._page``, ``..._mm``: the processors' own part.

    ``tables``: the page-walk caches as well (``radix__flush_tlb_pwc_range_psize``).
    """
    needed = await flush_type_needed(cpu, mm)
    if needed == "local":
        await cpu.flush_tlb_local(mm, start, end, tables)
    elif needed == "global":
        await _tlbie(cpu, mm, start, end, tables)


async def _tlbie(cpu: Processor, mm: str, start: int, end: int, tables: bool) -> None:
    """``__tlbie_va_range`` or ``_tlbie_pid``; then ``eieio; tlbsync; ptesync``."""
    pid = 0
    if _snoopers(cpu.world):
        pid = (await cpu.mem(ContextIdLoad(mm))).value
    posted = _broadcast(cpu, Tlbi(mm, start, end, tables), Tlbie(pid, start, end))
    await cpu.flush_tlb_local(mm, start, end, tables)
    await cpu.port.settle(posted)


def _broadcast(cpu: Processor, to_processors: Tlbi, to_links: Tlbie) -> list[str]:
    """The two are one instruction; a PID of 0 concerns no link."""
    others = [name for name in cpu.world.processors() if name != cpu.name]
    posted = [cpu.port.post(name, to_processors) for name in others]
    snoopers = _snoopers(cpu.world) if to_links.pid else []
    return posted + [cpu.port.post(name, to_links) for name in snoopers]


def _snoopers(world: World) -> list[str]:
    """Secondaries that see the bus."""
    return [part.name for part in world.parts if not part.told(world.kernel)]


async def radix__flush_all_mm(cpu: Processor, mm: str) -> None:
    """``radix__flush_all_mm``: everything of the mm; from v6.6 the secondaries hear of it."""
    await radix__flush_tlb_range(cpu, mm, 0, ULONG_MAX)
    if cpu.world.kernel.arch.flush_mm_notifies:
        await mmu_notifier.arch_invalidate_secondary_tlbs(cpu, mm, 0, ULONG_MAX)
