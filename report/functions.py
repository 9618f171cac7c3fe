"""What the kernel calls it: the function that a message or an operation stands for.

A message is one access to shared state; the access is made in some kernel function, which
depends on the access and on the operation that made it.
"""

from __future__ import annotations

from typing import Final

from mmurace.protocol.envelope import REPLY_MARK

OPERATIONS: Final = {
    "Mmap": "mmap_region",
    "Munmap": "do_munmap",
    "Brk": "do_brk",
    "Mprotect": "do_mprotect",
    "MadviseDontneed": "madvise_dontneed",
    "MadviseFree": "madvise_free",
    "MigratePages": "move_pages",
    "Touch": "handle_mm_fault",
    "Dma": "iommu_sva_handle_iopf",
    "GuestTouch": "kvm_mmu_page_fault",
    "GuestApic": "vcpu_enter_guest",
    "Mremap": "move_page_tables",
    "Fork": "dup_mmap",
    "ClearRefs": "clear_refs_write",
    "Execve": "exec_mmap",
    "Exit": "exit_mmap",
    "Truncate": "unmap_mapping_range",
    "Writeback": "write_cache_pages",
    "Kswapd": "shrink_folio_list",
    "KvmAddMemslot": "kvm_set_memslot",
    "Sigkill": "do_exit",
    "DeviceRemove": "iommu_release_device",
    "KvmDestroyVm": "mmu_notifier_unregister",
    "AfuTouch": "xsl_fault_handler_bh",
    "OcxlAttach": "ocxl_link_add_pe",
    "OcxlDetach": "ocxl_link_remove_pe",
}
"""Operation -> the function that serves it."""

CHANGES: Final = {
    "Mmap": "zap_pte_range",
    "Munmap": "zap_pte_range",
    "Brk": "zap_pte_range",
    "MadviseDontneed": "zap_pte_range",
    "MadviseFree": "madvise_free_pte_range",
    "Mprotect": "change_pte_range",
    "MigratePages": "try_to_migrate_one",
    "Touch": "wp_page_copy",
    "Dma": "wp_page_copy",
    "GuestTouch": "wp_page_copy",
    "GuestApic": "wp_page_copy",
    "Mremap": "move_ptes",
    "Fork": "copy_present_pte",
    "ClearRefs": "clear_soft_dirty",
    "Execve": "zap_pte_range",
    "Exit": "zap_pte_range",
    "Truncate": "zap_pte_range",
    "Writeback": "page_mkclean_one",
    "Kswapd": "try_to_unmap_one",
    "KvmAddMemslot": "kvm_set_memslot",
    "AfuTouch": "wp_page_copy",
    "OcxlAttach": "ocxl_link_add_pe",
    "OcxlDetach": "ocxl_link_remove_pe",
    "Sigkill": "do_exit",
    "DeviceRemove": "iommu_release_device",
    "KvmDestroyVm": "kvm_flush_shadow_all",
}
"""Operation -> the function in which it takes an entry away."""

