"""Kernel variants: typed, independent switches, with presets by release and architecture.

A switch is named for what the kernel does, never for the harm that follows.  Which release has
which value is catalogue 4.1 to 4.4; contradictory values are refused.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Final, Literal, get_args

import msgspec

from nodes.kernel.decode import Decoder, LinkDecoder
from protocol.errors import UserError

Arch = Literal["x86", "arm64", "ppc"]

PTRS_PER_PTE: Final = 512
MAX_TLBI_RANGE_PAGES: Final = 32 << 16
"""``__TLBI_RANGE_PAGES(31, 3)``."""


class Kernel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kernel, as far as its notifier and TLB-flush behaviour goes."""

    release: str
    arch: Arch
    end_calls_ir: bool
    """``invalidate_range_end`` also calls ``invalidate_range`` (v3.19 to v6.5)."""
    gather_calls_ir: bool
    """``tlb_flush_mmu_tlbonly`` calls ``invalidate_range`` (v3.19 to v6.5)."""
    clear_flush_calls_ir: bool
    """``ptep_clear_flush_notify`` calls ``invalidate_range`` under the PTL (v3.19 to v6.5)."""
    batch_mode: Literal["none", "ipi_deferred", "tlbi_nosync"]
    """How reclaim flushes: page by page; all it has cleared by one round of IPIs (x86); TLBIs that
    one DSB completes for all (arm64, v6.6)."""
    migration_batches: bool
    """``migrate_pages`` clears its entries as reclaim does, and flushes what it has cleared before
    it copies (7e12beb8ca2a, v6.3); or it flushes page by page."""
    migration_wait_ref: Literal["while_asleep", "until_queued", "none"]
    """Until when ``migration_entry_wait`` has a reference to the page: while it sleeps (to v4.20),
    or until it is in the queue (9a1ea439b16b, v5.0); it takes none (ffa65753c431, v5.17)."""
    batch_skips_inaccessible: bool
    """A batch does not note an entry for which ``ptep_clear_flush`` would not flush
    (4d4b6d66db63, v6.4)."""
    batched_marker: Literal["none", "bool", "generation"]
    """What says that an mm has entries cleared and not flushed: nothing (to v4.12), a flag (v4.13),
    or a count of those pending and those flushed (v5.17)."""
    batched_pending_flush: Literal["flush_tlb_mm", "dsb"]
    """What whoever sees it does: flush the mm, or only wait for what was sent from its own
    processor (arm64, v6.6 to v6.15)."""
    batch_notify_at: Literal["add_pending", "flush"]
    """When a batch calls ``arch_invalidate_secondary_tlbs``: for each entry (v6.6), or at its end
    (a patch of July 2023 in linux-next)."""
    batch_notify_mm: Literal["owner", "current"]
    """Whose subscribers that is: those of the mm that was unmapped, or of whoever reclaims."""
    sva_decoder: Decoder
    """How an SVA driver reads the range that it is given (``nodes.kernel.decode``)."""
    arm64_range_start: Literal["kept", "advanced"]
    """What ``__flush_tlb_range`` tells the secondaries after its loop over operations: the start
    that it was given, or the one that its macro has counted up to the end (v6.6 to v6.13)."""
    flush_ceiling: Annotated[int, msgspec.Meta(ge=1)]
    """The largest range, in pages, that is flushed as a range; a larger one is a flush of the mm.
    ``tlb_single_page_flush_ceiling`` (x86: 33); ``MAX_TLB_RANGE`` (arm64, v4.15: 1024),
    ``MAX_TLBI_OPS - 1`` (PTRS_PER_PTE - 1, by v5.7), ``MAX_TLBI_RANGE_PAGES - 1`` (2**21 - 1,
    v5.9, on processors with range operations; the presets' have none)."""
    ceiling_told: Literal["all", "range"]
    """What the secondaries are told of such a flush: (0, ULONG_MAX), as the CPUs (v6.6), or the
    range that was asked for (x86, 4a02ed8e1cc3, v6.15; ppc, v6.6)."""
    sec_inv_scope: Literal["all_levels", "leaf_only"]
    """What an SVA driver's command reaches: entries of every level (all releases), or leaves."""
    ats_order: Literal["iotlb_first", "atc_first"]
    """What an SVA driver invalidates first: the unit's IOTLB, or the TLBs of its devices."""
    ats_wait: bool
    """It waits until the devices have said that they are done."""
    cow_range_only_end: bool
    """``wp_page_copy`` ends its bracket with ``..._range_only_end`` (v4.15 to v6.5): what
    ``invalidate_range`` has to say was said under the PTL."""
    cow_reuse: Literal["reuse_swap_page", "page_count", "free_swap", "anon_exclusive"]
    """When ``do_wp_page`` and ``do_swap_page`` let a process write to an anonymous page instead of
    copying it: no other entry maps it or has its swap slot (to v5.8); nobody else has a reference,
    the swap cache included (09854ba94c6a, v5.9; only ``do_wp_page``); the same, the swap cache
    excluded if no entry has the slot (53a05ad9f21d, c145e0b47c77, v5.18); or it is
    ``PageAnonExclusive``, without the folio lock, else the same (6c287605fd56, v5.19)."""
    cow_frees_swap_cache: bool
    """``wp_page_copy`` takes the old page out of the swap cache if nobody has it any more
    (f4c4a3f48480, v5.14)."""
    gup_fast_rechecks_pmd: bool
    """``gup_pte_range`` looks at the upper entry again, too, when it has a reference
    (70cbc3cc78a9, v6.1)."""
    spurious_fault_flushes: bool
    """arm64: ``flush_tlb_fix_spurious_fault`` is ``flush_tlb_page``, and ``ptep_set_access_flags``
    flushes for a load as well (to v5.9; 6a1bdb173184)."""
    arch_secondary_flush: bool
    """The architecture's TLB flush calls ``arch_invalidate_secondary_tlbs`` (v6.6)."""
    flush_page_notifies: bool
    """The flush of one page is among those that do; ``radix__flush_tlb_page_psize`` is not (v6.6,
    ppc)."""
    nested_encoding: Literal["exact", "neg1_neg1", "zero_neg1", "own_range_only"]
    """What a nested gather flushes (mm/mmu_gather.c ``tlb_finish_mmu``): all that it was asked to
    unmap (v4.13); the whole mm, of which ``invalidate_range`` is told (~0, ~0) (v5.2) or the arch
    hook (0, ~0) (v6.6); or only what it has unmapped itself (to v4.12)."""
    rcu_table_free: bool
    """A page table is freed when no lockless walk is in progress on any processor
    (``CONFIG_MMU_GATHER_RCU_TABLE_FREE``: arm64, ppc; x86 to v4.18, and from v6.15 on,
    a17c9da9264d), or with the pages of its gather: on the bare x86 of v4.19 to v6.14 the IPIs of
    the flush wait for such walks (48a8b97cfd80)."""
    zap_delays_rmap: bool
    """``zap_pte_range`` takes a dirty page of a shared mapping out of the rmap when it has flushed
    (5df397dec7c4, v6.2), not when it has cleared the entry."""
    unmap_mapping_lock: Literal["exclusive", "shared"]
    """How ``unmap_mapping_pages`` takes ``i_mmap_rwsem``: for write, so that no rmap walk of the
    file runs beside a truncation's zap, or for read (2c8659951654, v5.18)."""
    munmap_downgrades: bool
    """``munmap``, and ``brk`` and ``mremap`` that make something shorter, downgrade mmap_lock to
    read before they unmap (v4.20)."""
    tlb_end_vma: Literal["nothing", "flush_cpus", "flush"]
    """What a gather does when it is done with a VMA: nothing (x86, ppc); it flushes the CPUs, and
    its range is empty again (arm64, to v4.18); or it calls ``invalidate_range`` as well
    (fd1102f0aade, v4.19)."""
    change_protection_gathers: bool
    """``change_protection`` flushes through an ``mmu_gather``, one for the whole call (v5.19)."""
    change_protection_bracket: Literal["pmd", "pud"]
    """Which present entry opens its bracket: one of a table of leaf tables, or one of the table
    above it (v6.12)."""
    change_protection_upgrades: Literal["dirty_shared", "dirty_exclusive", "exclusive"]
    """Which entries ``mprotect`` makes writable itself: dirty ones of shared mappings; also dirty
    exclusive anonymous ones (64fe24a3e05e, v6.0); or these though clean (7ea7e333842e, v6.2)."""
    pte_needs_flush: bool
    """``change_protection`` flushes only entries of which a TLB may hold too much (x86, v5.19)."""
    upgrade_needs_flush: bool
    """``ptep_set_access_flags`` flushes the TLB when it grants more (arm64)."""
    secondary_before_dsb: Literal["no", "page", "page_and_range"]
    """Which arm64 flushes call the secondaries between their TLBI and its completion: those of
    one page (v6.6), those of a range as well (v6.9)."""
    upgrade_tlbi_scope: Literal["broadcast", "local"]
    """That flush reaches every observer, or only the processor that does it: the others repair
    their own spurious fault (arm64, cb1fa2e99955)."""
    upgrade_notify: Literal[
        "none", "generic_after_ptl", "generic_after_ptl+event_filter", "arch_beside_flush"
    ]
    """Who hears of a right that was added: nobody (to v6.5); every subscriber, from a bracket
    after the PTL (a patch of May 2023, never merged), from which a shadow MMU may filter the
    event out; or who shares the table, under the PTL, beside the flush (v6.6)."""
    refetch_on_perm_fault: bool
    """The IOMMU walks again when an entry is too weak, instead of faulting on it (x86)."""
    broadcast_tlbi: bool
    """The CPU flush is TLBI and DSB (arm64), or ``tlbie`` (ppc), rather than IPIs (x86)."""
    tlbie_scope: Literal["all", "by_cpumask", "by_cpumask_and_copros"]
    """Who sees it: everybody (arm64); nobody else if the mm is this processor's alone (ppc, to
    v4.17); nor if only coprocessors that have left still count as running it (v4.18)."""
    copro_removal: Literal["count_then_flush", "flush_then_count"]
    """``mm_context_remove_copro`` flushes the mm after it has lowered the count (v4.18), or before
    (v4.19)."""
    ocxl_link: Literal["snoops_tlbie", "atsd"]
    """An OpenCAPI link sees the processors' ``tlbie`` (POWER9), or only what is written to its
    registers (POWER10)."""
    ocxl_notifier: bool
    """The driver registers a notifier if the link has such registers (v5.11)."""
    ocxl_notifier_releases: bool
    """That notifier has a ``release``, which stops the accelerator and invalidates the PID (none
    has): the end of an mm takes every subscriber off its list, and only then unmaps."""
    ocxl_decoder: LinkDecoder
    """How it reads the range: page after page (v5.11), or all of the PID at once if that is all."""
    ocxl_counts_copro: bool
    """Its contexts count as coprocessors, for which flushes are global (v4.16)."""
    ocxl_clears_pe_cache: bool
    """``ocxl_link_remove_pe`` makes the link drop the process element (all releases)."""
    ocxl_invalidates_pid: bool
    """It invalidates the PID once the notifier is unregistered (v5.11)."""
    btm: bool
    """The IOMMU takes part in broadcast TLB maintenance."""
    btm_skips_cmd: bool
    """Its driver queues no command for what it sees broadcast (``ARM_SMMU_FEAT_BTM``)."""
    mremap_cpu_flush: Literal["at_end", "dirty_under_old_ptl", "under_both_ptl"]
    """When ``move_ptes`` flushes: once after all tables (to v4.8); dirty entries under the old
    PTL when the new one is free already, others after all tables (v4.9); all of them before
    either PTL is free (v4.19)."""
    mremap_sec_flush: Literal["at_end", "beside_cpu_flush"]
    """``move_ptes`` leaves secondary TLBs to ``invalidate_range_end`` (to v6.5), or they are
    flushed wherever the CPUs are (v6.6)."""
    have_move_pmd: bool
    """``move_page_tables`` moves a whole leaf table by its upper entry where both places are
    aligned to it (``CONFIG_HAVE_MOVE_PMD``: x86 v5.0, arm64 v5.11, ppc v5.14)."""
    move_pmd_rmap_locks: Literal["if_needed", "always"]
    """It takes the rmap locks only where a walk could miss both places (to v5.13), or always."""
    fork_cpu_flush: bool
    """``dup_mmap`` calls ``flush_tlb_mm`` of the parent when all is copied (all releases)."""
    flush_mm_notifies: bool
    """``flush_tlb_mm``, too, calls ``arch_invalidate_secondary_tlbs`` (v6.6)."""
    clear_refs_flush: Literal["fullmm_gather", "nested_gather", "flush_tlb_mm"]
    """How ``clear_refs`` flushes the CPUs: by a gather of the whole mm (to v5.5); by one that
    flushes only if another is in flight (0758cd830494, v5.6); by ``flush_tlb_mm`` ("mm: proc:
    Invalidate TLB after clearing soft-dirty page state", v5.12)."""
    apic_gen: Literal[1, 2, 3]
    """APIC-access page: reload requested from range_start (1, v4.15), from invalidate_range
    (2, v5.8), or from the zap, with a retrying reload (3, v6.5)."""
    kvm_retry: Literal["none", "count", "seq", "count+seq"]
    """What makes a page fault that looked its page up start over: an invalidation in progress,
    ``mmu_invalidate_seq`` having moved, either (v2.6.28), or nothing."""
    kvm_retry_hva: bool
    """``mmu_notifier_retry_hva``: only faults inside the range retry (v5.12)."""
    kvm_seq_sample: Literal["before", "after"]
    """When the page fault reads ``mmu_invalidate_seq``: before its lookup, or after it."""
    kvm_fault_lock: Literal["exclusive", "shared"]
    """How a page fault takes mmu_lock: alone, or for read, beside others (x86 with the TDP MMU on,
    71ba3f3189c7, v5.15; arm64, 1577cb5823ce, v6.2)."""
    kvm_tlb_flush: Literal["request_and_kick", "vmid_each", "vmid_range"]
    """How KVM flushes what it has zapped: each vCPU is asked to, and leaves the guest for it (x86);
    or by broadcasts for the VMID, which interrupt nobody (arm64): one for each entry, or one for
    the range, whether it had entries or not (7657ea920c54, v6.6, on processors with range
    operations and S2FWB; the presets' have none)."""
    kvm_retry_check: Literal["under_mmu_lock", "before_mmu_lock"]
    """Where the page fault decides that it need not start over."""
    kvm_end_order: Literal["seq_first", "count_first"]
    """What ``invalidate_range_end`` changes first."""
    kvm_second_range: Literal["added", "replaces"]
    """What a second bracket does to the range in progress (``kvm_mmu_invalidate_range_add``)."""
    kvm_range_forgotten: Literal["at_zero", "at_each_end"]
    """When that range is forgotten: when no bracket is open any more, or whenever one ends."""
    shadow_passes_over: Literal["nothing", "protection_page"]
    """Events for which a shadow MMU drops nothing: none, or those of pages that became read-only
    one by one (``MMU_NOTIFY_PROTECTION_PAGE``: fork)."""
    kvm_lockless_skip: bool
    """Invalidations that touch no memslot take no mmu_lock; ``mn_active_invalidate_count``
    holds off memslot updates (v5.15)."""
    kvm_memslots_wait: bool
    """A new set of memslots waits until no notifier bracket is open (v5.15)."""
    unregister_waits: bool
    """``mmu_notifier_unregister`` returns when no callback runs any more (``synchronize_srcu``; all
    releases), or at once."""

    def validate(self, where: str) -> Kernel:
        """Itself, or ``UserError`` naming the switches that contradict each other."""
        for left, right, why in (
            (self.arch_secondary_flush, self.end_calls_ir, "end_calls_ir"),
            (self.arch_secondary_flush, self.gather_calls_ir, "gather_calls_ir"),
            (self.arch_secondary_flush, self.clear_flush_calls_ir, "clear_flush_calls_ir"),
            (self.arch_secondary_flush, self.apic_gen == 2, "apic_gen = 2"),
            (self.arch_secondary_flush, self.cow_range_only_end, "cow_range_only_end"),
            (self.arch_secondary_flush, self.mremap_sec_flush == "at_end", "mremap_sec_flush"),
        ):
            if left and right:
                raise UserError(
                    where, f"arch_secondary_flush contradicts {why}",
                    "invalidate_range does not exist beside the arch hook",
                )  # fmt: skip
        if self.arch_secondary_flush and self.upgrade_notify != "arch_beside_flush":
            raise UserError(
                where, f"arch_secondary_flush contradicts upgrade_notify = {self.upgrade_notify}",
                "arch_beside_flush: the flush itself calls the secondaries",
            )  # fmt: skip
        if self.upgrade_tlbi_scope == "local" and not self.upgrade_needs_flush:
            raise UserError(
                where, "upgrade_tlbi_scope = local without upgrade_needs_flush", "broadcast"
            )
        if self.spurious_fault_flushes and not self.upgrade_needs_flush:
            raise UserError(
                where, "spurious_fault_flushes without upgrade_needs_flush", "false: only arm64 did"
            )
        if self.kvm_retry_hva and "count" not in self.kvm_retry:
            raise UserError(
                where, f"kvm_retry_hva contradicts kvm_retry = {self.kvm_retry}",
                "the range belongs to the count",
            )  # fmt: skip
        if self.flush_mm_notifies and not self.arch_secondary_flush:
            raise UserError(
                where, "flush_mm_notifies without arch_secondary_flush", "the hook of v6.6"
            )
        if self.secondary_before_dsb != "no" and not self.broadcast_tlbi:
            raise UserError(
                where, f"secondary_before_dsb = {self.secondary_before_dsb} without broadcast_tlbi",
                "no: a flush by IPIs has no DSB",
            )  # fmt: skip
        if self.batch_mode == ("ipi_deferred" if self.broadcast_tlbi else "tlbi_nosync"):
            raise UserError(
                where, f"batch_mode = {self.batch_mode} contradicts broadcast_tlbi",
                "ipi_deferred is for IPIs, tlbi_nosync for broadcasts",
            )  # fmt: skip
        if self.have_move_pmd and self.mremap_cpu_flush != "under_both_ptl":
            raise UserError(
                where, f"have_move_pmd contradicts mremap_cpu_flush = {self.mremap_cpu_flush}",
                "under_both_ptl: a table is moved with the flush under its locks",
            )  # fmt: skip
        if self.btm and not self.broadcast_tlbi:
            raise UserError(where, "btm without broadcast_tlbi", "broadcast_tlbi = true")
        return self._validate_power(where)

    def _validate_power(self, where: str) -> Kernel:
        """What only POWER has."""
        if self.tlbie_scope != "all" and not self.broadcast_tlbi:
            raise UserError(
                where, f"tlbie_scope = {self.tlbie_scope} without broadcast_tlbi", "all"
            )
        if self.batch_mode != "none" and self.tlbie_scope != "all":
            raise UserError(
                where, f"batch_mode = {self.batch_mode} contradicts tlbie_scope", "none"
            )
        if self.btm and self.tlbie_scope != "all":
            raise UserError(where, "btm contradicts tlbie_scope", "false: ocxl_link says it")
        return self


