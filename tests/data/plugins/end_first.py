"""A patch of mm/mprotect.c: KVM may fault again as soon as its entries are gone."""

from mmurace import plugin as api


@api.replaces("mm/mprotect.c", "change_pte_range", patch="end-first")
async def change_pte_range(cpu, gather, table, part, address, vma):
    """The bracket ends before the entries change, so that nobody waits for them."""
    event = api.MmuNotifierEvent.PROTECTION_VMA
    range_ = api.mmu_notifier.MmuNotifierRange(gather.mm, vma.start, vma.end, event)
    await api.mmu_notifier.invalidate_range_end(cpu, range_)
    await change_pte_range.stock(cpu, gather, table, part, address, vma)
