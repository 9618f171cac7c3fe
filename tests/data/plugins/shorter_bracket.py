"""A patch of mm/mprotect.c: KVM may fault on pages again before the whole range is done."""

from typing import Any

from mmurace import plugin as api


@api.replaces("mm/mprotect.c", "change_pte_range", patch="shorter-bracket")
async def change_pte_range(
    cpu: api.Processor, gather: Any, change: Any, table: int, address: int, end: int
) -> None:
    """The bracket ends when the shadow entries are gone, so that no fault has to wait."""
    vma, event = change.vma, api.MmuNotifierEvent.PROTECTION_VMA
    range_ = api.mmu_notifier.MmuNotifierRange(gather.mm, vma.start, vma.end, event)
    await api.mmu_notifier.invalidate_range_end(cpu, range_)
    await change_pte_range.stock(cpu, gather, change, table, address, end)
