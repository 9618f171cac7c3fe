"""include/linux/mm.h ``struct vm_fault``: what the functions of a page fault hand to each other."""

from __future__ import annotations

from dataclasses import dataclass

from mmurace.nodes.kernel import pgtable
from mmurace.nodes.kernel.context import Processor
from mmurace.protocol import pte as ptes
from mmurace.protocol.messages.memory import PteLoad, PteSet, Vma

ANON_FLAGS = ptes.PRESENT | ptes.ACCESSED


@dataclass(slots=True)
class VmFault:
    """``struct vm_fault``: what faults, in which VMA, at which leaf entry."""

    mm: str
    address: int
    write: bool
    vma: Vma
    table: int
    pte: int

    @property
    def write_flags(self) -> int:
        """``maybe_mkwrite(pte_mkdirty(...))``."""
        return ptes.WRITE | ptes.DIRTY if self.vma.write and self.write else 0


async def load(cpu: Processor, fault: VmFault) -> int:
    """``ptep_get(vmf->pte)``: the entry as it is now."""
    return (await cpu.mem(PteLoad(fault.table, pgtable.pte_index(cpu, fault.address)))).pte


async def set_pte_at(cpu: Processor, fault: VmFault, pte: int) -> None:
    """``set_pte_at``, where there was no present entry before; under the PTL."""
    await cpu.mem(PteSet(fault.table, pgtable.pte_index(cpu, fault.address), pte))