_V4_15: dict[str, object] = {
    "end_calls_ir": True,
    "gather_calls_ir": True,
    "clear_flush_calls_ir": True,
    "migration_batches": False,
    "migration_wait_ref": "while_asleep",
    "batch_skips_inaccessible": False,
    "batched_marker": "bool",
    "batched_pending_flush": "flush_tlb_mm",
    "batch_notify_at": "add_pending",
    "batch_notify_mm": "owner",
    "sva_decoder": "exact",
    "arm64_range_start": "kept",
    "ceiling_told": "all",
    "sec_inv_scope": "all_levels",
    "ats_order": "iotlb_first",
    "ats_wait": True,
    "cow_range_only_end": True,
    "cow_reuse": "reuse_swap_page",
    "cow_frees_swap_cache": False,
    "gup_fast_rechecks_pmd": False,
    "spurious_fault_flushes": False,
    "arch_secondary_flush": False,
    "upgrade_notify": "none",
    "nested_encoding": "exact",
    "zap_delays_rmap": False,
    "unmap_mapping_lock": "exclusive",
    "munmap_downgrades": False,
    "mremap_cpu_flush": "dirty_under_old_ptl",
    "mremap_sec_flush": "at_end",
    "have_move_pmd": False,
    "move_pmd_rmap_locks": "if_needed",
    "fork_cpu_flush": True,
    "flush_mm_notifies": False,
    "change_protection_gathers": False,
    "change_protection_bracket": "pmd",
    "change_protection_upgrades": "dirty_shared",
    "pte_needs_flush": False,
    "clear_refs_flush": "fullmm_gather",
    "apic_gen": 1,
    "kvm_retry": "count+seq",
    "kvm_retry_hva": False,
    "kvm_seq_sample": "before",
    "kvm_fault_lock": "exclusive",
    "kvm_retry_check": "under_mmu_lock",
    "kvm_end_order": "seq_first",
    "kvm_second_range": "added",
    "kvm_range_forgotten": "at_zero",
    "shadow_passes_over": "nothing",
    "kvm_lockless_skip": False,
    "kvm_memslots_wait": False,
    "unregister_waits": True,
    "flush_page_notifies": False,
    "copro_removal": "count_then_flush",
    "ocxl_link": "snoops_tlbie",
    "ocxl_notifier": False,
    "ocxl_notifier_releases": False,
    "ocxl_decoder": "per_page_loop",
    "ocxl_counts_copro": True,
    "ocxl_clears_pe_cache": True,
    "ocxl_invalidates_pid": True,
}
_V4_18 = _V4_15
_V5_7 = _V4_15 | {
    "migration_wait_ref": "until_queued",
    "munmap_downgrades": True,
    "copro_removal": "flush_then_count",
    "clear_refs_flush": "nested_gather",
    "mremap_cpu_flush": "under_both_ptl",
    "have_move_pmd": True,
    "nested_encoding": "neg1_neg1",
}
_V5_8 = _V5_7 | {"apic_gen": 2}
_V5_10 = _V5_8 | {"cow_reuse": "page_count"}
_V5_12 = _V5_10 | {
    "kvm_retry_hva": True,
    "ocxl_notifier": True,
    "clear_refs_flush": "flush_tlb_mm",
}
_V6_2 = _V5_12 | {
    "migration_wait_ref": "none",
    "cow_reuse": "anon_exclusive",
    "cow_frees_swap_cache": True,
    "gup_fast_rechecks_pmd": True,
    "zap_delays_rmap": True,
    "unmap_mapping_lock": "shared",
    "batched_marker": "generation",
    "change_protection_gathers": True,
    "change_protection_upgrades": "exclusive",
    "move_pmd_rmap_locks": "always",
    "kvm_fault_lock": "shared",
    "kvm_lockless_skip": True,
    "kvm_memslots_wait": True,
}
_V6_5 = _V6_2 | {
    "apic_gen": 3,
    "migration_batches": True,
    "batch_skips_inaccessible": True,
}
_V6_6 = _V6_5 | {
    "end_calls_ir": False,
    "gather_calls_ir": False,
    "clear_flush_calls_ir": False,
    "cow_range_only_end": False,
    "arch_secondary_flush": True,
    "flush_page_notifies": True,
    "mremap_sec_flush": "beside_cpu_flush",
    "flush_mm_notifies": True,
    "upgrade_notify": "arch_beside_flush",
    "nested_encoding": "zero_neg1",
}
_RELEASES: dict[str, dict[str, object]] = {
    "v4.15": _V4_15,
    "v4.18": _V4_18,
    "v5.7": _V5_7,
    "v5.8": _V5_8,
    "v5.10": _V5_10,
    "v5.12": _V5_12,
    "v6.2": _V6_2,
    "v6.5": _V6_5,
    "v6.6": _V6_6,
}
_ARCHES: dict[str, dict[str, object]] = {
    "x86": {"upgrade_needs_flush": False, "refetch_on_perm_fault": True,
            "upgrade_tlbi_scope": "broadcast", "broadcast_tlbi": False, "btm": False,
            "btm_skips_cmd": False, "secondary_before_dsb": "no", "batch_mode": "ipi_deferred",
            "tlbie_scope": "all", "flush_ceiling": 33, "tlb_end_vma": "nothing",
            "kvm_tlb_flush": "request_and_kick", "rcu_table_free": False},
    "arm64": {"upgrade_needs_flush": True, "refetch_on_perm_fault": False,
              "upgrade_tlbi_scope": "broadcast", "broadcast_tlbi": True, "btm": False,
              "btm_skips_cmd": True, "secondary_before_dsb": "page", "batch_mode": "none",
              "tlbie_scope": "all", "flush_ceiling": PTRS_PER_PTE - 1, "tlb_end_vma": "flush",
              "kvm_tlb_flush": "vmid_each", "rcu_table_free": True},
    "ppc": {"upgrade_needs_flush": True, "refetch_on_perm_fault": False,
            "upgrade_tlbi_scope": "broadcast", "broadcast_tlbi": True, "btm": False,
            "btm_skips_cmd": False, "secondary_before_dsb": "no", "batch_mode": "none",
            "tlbie_scope": "by_cpumask_and_copros", "flush_ceiling": 33,
            "tlb_end_vma": "nothing", "kvm_tlb_flush": "request_and_kick",
            "kvm_fault_lock": "exclusive", "rcu_table_free": True},
}  # fmt: skip
_POWER10: dict[str, object] = {"ocxl_link": "atsd", "refetch_on_perm_fault": True}
_POWER10_REFETCHES = _POWER10 | {"upgrade_needs_flush": False}
"""From v6.0 (2a8a0f420f74) an added right is flushed for POWER9 only, whose nest MMU does not walk
again."""
_LATER: dict[str, object] = {"have_move_pmd": False}
"""Releases whose x86 moves whole tables, and others do not yet."""
_FLUSHES: dict[str, object] = {"spurious_fault_flushes": True}
_V4_ARM64: dict[str, object] = {"flush_ceiling": 1024, "tlb_end_vma": "flush_cpus"}
_BOTH: dict[tuple[str, str], dict[str, object]] = {
    ("v6.6", "arm64"): {"batch_mode": "tlbi_nosync", "batched_pending_flush": "dsb"},
    **{(release, "x86"): {"pte_needs_flush": True} for release in ("v6.2", "v6.5", "v6.6")},
    ("v4.15", "ppc"): {"tlbie_scope": "by_cpumask"},
    **{(release, "x86"): {"rcu_table_free": True} for release in ("v4.15", "v4.18")},
    **{(release, "arm64"): _FLUSHES | _V4_ARM64 for release in ("v4.15", "v4.18")},
    **{(release, "arm64"): _LATER | _FLUSHES for release in ("v5.7", "v5.8")},
    ("v5.10", "arm64"): _LATER,
    **{(release, "ppc"): _LATER for release in ("v5.7", "v5.8", "v5.10")},
    ("v5.12", "ppc"): _POWER10 | _LATER,
    **{(release, "ppc"): _POWER10_REFETCHES for release in ("v6.2", "v6.5")},
    ("v6.6", "ppc"): _POWER10_REFETCHES | {"flush_page_notifies": False, "ceiling_told": "range"},
}

