"""mm/hmm.c: ``hmm_range_fault``, a snapshot of a part of the page table for a device (v5.8 form).

Nothing holds the pages or the entries still: the snapshot is right if no invalidation of the range
came since ``notifier_seq``, which the driver asks under its own lock before it uses it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmurace.nodes.kernel import memory, migration_entry
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.errno import EBUSY, EFAULT, EPERM
from mmurace.nodes.kernel.interval_notifier import mmu_interval_read_retry
from mmurace.nodes.kernel.pgtable import pte_offset_map, ptep_get
from mmurace.protocol import pte as ptes
from mmurace.protocol.limits import FAULT_ATTEMPTS_MAX, PAGE_SIZE
from mmurace.protocol.messages.device_memory import PagePgmap
from mmurace.protocol.messages.memory import Vma, VmaFind


@dataclass(frozen=True, slots=True)
class HmmPfn:
    """One of ``hmm_pfns``: an entry that is valid, nothing (0), or ``HMM_PFN_ERROR``."""

    pte: int = 0
    walk: str = ""
    """The load that found it."""
    error: bool = False

    @property
    def valid(self) -> bool:
        """``HMM_PFN_VALID``."""
        return bool(self.pte)

    @property
    def writable(self) -> bool:
        """``HMM_PFN_WRITE``."""
        return bool(self.pte & ptes.WRITE)


@dataclass(slots=True)
class HmmRange:
    """``struct hmm_range``: [start, end) of an mm for the notifier of a node."""

    mm: str
    node: str
    start: int
    end: int
    notifier_seq: int
    fault: bool
    """``HMM_PFN_REQ_FAULT``: what is not there is faulted in."""
    write: bool = False
    """``HMM_PFN_REQ_WRITE``."""
    dev_private_owner: str = ""
    """The device whose own pages are reported as they are; empty: all are faulted in."""
    pfns: dict[int, HmmPfn] = field(default_factory=dict)
    """By address."""


async def hmm_range_fault(cpu: Processor, range_: HmmRange) -> int:
    """``hmm_range_fault``, under mmap_lock for read: 0, or -errno.

    -EBUSY: an invalidation came, and what was found is worth nothing.  -EFAULT, -EPERM: a page
    that is asked for cannot be had.  A fault makes the walk begin anew where it was.
    """
    vmas = (await cpu.mem(VmaFind(range_.mm, range_.start, range_.end))).vmas
    at = range_.start
    for _ in range(FAULT_ATTEMPTS_MAX):
        if await mmu_interval_check_retry(cpu, range_):
            return -EBUSY
        at, result = await _walk(cpu, range_, vmas, at)
        if result != -EBUSY:
            return result
    return -EBUSY


async def mmu_interval_check_retry(cpu: Processor, range_: HmmRange) -> bool:
    """``mmu_interval_check_retry``: without the driver's lock, so that it may be wrong soon."""
    return await mmu_interval_read_retry(cpu, range_.node, range_.mm, range_.notifier_seq)


async def _walk(
    cpu: Processor, range_: HmmRange, vmas: tuple[Vma, ...], at: int
) -> tuple[int, int]:
    """``walk_page_range``: (``last``, -EBUSY after a fault, 0 or another error)."""
    while at < range_.end:
        vma = next((vma for vma in vmas if vma.start <= at < vma.end), None)
        if vma is None or not vma.read:  # hmm_vma_walk_hole, hmm_vma_walk_test
            if range_.fault:
                return at, -EFAULT
            range_.pfns[at] = HmmPfn(error=True)
        else:
            result = await hmm_vma_walk_pmd(cpu, range_, vma, at)
            if result:
                return at, result
        at += PAGE_SIZE
    return at, 0


async def hmm_vma_walk_pmd(cpu: Processor, range_: HmmRange, vma: Vma, at: int) -> int:
    """``hmm_vma_walk_pmd`` and ``hmm_vma_handle_pte`` of a page: 0, -EBUSY after a fault, -errno.

    The entry is loaded without the PTL.  A page in the device's own memory is reported, writable or
    not, whatever is asked for; one in another's is faulted in (8a295dbbaf72, v5.19; before, it is
    an error).
    """
    table = await pte_offset_map(cpu, range_.mm, at)
    walk = cpu.port.upcoming
    pte = await ptep_get(cpu, table, at) if table >= 0 else ptes.NONE
    if ptes.is_device_private(pte) and await _is_own(cpu, range_, pte):
        range_.pfns[at] = HmmPfn(pte, walk)
        return 0
    if not need_fault(range_, pte):
        range_.pfns[at] = HmmPfn(pte, walk) if ptes.hw_present(pte) else HmmPfn()
        return 0
    if ptes.is_migration(pte):
        await migration_entry.migration_entry_wait(cpu, table, at)
        return -EBUSY
    foreign = ptes.is_device_private(pte)
    if foreign and not cpu.world.kernel.mm.hmm_faults_foreign_pages:
        return -EFAULT
    return await hmm_vma_fault(cpu, range_, vma, at)


async def _is_own(cpu: Processor, range_: HmmRange, pte: int) -> bool:
    """``hmm_is_device_private_entry``."""
    owner = range_.dev_private_owner
    return bool(owner) and (await cpu.mem(PagePgmap(ptes.frame_of(pte)))).owner == owner


def need_fault(range_: HmmRange, pte: int) -> bool:
    """``hmm_pte_need_fault``: whether what is asked for is more than the entry grants."""
    return range_.fault and not ptes.permits(pte, range_.write)


async def hmm_vma_fault(cpu: Processor, range_: HmmRange, vma: Vma, at: int) -> int:
    """``hmm_vma_fault``: -EBUSY once it is faulted in, -EPERM in a read-only VMA, -EFAULT."""
    if range_.write and not vma.write:
        return -EPERM
    result = await memory.handle_mm_fault_locked(cpu, range_.mm, at, range_.write)
    return -EFAULT if result else -EBUSY
