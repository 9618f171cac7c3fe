"""Mistakes in kernel code that no switch makes, so that every rule has runs that break it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

from mmurace.nodes.kernel import migrate, mmu_gather, mprotect, mremap, pgtable, rmap, tlbbatch
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.secondaries.kvm import vmx
from mmurace.protocol import pte as ptes


async def nothing(*_: object) -> None:
    """It is left out."""


async def stored_clean(cpu: Processor, table: int, address: int, pte: int) -> None:
    """``set_pte_at`` that forgets that the entry was dirty."""
    await pgtable.set_pte_at(cpu, table, address, pte & ~ptes.DIRTY)


async def cleared_only(cpu: Processor, _mm: str, address: int, table: int) -> int:
    """``ptep_clear_flush`` without its flush."""
    return await pgtable.ptep_get_and_clear(cpu, table, address)


async def stored_over(
    cpu: Processor, _mm: str, address: int, table: int, entry: int, _dirty: bool
) -> bool:  # fmt: skip
    """``ptep_set_access_flags`` that stores what was loaded before, whatever was set since."""
    changed = await pgtable.ptep_get(cpu, table, address) != entry
    if changed:
        await pgtable.set_pte_at(cpu, table, address, entry)
    return changed


MISTAKES: Final[dict[str, tuple[Any, str, Any]]] = {
    "a move forgets dirty": (mremap, "set_pte_at", stored_clean),
    "mprotect forgets dirty": (mprotect, "set_pte_at", stored_clean),
    "migration forgets dirty": (migrate, "set_pte_at", stored_clean),
    "access flags are stored plainly": (pgtable, "ptep_set_access_flags", stored_over),
    "no flush when an entry is cleared": (pgtable, "ptep_clear_flush", cleared_only),
    "no flush of a gather": (mmu_gather, "tlb_flush_mmu_tlbonly", nothing),
    "no flush of a batch": (tlbbatch, "try_to_unmap_flush", nothing),
    "no flush before a page is written": (tlbbatch, "try_to_unmap_flush_dirty", nothing),
    "a reload that lost is not asked for again": (vmx, "KVM_REQ_APIC_PAGE_RELOAD", "another"),
    "reclaim does not tell the page": (rmap, "_set_dirty", nothing),
}
"""What is done wrong: module, name in it, what is there instead."""


@contextmanager
def made(mistake: str) -> Iterator[None]:
    """Kernel code makes it; empty: none."""
    if not mistake:
        yield
        return
    where, name, instead = MISTAKES[mistake]
    with patch.object(where, name, instead):
        yield
