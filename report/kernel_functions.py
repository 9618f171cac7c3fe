"""What the kernel calls it: the function that a message or an operation stands for.

A message is one access to shared state; the access is made in some kernel function, which
depends on the access and on the operation that made it.
"""

from __future__ import annotations

from typing import Final

from mmurace.nodes.secondary import caches
from mmurace.protocol.envelope import REPLY_MARK
from mmurace.protocol.messages.base import Message, kinds
from mmurace.protocol.messages.program import Operation

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
    "FlushTlbIpi": "flush_tlb_func",
    "Tlbi": "tlbi",
    "Tlbie": "tlbie",
    "CoprosAdd": "mm->context.copros",
    "Mmdrop": "mmdrop",
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
    "PagesIdentical": "pages_identical",
    "SetPageKsm": "set_page_stable_node",
    "VmaFind": "find_vma",
    "VmaReplace": "vma_iter_store",
    "CpumaskLoad": "mm_cpumask",
    "CpumaskSet": "switch_mm",
    "NotifierList": "notifier_subscriptions",
    "NotifierAdd": "__mmu_notifier_register",
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
    "SyncIpi": "tlb_remove_table_sync_one",
}
"""Message of the core -> the function, or what hardware does, whatever the operation."""

RECLAIMED: Final = {"SwapWrite": "try_to_unmap_one", "FreeUnrefPage": "try_to_unmap_one"}
"""How a reclaimed page ends -> where its entry was taken away, whatever the operation."""
ENTRY_CHANGES: Final = frozenset({"PteGetAndClear", "PteSet", "PteCmpxchg"})
DATA: Final = {"FrameRead": "load", "FrameWrite": "store"}


def kind_of(name: str) -> type[Message] | None:
    """The class of a message; None if no message is called so."""
    return kinds().get(name)


def operation_of_kind(name: str) -> type[Operation]:
    """The class of an operation; what is none has nothing to say of itself."""
    found = kind_of(name)
    return found if found is not None and issubclass(found, Operation) else Operation


def filled_by(cache: str) -> str:
    """Where a translation gets into a cache; empty if nobody says so."""
    known = caches().get(cache)
    return known.filled_by if known is not None else {"tlb": "hardware page walk"}.get(cache, "")


def function_of(kind: str, operation: str) -> str:
    """The function in which a message of this kind is sent for an operation of that kind.

    Either may be empty (unknown); the result is empty if nothing is known.
    """
    kind = kind.rstrip(REPLY_MARK)
    of = operation_of_kind(operation)
    if kind in ENTRY_CHANGES:
        return of.CHANGES or kind
    if kind in DATA:
        return (of.DATA or f"{of.AGENT} {{}}").format(DATA[kind]).strip()
    message = kind_of(kind)
    declared = message.TOLD.function if message is not None else ""
    return ACCESSES.get(kind) or declared or operation_of_kind(kind).FUNCTION or of.FUNCTION