RELEASES = tuple(_RELEASES)
NEAR_NAMES = 3
"""Switches that are named to whoever has mistyped one; there are some sixty."""
ARCHES = get_args(Arch)


def preset(
    release: str,
    arch: str = "x86",
    overrides: dict[str, object] | None = None,
    where: str = "--kernel",
) -> Kernel:
    """The kernel of a release and architecture, with some switches set otherwise.

    Raises ``UserError`` for an unknown release, architecture, switch or value.
    """
    if release not in _RELEASES:
        raise UserError(where, f"unknown kernel {release!r}", f"one of {', '.join(RELEASES)}")
    if arch not in _ARCHES:
        raise UserError(where, f"unknown architecture {arch!r}", f"one of {', '.join(ARCHES)}")
    switches = _RELEASES[release] | _ARCHES[arch] | _BOTH.get((release, arch), {})
    unknown = set(overrides or {}) - set(switches)
    if unknown:
        wrong = sorted(unknown)[0]
        near = ", ".join(get_close_matches(wrong, switches, NEAR_NAMES, cutoff=0.0))
        raise UserError(where, f"unknown switch {wrong!r}", f"{near}, ...: docs/reference.md")
    values = {"release": release, "arch": arch} | switches
    try:
        return msgspec.convert(values | (overrides or {}), Kernel).validate(where)
    except msgspec.ValidationError as error:
        raise UserError(where, str(error)) from None
