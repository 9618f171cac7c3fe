"""virt/kvm/kvm_main.c: from an address of the VMM to a page, ``hva_to_pfn`` and what it calls."""

from __future__ import annotations

from mmurace.nodes.kernel import gup
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EFAULT, EINTR
from mmurace.nodes.kernel.gup import Gup
from mmurace.nodes.kernel.locking import mmap_read_lock, mmap_read_unlock
from mmurace.protocol import pte as ptes


async def look_at_vma(cpu: Processor, mm: str, hva: int) -> bool:
    """``vma_lookup`` under mmap_lock, for its kind: whether there is one.

    ``user_mem_abort`` of arm64 asks how large a page may be, before anything else (all releases).
    """
    await mmap_read_lock(cpu, mm)
    vma = await gup.vma_lookup(cpu, mm, hva)
    await mmap_read_unlock(cpu, mm)
    return vma is not None


async def hva_to_pfn(cpu: Processor, mm: str, hva: int, write: bool) -> Gup | int:
    """``hva_to_pfn``: the page with a reference, and the rights that it may be mapped with.

    Without a lock only a page that may be written, whatever the guest wants (``hva_to_pfn_fast``);
    else under mmap_lock, and once more without for one that was to be read, if it may be written by
    now (``hva_to_pfn_slow``).  If that fails the VMA is looked at, under mmap_lock, for it might be
    no memory (``VM_PFNMAP``); a look for poisoned memory is left out.  -EINTR or -EFAULT.
    """
    got = await gup.get_user_page_fast_only(cpu, mm, hva, True)
    if got:
        return got
    slow = await gup.get_user_pages_unlocked(cpu, mm, hva, write)
    if isinstance(slow, int):
        if slow == -EINTR:
            return slow
        await look_at_vma(cpu, mm, hva)
        return -EFAULT
    if write:
        return slow
    better = await gup.get_user_page_fast_only(cpu, mm, hva, True)
    if better:
        await gup.put_page(cpu, slow.frame)
    return better or Gup(slow.pte & ~ptes.WRITE, slow.walk)
