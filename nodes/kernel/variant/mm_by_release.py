"""mm/ and kernel/: what the core does, and from which release on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from mmurace.nodes.kernel.variant.faults_by_release import Faults
from mmurace.nodes.kernel.variant.switch import declare, since, switch, unreleased

if TYPE_CHECKING:
    from mmurace.nodes.kernel.variant.kernel import Kernel


@declare
class Mm(Faults, frozen=True):
    """mm/ and kernel/: what the core does, and from which release on."""

    OWNER: ClassVar[str] = "mm"

    rmap_notifies: Literal["page_after_ptl", "page_under_ptl", "range"] = switch(
        "mm/rmap.c",
        "try_to_unmap_one",
        since("page_after_ptl", "v2.6.27", "cddb8a5c14aa"),
        since("page_under_ptl", "v4.11", "c7ab0d2fdc84"),
        since("range", "v4.13", "369ea8242c0f"),
    )
    """How reclaim, migration and ``page_mkclean`` say that they changed an entry: by
    ``invalidate_page`` alone, when the PTL is free again (to v4.10) or under it (v4.11, where a
    callback that sleeps must not be called); or by a bracket of one page, as everybody else
    (v4.13)."""
    end_calls_ir: bool = switch(
        "mm/mmu_notifier.c",
        "mn_hlist_invalidate_end",
        since(True, "v3.19", "0f0a327fa12c"),
        since(False, "v6.6", "ec8832d007cb"),
    )
    """``invalidate_range_end`` also calls ``invalidate_range`` (v3.19 to v6.5; up to v5.4 the
    function is ``__mmu_notifier_invalidate_range_end``)."""
    gather_calls_ir: bool = switch(
        "include/asm-generic/tlb.h",
        "tlb_flush_mmu_tlbonly",
        since(True, "v3.19", "34ee645e83b6"),
        since(False, "v6.6", "6bbd42e2df8f"),
    )
    """``tlb_flush_mmu_tlbonly`` calls ``invalidate_range`` (v3.19 to v6.5).  It was in mm/memory.c
    and mm/mmu_gather.c before."""
    clear_flush_calls_ir: bool = switch(
        "include/linux/mmu_notifier.h",
        "ptep_clear_flush_notify",
        since(True, "v3.19", "34ee645e83b6"),
        since(False, "v6.6", "ec8832d007cb"),
    )
    """``ptep_clear_flush_notify`` calls ``invalidate_range`` under the PTL (v3.19 to v6.5), and
    ``try_to_unmap_one`` does so for what it has cleared (v4.13 to v6.5).  In v4.13 and v4.14
    others do, too (migration, page_mkclean), whose bracket says it again: that is left out."""
    cow_range_only_end: bool = switch(
        "mm/memory.c",
        "wp_page_copy",
        since(False),
        since(True, "v4.15", "4645b9fe84bf"),
        since(False, "v6.6", "ec8832d007cb"),
    )
    """``wp_page_copy`` ends its bracket with ``..._range_only_end`` (v4.15 to v6.5): what
    ``invalidate_range`` has to say was said under the PTL."""
    migration_batches: bool = switch(
        "mm/migrate.c",
        "migrate_pages_batch",
        since(False),
        since(True, "v6.3", "7e12beb8ca2a"),
    )
    """``migrate_pages`` clears its entries as reclaim does, and flushes what it has cleared before
    it copies (v6.3); or it flushes page by page."""
    batched_marker: Literal["none", "bool", "generation"] = switch(
        "mm/rmap.c",
        "set_tlb_ubc_flush_pending",
        since("none"),
        since("bool", "v4.13", "3ea277194daa"),
        since("generation", "v5.17", "5ee2fa2f0636"),
    )
    """What says that an mm has entries cleared and not flushed: nothing (to v4.12), a flag (v4.13),
    or a count of those pending and those flushed (v5.17).  The flag went into stable trees of 2017,
    too: which point releases could not be found, no announcement of that year was to be had."""
    nested_encoding: Literal["exact", "neg1_neg1", "zero_neg1", "own_range_only"] = switch(
        "mm/mmu_gather.c",
        "tlb_finish_mmu",
        since("own_range_only"),
        since("exact", "v4.13", "99baac21e458"),
        since("neg1_neg1", "v5.2", "7a30df49f63a", backports="v5.1.13"),
        since("zero_neg1", "v6.6", "6bbd42e2df8f"),
    )
    """What a nested gather flushes: all that it was asked to unmap (v4.13); the whole mm, of which
    ``invalidate_range`` is told (~0, ~0) (v5.2) or the arch hook (0, ~0) (v6.6); or only what it
    has unmapped itself (to v4.12).  7a30df49f63a came with v5.2-rc5, and is in the announcement of
    v5.1.13."""
    zap_delays_rmap: bool = switch(
        "mm/memory.c",
        "zap_pte_range",
        since(False),
        since(True, "v6.2", "5df397dec7c4"),
    )
    """``zap_pte_range`` takes a dirty page of a shared mapping out of the rmap when it has flushed
    (v6.2), not when it has cleared the entry."""
    unmap_mapping_lock: Literal["exclusive", "shared"] = switch(
        "mm/memory.c",
        "unmap_mapping_pages",
        since("exclusive"),
        since("shared", "v5.18", "2c8659951654"),
    )
    """How ``unmap_mapping_pages`` takes ``i_mmap_rwsem``: for write, so that no rmap walk of the
    file runs beside a truncation's zap, or for read (v5.18).  Before v4.16 the function is
    ``unmap_mapping_range``."""
    munmap_downgrades: bool = switch(
        "mm/mmap.c",
        "__vm_munmap",
        since(False),
        since(True, "v4.20", "dd2283f2605e"),
    )
    """``munmap``, and ``brk`` and ``mremap`` that make something shorter, downgrade mmap_lock to
    read before they unmap (v4.20; for the other two commits of the same series)."""
    change_protection_gathers: bool = switch(
        "mm/mprotect.c",
        "change_protection",
        since(False),
        since(True, "v5.19", "4a18419f71cd"),
    )
    """``change_protection`` flushes through an ``mmu_gather`` (v5.19)."""
    upgrade_notify: Literal[
        "none", "generic_after_ptl", "generic_after_ptl+event_filter", "arch_beside_flush"
    ] = switch(
        "mm/memory.c",
        "handle_pte_fault",
        since("none"),
        since("arch_beside_flush", "v6.6", "6bbd42e2df8f"),
        unreleased("generic_after_ptl", "a patch of May 2023: MMU_NOTIFY_PROTECTION_UPGRADE"),
        unreleased(
            "generic_after_ptl+event_filter", "the same, and shadow MMUs pass the event over"
        ),
    )
    """Who hears of a right that was added: nobody (to v6.5); every subscriber, from a bracket
    after the PTL (a patch of May 2023, never merged), from which a shadow MMU may filter the
    event out; or who shares the table, under the PTL, beside the flush (v6.6)."""
    mremap_cpu_flush: Literal["at_end", "dirty_under_old_ptl", "under_both_ptl"] = switch(
        "mm/mremap.c",
        "move_ptes",
        since("at_end"),
        since("dirty_under_old_ptl", "v4.9", "5d1904204c99"),
        since("under_both_ptl", "v4.19", "eb66ae030829", backports="v4.9.135 v4.14.78 v4.18.16"),
    )
    """When ``move_ptes`` flushes: once after all tables (to v4.8); dirty entries under the old
    PTL when the new one is free already, others after all tables (v4.9); all of them before
    either PTL is free (v4.19).  The point releases are those that CVE-2018-18281 names; a list of
    the stable trees' fixes has them with the same numbers (e34bd9a96704, 541500abfe9e,
    d80183541e60)."""
    mremap_sec_flush: Literal["at_end", "beside_cpu_flush"] = switch(
        "mm/mremap.c",
        "move_ptes",
        since("at_end"),
        since("beside_cpu_flush", "v6.6", "6bbd42e2df8f"),
    )
    """``move_ptes`` leaves secondary TLBs to ``invalidate_range_end`` (to v6.5), or they are
    flushed wherever the CPUs are (v6.6)."""
    have_move_pmd: bool = switch(
        "mm/mremap.c",
        "move_normal_pmd",
        since(False),
        since(True, "v5.0", "2c91bd4a4e2e", on="x86"),
        since(True, "v5.11", "45544eee9606", on="arm64"),
        since(True, "v5.14", "feac00aad123", on="ppc"),
    )
    """``move_page_tables`` moves a whole leaf table by its upper entry where both places are
    aligned to it (``CONFIG_HAVE_MOVE_PMD``: x86 v5.0, arm64 v5.11, ppc v5.14)."""
    move_pmd_rmap_locks: Literal["if_needed", "always"] = switch(
        "mm/mremap.c",
        "move_page_tables",
        since("if_needed"),
        since("always", "v5.14", "97113eb39fa7", backports="v5.4.211 v5.10.137 v5.13.3"),
    )
    """It takes the rmap locks only where a walk could miss both places (to v5.13), or always
    (v5.14; the announcements of v5.4.211 and v5.10.137 have it, and v5.13.3 is what a list of the
    stable trees' fixes says of CVE-2022-41222)."""
    fork_cpu_flush: bool = switch(
        "kernel/fork.c",
        "dup_mmap",
        since(True),
        unreleased(False, "to see what the flush is for"),
    )
    """``dup_mmap`` calls ``flush_tlb_mm`` of the parent when all is copied (all releases)."""
    umem_release: Literal["when_done", "at_once"] = switch(
        "drivers/infiniband/core/umem.c",
        "ib_umem_release",
        since("when_done"),
        unreleased("at_once", "a driver that gives its pages up and does not stop its device"),
    )
    """When a driver that pins pages unpins them: once its device is done with them, or before."""
    fork_copies_pinned: bool = switch(
        "mm/memory.c",
        "copy_present_page",
        since(False),
        since(True, "v5.9", "70e806e4e645"),
    )
    """``fork`` gives the child a copy of an anonymous page that may be pinned, so that the parent
    keeps the one that its device knows (70e806e4e645, v5.9), or shares that, too."""
    register_locks: Literal["all", "all_but_vmas", "mmap_lock"] = switch(
        "mm/mmu_notifier.c",
        "__mmu_notifier_register",
        since("all"),
        since("all", "v2.6.27", "cddb8a5c14aa"),
        since("all", "v6.4", "eeff9a5d47f8"),
        unreleased("all_but_vmas", "faults under the locks of VMAs without eeff9a5d47f8"),
        unreleased("mmap_lock", "to see what mm_take_all_locks is for"),
    )
    """What a new subscriber is put on the list under: mmap_lock for write and every lock of the
    rmap (``mm_take_all_locks``; all releases, to v5.4 in ``do_mmu_notifier_register``), so that no
    bracket is open, from v6.4 with the locks of VMAs; without these; or only mmap_lock."""
    unregister_waits: bool = switch(
        "mm/mmu_notifier.c",
        "mmu_notifier_unregister",
        since(True),
        unreleased(False, "to see what synchronize_srcu is for"),
    )
    """``mmu_notifier_unregister`` returns when no callback runs any more (``synchronize_srcu``; all
    releases), or at once."""
    oom_gather: Literal["whole_mm", "per_vma"] = switch(
        "mm/oom_kill.c",
        "__oom_reap_task_mm",
        since("whole_mm"),
        since("per_vma", "v4.15", "687cb0884a71", backports="v4.14.4"),
    )
    """What the OOM reaper unmaps with: one gather of everything, as of a process that ends
    (``fullmm``), or one for each VMA (v4.15; CVE-2017-18202 names v4.14.4)."""
    start_fails: Literal["leaves_open", "ends_all"] = switch(
        "mm/mmu_notifier.c",
        "mn_hlist_invalidate_range_start",
        since("leaves_open"),
        since("leaves_open", "v4.19", "93065ac753e4"),
        since("ends_all", "v5.12", "c2655835fd8c"),
    )
    """What becomes of the starts that were made when a subscriber says that it would have to sleep:
    they are left, and their ends never called (v4.19), or all ends are called (v5.12).  It went to
    stable trees, too; by which point releases was not looked up."""
    start_fails_itree: Literal["left_open", "ended"] = switch(
        "mm/mmu_notifier.c",
        "__mmu_notifier_invalidate_range_start",
        since("left_open"),
        since("left_open", "v5.5", "99cb252f5e68"),
        unreleased("ended", "6d65925777ec, of November 2026, newer than what is known here"),
    )
    """What becomes of the invalidation of interval notifiers then: it is left open, or ended."""
    interval_notifiers: bool = switch(
        "mm/mmu_notifier.c",
        "mmu_interval_notifier_insert",
        since(False),
        since(True, "v5.5", "99cb252f5e68"),
    )
    """There are interval notifiers (v5.5).  Before, ``hmm_mirror`` (v4.14) did their work with
    notifiers of an mm."""
    interval_insert_sets_mm: Literal["first", "when_it_cannot_fail"] = switch(
        "mm/mmu_notifier.c",
        "__mmu_interval_notifier_insert",
        since("first"),
        since("first", "v5.5", "99cb252f5e68"),
        unreleased("when_it_cannot_fail", "CVE-2026-99657, newer than what is known here"),
    )
    """When ``interval_sub->mm`` is set: before the range is looked at, so that it is set as well if
    the insertion fails, or behind ``mmgrab``."""
    interval_remove_looks: Literal["without_lock", "under_lock"] = switch(
        "mm/mmu_notifier.c",
        "mmu_interval_notifier_remove",
        since("without_lock"),
        since("without_lock", "v5.5", "99cb252f5e68"),
        since("under_lock", "v5.18", "319561669a59"),
    )
    """How ``mmu_interval_notifier_remove`` looks whether the invalidation that it waits for is
    over: under ``subscriptions->lock``, under which the end of one changes the tree (v5.18), or
    without it.  It went to stable trees; by which point releases was not looked up."""
    batch_skips_inaccessible: bool = switch(
        "mm/rmap.c",
        "try_to_unmap_one",
        since(False),
        since(True, "v6.4", "4d4b6d66db63"),
    )
    """A batch does not note an entry for which ``ptep_clear_flush`` would not flush
    (4d4b6d66db63, v6.4)."""
    follow_page_protnone: bool = switch(
        "mm/gup.c",
        "follow_page_pte",
        since(True),
        since(False, "v6.1", "474098edac26"),
        since(True, "v6.5", "d74943a2f3cd"),
    )
    """``follow_page``, as ``move_pages`` calls it, finds the page of an entry of no rights.

    Not from 474098edac26 (v6.1; a v6.1.192 says -ENOENT, as measured) to d74943a2f3cd, with
    ``FOLL_HONOR_NUMA_FAULT``, whose release is inferred from its neighbours in v6.5; a v6.12
    migrates such a page, as measured.
    """
    change_protection_bracket: Literal["pmd", "pud"] = switch(
        "mm/mprotect.c",
        "change_pmd_range",
        since("pmd"),
        since("pud", "v6.12"),
    )
    """At which present entry mprotect opens its bracket: one of a table of leaf tables, or one of
    the table above it (v6.12, "mm/mprotect: push mmu notifier to PUDs").  No commit: lists of
    them differ in its id."""
    change_protection_upgrades: Literal["dirty_shared", "dirty_exclusive", "exclusive"] = switch(
        "mm/mprotect.c",
        "change_pte_range",
        since("dirty_shared"),
        since("dirty_exclusive", "v6.0", "64fe24a3e05e"),
        since("exclusive", "v6.2", "7ea7e333842e"),
    )
    """Which entries ``mprotect`` makes writable itself: dirty ones of shared mappings; also dirty
    exclusive anonymous ones (64fe24a3e05e, v6.0); or these though clean (7ea7e333842e, v6.2)."""
    clear_refs_flush: Literal["fullmm_gather", "nested_gather", "flush_tlb_mm"] = switch(
        "fs/proc/task_mmu.c",
        "clear_refs_write",
        since("fullmm_gather"),
        since("nested_gather", "v5.6", "0758cd830494"),
        since("flush_tlb_mm", "v5.12", "912efa17e512", backports="v5.10.20"),
    )
    """How ``clear_refs`` flushes the CPUs: by a gather of the whole mm (to v5.5); by one that
    flushes only if another is in flight (0758cd830494, v5.6); by ``flush_tlb_mm`` (912efa17e512,
    v5.12; it is in the review of v5.10.20)."""
    ksm_heeds_pending: bool = switch(
        "mm/ksm.c",
        "write_protect_page",
        since(False),
        since(True, "v4.13", "b3a81d0841a9"),
    )
    """Whether KSM flushes an entry that is read-only and clean already, if the mm owes a flush
    (b3a81d0841a9, v4.13)."""

    migrate_collect_flush: Literal["after_ptl", "under_ptl"] = switch(
        "mm/migrate_device.c",
        "migrate_vma_collect_pmd",
        since("after_ptl"),
        since("after_ptl", "v4.14", "8c3328f1f36a"),
        since("under_ptl", "v6.0", "60bae7370896"),
    )
    """When ``migrate_vma_collect_pmd`` flushes what it has cleared: when the PTL is free again, or
    under it (60bae7370896, v6.0).  It went to stable trees; by which point releases was not looked
    up.  In mm/migrate.c to v5.17."""
    migrate_says_owner: bool = switch(
        "mm/migrate_device.c",
        "migrate_vma_collect",
        since(False),
        since(True, "v5.9", "998427b3ad2c"),
    )
    """The bracket of a migration to or from a device says so, and whose doing it is
    (``MMU_NOTIFY_MIGRATE``; 998427b3ad2c, v5.9), or that entries are cleared."""
    device_exclusive: bool = switch(
        "mm/rmap.c",
        "make_device_exclusive_range",
        since(False),
        since(True, "v5.14", "b756a3b5e7ea"),
    )
    """There are device-exclusive entries (b756a3b5e7ea, v5.14)."""
    hmm_faults_foreign_pages: bool = switch(
        "mm/hmm.c",
        "hmm_vma_handle_pte",
        since(False),
        since(True, "v5.19", "8a295dbbaf72"),
    )
    """``hmm_range_fault`` faults in what is in the memory of another device (8a295dbbaf72, v5.19),
    or says -EFAULT."""

    def contradictions(self, kernel: Kernel) -> Iterator[tuple[str, str]]:
        """What the arch hook of v6.6 excludes, and what a table that is moved needs."""
        if kernel.arch.arch_secondary_flush:
            yield from self._beside_the_arch_hook()
        if self.have_move_pmd and self.mremap_cpu_flush != "under_both_ptl":
            yield (
                f"have_move_pmd contradicts mremap_cpu_flush = {self.mremap_cpu_flush}",
                "under_both_ptl: a table is moved with the flush under its locks",
            )

    def _beside_the_arch_hook(self) -> Iterator[tuple[str, str]]:
        for name, there in (
            ("end_calls_ir", self.end_calls_ir),
            ("gather_calls_ir", self.gather_calls_ir),
            ("clear_flush_calls_ir", self.clear_flush_calls_ir),
            ("cow_range_only_end", self.cow_range_only_end),
            ("mremap_sec_flush", self.mremap_sec_flush == "at_end"),
        ):
            if there:
                yield (
                    f"arch_secondary_flush contradicts {name}",
                    "invalidate_range does not exist beside the arch hook",
                )
        if self.upgrade_notify != "arch_beside_flush":
            yield (
                f"arch_secondary_flush contradicts upgrade_notify = {self.upgrade_notify}",
                "arch_beside_flush: the flush itself calls the secondaries",
            )
