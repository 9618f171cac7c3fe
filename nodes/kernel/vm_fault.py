"""include/linux/mm.h: ``struct vm_fault``, what functions of a page fault hand on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mmurace.protocol import pte as ptes
from mmurace.protocol.messages.memory import Vma

VM_FAULT_RETRY: Final = 0x400
"""``handle_mm_fault`` cannot do it under the lock of a VMA; mmap_lock is needed."""
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
    vma_lock: bool = False
    """``FAULT_FLAG_VMA_LOCK``: the VMA is held for read, and mmap_lock is not."""

    @property
    def file_offset(self) -> int:
        """The byte of the file that is mapped at the address."""
        return self.vma.offset + self.address - self.vma.start

    @property
    def page(self) -> int:
        """The page that the entry leads to."""
        return ptes.frame_of(self.pte)

    @property
    def write_flags(self) -> int:
        """``maybe_mkwrite(pte_mkdirty(...))``."""
        return ptes.WRITE | ptes.DIRTY if self.vma.write and self.write else 0
