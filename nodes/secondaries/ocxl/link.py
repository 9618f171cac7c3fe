"""drivers/misc/ocxl/link.c and arch/powerpc/platforms/powernv/ocxl.c: the notifier of a link.

A link either snoops the processors' ``tlbie`` (POWER9), and needs no notifier, or is told by writes
to MMIO registers what to drop (ATSD, POWER10), and then snoops nothing.  A register takes one page
or everything of a PID, so the driver loops over a range.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.variant import Kernel
from mmurace.nodes.secondaries.decode import ALL, decode, pages_left
from mmurace.nodes.secondaries.ocxl.locking import lock_atsd, unlock_atsd
from mmurace.nodes.secondaries.ocxl.messages import (
    AtsdLaunch,
    PasidFind,
    TerminatePasid,
)
from mmurace.nodes.secondaries.ocxl.variant import OcxlSwitches
from mmurace.protocol.limits import LOOP_COMMANDS_MAX, PAGE_SHIFT, PAGE_SIZE, ULONG_MAX
from mmurace.protocol.messages.book3s64 import ContextIdLoad
from mmurace.protocol.records import LoopCut


async def invalidate_range(cpu: Processor, link: str, mm: str, start: int, end: int) -> None:
    """``invalidate_range`` (v5.11), ``arch_invalidate_secondary_tlbs`` (v6.6); under the PTL.

    A long loop is cut short: the trace says how many turns were left, and what they would have come
    to is one command.
    """
    pid = (await cpu.mem(ContextIdLoad(mm))).value
    await lock_atsd(cpu, link)
    await _launch(cpu, link, pid, mm, start, end)
    await unlock_atsd(cpu, link)


async def _launch(cpu: Processor, link: str, pid: int, mm: str, start: int, end: int) -> None:
    if OcxlSwitches.of(cpu.world.kernel).ocxl_decoder == "exact" and (start, end) == ALL:
        await pnv_ocxl_tlb_invalidate(cpu, link, pid, 0)
        return
    pages_max = min(cpu.world.address_end() >> PAGE_SHIFT, LOOP_COMMANDS_MAX)
    for first, _ in tuple(decode("per_page_loop", start, end, pages_max)):
        await pnv_ocxl_tlb_invalidate(cpu, link, pid, first)
    left = pages_left(start, end, pages_max)
    if left:
        cpu.port.emit(LoopCut(link, mm, start, end, left, cpu.port.operation))
        await cpu.port.call(link, AtsdLaunch(pid, start + pages_max * PAGE_SIZE, end))


async def pnv_ocxl_tlb_invalidate(cpu: Processor, link: str, pid: int, address: int) -> None:
    """``pnv_ocxl_tlb_invalidate``: launch one invalidation and poll until it is done.

    An address of 0 asks for everything of the PID.
    """
    start, end = (address, address + PAGE_SIZE) if address else (0, ULONG_MAX)
    await cpu.port.call(link, AtsdLaunch(pid, start, end))


def notifier_ops(kernel: Kernel) -> Mapping[str, Any]:
    """``ocxl_mmu_notifier_ops``: one op, and no ``release`` in any release."""
    name = (
        "arch_invalidate_secondary_tlbs" if kernel.arch.arch_secondary_flush else "invalidate_range"
    )
    ops = {name: invalidate_range}
    return ops | ({"release": release} if OcxlSwitches.of(kernel).ocxl_notifier_releases else {})


async def invalidate_pid(cpu: Processor, link: str, mm: str) -> None:
    """Everything under the PID of an mm."""
    pid = (await cpu.mem(ContextIdLoad(mm))).value
    await lock_atsd(cpu, link)
    await pnv_ocxl_tlb_invalidate(cpu, link, pid, 0)
    await unlock_atsd(cpu, link)


async def release(cpu: Processor, link: str, mm: str, _start: int, _end: int) -> None:
    """A ``release`` that no version of the driver has: stop the accelerator, invalidate the PID."""
    pasid = (await cpu.mem(PasidFind(link, mm))).value
    if pasid:
        await cpu.sleep(link, TerminatePasid(pasid))
        await invalidate_pid(cpu, link, mm)
