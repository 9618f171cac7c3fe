"""arch/x86/mm/fault.c, arch/arm64/mm/fault.c: a page fault of a processor."""

from __future__ import annotations

from mmurace.nodes.kernel import memory
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EFAULT
from mmurace.nodes.kernel.vm_fault import VM_FAULT_RETRY
from mmurace.nodes.kernel.vma_lock import lock_vma_under_rcu, vma_end_read
from mmurace.protocol.ranges import page_of


async def do_user_addr_fault(cpu: Processor, mm: str, address: int, write: bool) -> int:
    """``do_user_addr_fault`` (arm64: ``do_page_fault``): 0 (try the access again) or -errno.

    Under the lock of its VMA alone, if that suffices (0bff0aaea03e, cd7f176aea5f; v6.4), else
    under mmap_lock.  Whoever faults for somebody else (``get_user_pages``, drivers) takes mmap_lock
    in all releases.  An access that the VMA does not permit fails at once; releases before v6.12
    may have looked again under mmap_lock.
    """
    if cpu.world.kernel.mm.fault_vma_lock != "none":
        vma = await lock_vma_under_rcu(cpu, mm, address)
        if vma is not None:
            result = -EFAULT
            if vma.write if write else vma.read:
                result = await memory.fault_in_vma(cpu, mm, page_of(address), write, vma, True)
            await vma_end_read(cpu, mm, vma)
            if result != VM_FAULT_RETRY:
                return result
    return await memory.handle_mm_fault(cpu, mm, address, write)