ACCESSES: Final = {
    "PteWalk": "hardware page walk",
    "FrameAlloc": "alloc_page",
    "FrameCopy": "copy_highpage",
    "PageGet": "try_get_page",
    "PagePut": "put_page",
    "PageFreeze": "page_ref_freeze",
    "PtlLock": "pte_offset_map_lock",
    "PtlUnlock": "pte_unmap_unlock",
    "MmapLock": "mmap_lock",
    "MmapUnlock": "mmap_unlock",
    "SpteLoad": "hardware walk of the shadow table",
    "SpteSet": "mmu_spte_set",
    "SpteClear": "mmu_spte_clear_track_bits",
    "FlushTlbIpi": "flush_tlb_func",
    "Tlbi": "tlbi",
    "IotlbInvalidate": "iommu_sva_invalidate_secondary_tlbs",
    "KvmRequest": "kvm_make_request",
    "KvmVcpuRelease": "kvm_vcpu_release",
    "SurpriseDown": "the link to the device is down",
    "Tlbie": "tlbie",
    "AtsdLaunch": "pnv_ocxl_tlb_invalidate",
    "SpaClearCache": "pnv_ocxl_spa_remove_pe_from_cache",
    "TerminatePasid": "ocxl_config_terminate_pasid",
    "CoprosAdd": "mm->context.copros",
    "Mmdrop": "mmdrop",
    "InProgress": "mmu_invalidate_in_progress",
    "SeqBump": "mmu_invalidate_seq",
    "SeqRead": "mmu_invalidate_seq",
    "ActiveInvalidate": "mn_active_invalidate_count",
    "RetryWait": "wait for the invalidation",
    "MemslotsLoad": "kvm_memslots",
    "MemslotAdd": "kvm_swap_active_memslots",
    "SpteScan": "kvm_unmap_gfn_range",
    "PteScan": "ptep_get",
    "TableWalk": "hardware page walk",
    "MmapDowngrade": "mmap_write_downgrade",
    "AnonVmaLock": "anon_vma_lock",
    "AnonVmaUnlock": "anon_vma_unlock",
    "FolioAddWaiter": "migration_entry_wait_on_locked",
    "FolioWait": "io_schedule",
    "RmapAdd": "folio_add_anon_rmap",
    "RmapTryDup": "folio_try_dup_anon_rmap_pte",
    "RmapTryShare": "folio_try_share_anon_rmap_pte",
    "PageAnonExclusive": "PageAnonExclusive",
    "SetPageAnonExclusive": "SetPageAnonExclusive",
    "RmapRemove": "folio_remove_rmap",
    "RmapMove": "folio_move_anon_rmap",
    "VmaFind": "find_vma",
    "VmaReplace": "vma_iter_store",
    "CpumaskLoad": "mm_cpumask",
    "CpumaskSet": "switch_mm",
    "NotifierList": "notifier_subscriptions",
    "PageCacheLoad": "filemap_get_folio",
    "PageCacheAdd": "filemap_add_folio",
    "PageCacheRemove": "filemap_remove_folio",
    "PageCacheNext": "find_get_entries",
    "FolioMapping": "folio_mapping",
    "RemoveMapping": "__remove_mapping",
    "ReadFolio": "filemap_read_folio",
    "WritePage": "writepage",
    "TruncateBlocks": "truncate of the blocks",
    "InodeLock": "inode_lock",
    "InodeUnlock": "inode_unlock",
    "FileSizeLoad": "i_size_read",
    "FileSizeStore": "i_size_write",
    "ImmapLock": "i_mmap_lock",
    "ImmapUnlock": "i_mmap_unlock",
    "ImmapInsert": "vma_interval_tree_insert",
    "ImmapRemove": "vma_interval_tree_remove",
    "ImmapWalk": "vma_interval_tree_foreach",
    "IsolateLru": "isolate_lru_folios",
    "PutbackLru": "folio_putback_lru",
    "SwapCacheGet": "swap_cache_get_folio",
    "SwapCacheDelete": "delete_from_swap_cache",
    "SwapCacheAdd": "add_to_swap_cache",
    "PageSwapEntry": "page_swap_entry",
    "FreeSwapAndCache": "free_swap_and_cache",
    "FolioMigrateMapping": "folio_migrate_mapping",
    "SwapWrite": "swap_writepage",
    "FreeUnrefPage": "free_unref_folios",
    "SwapRead": "swap_readpage",
    "TlbBatchedLoad": "tlb_flush_batched",
    "TlbBatchedStore": "tlb_flush_batched",
    "TlbBatchedCmpxchg": "tlb_flush_batched",
    "DmaAccess": "DMA",
    "AtsTranslate": "ATS translation request",
    "PriRequest": "page request",
    "PageRequest": "iommu_sva_handle_iopf",
    "AtcInvalidate": "ATC invalidation command",
    "InvalidateRequest": "ATC invalidation",
    "SyncIpi": "tlb_remove_table_sync_one",
}
"""Message -> the function, or what hardware does, whatever the operation."""

RECLAIMED: Final = {"SwapWrite": "try_to_unmap_one", "FreeUnrefPage": "try_to_unmap_one"}
"""How a reclaimed page ends -> where its entry was taken away, whatever the operation."""
ENTRY_CHANGES: Final = frozenset({"PteGetAndClear", "PteSet", "PteCmpxchg"})
DATA: Final = {"FrameRead": "load", "FrameWrite": "store"}
AGENTS: Final = {
    "Dma": "DMA {}",
    "AfuTouch": "accelerator {}",
    "GuestTouch": "guest {}",
    "GuestApic": "guest {} of the APIC page",
    "Touch": "user {}",
}
CACHES: Final = {
    "tlb": "hardware page walk",
    "iotlb": "IOMMU page walk",
    "xsl": "page walk of the link",
    "spte": "kvm_mmu_page_fault",
    "gtlb": "hardware walk of the shadow table",
    "vmcs": "kvm_vcpu_reload_apic_access_page",
    "atc": "ATS translation request",
}
"""Cache -> where a translation gets into it."""


def function_of(kind: str, operation: str) -> str:
    """The function in which a message of this kind is sent for an operation of that kind.

    Either may be empty (unknown); the result is empty if nothing is known.
    """
    kind = kind.rstrip(REPLY_MARK)
    if kind in ENTRY_CHANGES:
        return CHANGES.get(operation, kind)
    if kind in DATA:
        return AGENTS.get(operation, "{}").format(DATA[kind])
    return ACCESSES.get(kind) or OPERATIONS.get(kind) or OPERATIONS.get(operation, "")
