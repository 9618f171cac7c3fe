"""mm/gup.c: ``follow_page``, the page that is mapped now, and no fault."""

from __future__ import annotations

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EFAULT, ENOENT
from mmurace.nodes.kernel.page_ref import get_page
from mmurace.nodes.kernel.pgtable import pte_offset_map_lock, pte_unmap_unlock, ptep_get
from mmurace.protocol import pte as ptes


async def follow_page(cpu: Processor, mm: str, address: int) -> int:
    """``follow_page`` (``FOLL_GET | FOLL_DUMP``): the page that is mapped, with a reference.

    Under mmap_lock, and the PTL for the look (``follow_page_pte``), whatever the rights, where
    they are not none at all (``gup_can_follow_protnone``).  -ENOENT: nothing is mapped; -EFAULT:
    the zero page.
    """
    table = await pte_offset_map_lock(cpu, mm, address)
    if table < 0:
        return -ENOENT
    pte = await ptep_get(cpu, table, address)
    follows = cpu.world.kernel.mm.follow_page_protnone or not pte & ptes.PROTNONE
    found = ptes.frame_of(pte) if ptes.pte_present(pte) and follows else -ENOENT
    if found >= 0 and pte & ptes.SPECIAL:
        found = -EFAULT
    if found >= 0:
        await get_page(cpu, found)
    await pte_unmap_unlock(cpu, table)
    return found
