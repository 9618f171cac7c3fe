"""arch/*/mm and its headers: how an architecture flushes, and whom it tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec

from mmurace.nodes.kernel.variant.switch import Switches, declare, since, switch, unreleased

if TYPE_CHECKING:
    from mmurace.nodes.kernel.variant.kernel import Kernel


@declare
class Arch(Switches, frozen=True):
    """arch/*/mm and its headers: how an architecture flushes, and whom it tells."""

    OWNER: ClassVar[str] = "arch"

    broadcast_tlbi: bool = switch(
        "arch/*/include/asm/tlbflush.h",
        "flush_tlb_range",
        since(False, on="x86"),
        since(True, on="arm64 ppc"),
        hardware=True,
    )
    """The CPU flush is TLBI and DSB (arm64), or ``tlbie`` (ppc), rather than IPIs (x86)."""
    tlbi_waits_for_stores: bool = switch(
        "arch/arm64/kernel/cpu_errata.c",
        "arm64_errata",
        since(True),
        unreleased(False, "processors with an erratum, such as CVE-2025-10263"),
        hardware=True,
    )
    """TLBI and DSB are complete only when stores through the dropped entries have arrived, as the
    architecture says; or a processor answers as soon as it has dropped them."""
    tlbi_repeated: bool = switch(
        "arch/arm64/include/asm/tlbflush.h",
        "ARM64_WORKAROUND_REPEAT_TLBI",
        since(False),
        unreleased(True, "kernels that know a processor to need it (cfd391e74134)"),
        hardware=True,
    )
    """Each TLBI and DSB is done twice: the second waits for what the first has left behind.  Such
    a kernel puts no flush off (``arch_tlbbatch_should_defer``, v6.6)."""
    tlbie_scope: Literal["all", "by_cpumask", "by_cpumask_and_copros"] = switch(
        "arch/powerpc/mm/book3s64/radix_tlb.c",
        "mm_needs_flush_escalation",
        since("all", on="x86 arm64"),
        since("by_cpumask", on="ppc"),
        since("by_cpumask_and_copros", "v4.18", "0cef77c7798a", on="ppc"),
    )
    """Who sees it: everybody (arm64); nobody else if the mm is this processor's alone (ppc, to
    v4.17); nor if only coprocessors that have left still count as running it (v4.18)."""
    copro_removal: Literal["count_then_flush", "flush_then_count"] = switch(
        "arch/powerpc/include/asm/mmu_context.h",
        "mm_context_remove_copro",
        since("flush_then_count"),
        since("count_then_flush", "v4.18", "0cef77c7798a"),
        since("flush_then_count", "v4.19", "cca19f0b684f"),
    )
    """``mm_context_remove_copro`` flushes the mm after it has lowered the count that the scope of
    the flush depends on (v4.18, where that count is of coprocessors), or before (to v4.17, where it
    is of processors; and from cca19f0b684f, which is not in what could be seen of v4.18 and its
    point releases: that v4.19 is the first to have it is inferred)."""
    arch_secondary_flush: bool = switch(
        "arch/*/include/asm/tlbflush.h",
        "flush_tlb_range",
        since(False),
        since(True, "v6.6", "6bbd42e2df8f"),
    )
    """The architecture's TLB flush calls ``arch_invalidate_secondary_tlbs`` (v6.6)."""
    flush_page_notifies: bool = switch(
        "arch/*/include/asm/tlbflush.h",
        "flush_tlb_page",
        since(False),
        since(True, "v6.6", "6bbd42e2df8f", on="x86 arm64"),
    )
    """The flush of one page is among those that do; ``radix__flush_tlb_page_psize`` is not (v6.6,
    ppc)."""
    flush_mm_notifies: bool = switch(
        "arch/*/include/asm/tlbflush.h",
        "flush_tlb_mm",
        since(False),
        since(True, "v6.6", "6bbd42e2df8f"),
    )
    """``flush_tlb_mm``, too, calls ``arch_invalidate_secondary_tlbs`` (v6.6)."""
    secondary_before_dsb: Literal["no", "page", "page_and_range"] = switch(
        "arch/arm64/include/asm/tlbflush.h",
        "flush_tlb_page_nosync",
        since("no"),
        since("page", "v6.6", "6bbd42e2df8f", on="arm64"),
        since("page_and_range", "v6.9", "d9d8dc2bd3fb", on="arm64"),
    )
    """Which arm64 flushes call the secondaries between their TLBI and its completion: those of
    one page (v6.6), those of a range as well (v6.9, ``__flush_tlb_range_nosync``)."""
    arm64_range_start: Literal["kept", "advanced"] = switch(
        "arch/arm64/include/asm/tlbflush.h",
        "__flush_tlb_range",
        since("kept"),
        since("advanced", "v6.6", "6bbd42e2df8f", on="arm64"),
        since("kept", "v6.14", "f7edb07ad7c6", on="arm64", backports="v6.6.88 v6.12.107"),
    )
    """What ``__flush_tlb_range`` tells the secondaries after its loop over operations: the start
    that it was given, or the one that its macro has counted up to the end (v6.6 to v6.13, and v6.6
    to v6.6.87: f7edb07ad7c6 is in the announcement of v6.6.88, and in
    v6.12.107, which need not be the first of its series).  What a driver makes of that empty
    range is ``sva_decoder``."""
    upgrade_needs_flush: bool = switch(
        "arch/*/mm/pgtable.c",
        "ptep_set_access_flags",
        since(False, on="x86"),
        since(True, on="arm64 ppc"),
        since(False, "v6.0", "2a8a0f420f74", on="ppc"),
    )
    """``ptep_set_access_flags`` flushes the TLB when it grants more (arm64 up to v6.6 and beyond;
    ppc for the nest MMU, from v6.0 on POWER9 only, and a ppc of v5.12 or later is a POWER10 here:
    ``ocxl_link``)."""
    upgrade_tlbi_scope: Literal["broadcast", "local"] = switch(
        "arch/arm64/mm/fault.c",
        "__ptep_set_access_flags",
        since("broadcast"),
        since("local", "v6.19", "cb1fa2e99955", on="arm64"),
    )
    """That flush reaches every observer, or only the processor that does it: the others repair
    their own spurious fault (arm64, v6.19)."""
    refetch_on_perm_fault: bool = switch(
        "drivers/iommu/",
        "hardware",
        since(True, on="x86"),
        since(False, on="arm64 ppc"),
        since(True, "v5.12", on="ppc"),
        hardware=True,
    )
    """The IOMMU walks again when an entry is too weak, instead of faulting on it (x86, and the nest
    MMU of POWER10).  No commit: with v5.12 a ppc is a POWER10 here (``ocxl_link``)."""
    batch_mode: Literal["none", "ipi_deferred", "tlbi_nosync"] = switch(
        "mm/rmap.c",
        "should_defer_flush",
        since("none"),
        since("ipi_deferred", "v4.3", "72b252aed506", on="x86"),
        since("tlbi_nosync", "v6.6", "43b3dfdd0455", on="arm64"),
    )
    """How reclaim flushes: page by page; all it has cleared by one round of IPIs (x86, v4.3); TLBIs
    that one DSB completes for all (arm64, v6.6)."""
    batched_pending_flush: Literal["flush_tlb_mm", "dsb"] = switch(
        "mm/rmap.c",
        "flush_tlb_batched_pending",
        since("flush_tlb_mm"),
        since("dsb", "v6.6", "43b3dfdd0455", on="arm64"),
        since("flush_tlb_mm", "v6.16", "4b634918384c", on="arm64", backports="v6.6.95 v6.12.107"),
    )
    """What whoever sees it does: flush the mm, or only wait for what was sent from its own
    processor (arm64, v6.6 to v6.15; it is in the review of v6.6.95, and a v6.12.107 has it, which
    need not be the first)."""
    batch_notify_at: Literal["add_pending", "flush"] = switch(
        "arch/x86/include/asm/tlbflush.h",
        "arch_tlbbatch_add_pending",
        since("add_pending"),
        unreleased("flush", "a patch of July 2023, in linux-next only"),
    )
    """When a batch calls ``arch_invalidate_secondary_tlbs``: for each entry (v6.6), or at its end
    (a patch of July 2023 in linux-next)."""
    batch_notify_mm: Literal["owner", "current"] = switch(
        "arch/x86/mm/tlb.c",
        "arch_tlbbatch_flush",
        since("owner"),
        unreleased("current", "a patch of July 2023, in linux-next only"),
    )
    """Whose subscribers that is: those of the mm that was unmapped, or of whoever reclaims."""
    flush_ceiling: Annotated[int, msgspec.Meta(ge=1)] = switch(
        "arch/*/include/asm/tlbflush.h",
        "flush_tlb_range",
        since(33, on="x86 ppc"),
        since(1024, on="arm64"),
        since(511, "v5.1", "3d65b6bbc01e", on="arm64"),
        unreleased(2097151, "d1d3aa98b1d4, v5.9, on arm64 processors with range operations"),
    )
    """The largest range, in pages, that is flushed as a range; a larger one is a flush of the mm.
    ``tlb_single_page_flush_ceiling`` (x86: 33, a5102476a24b of 2014; ppc: the same number);
    ``MAX_TLB_RANGE`` (arm64: 1024), ``MAX_TLBI_OPS - 1`` (3d65b6bbc01e, PTRS_PER_PTE - 1: so it is
    in v5.1, and whether in v5.0 could not be seen), ``MAX_TLBI_RANGE_PAGES - 1`` (2**21 - 1,
    d1d3aa98b1d4, v5.9, on processors with range operations; the presets' have none)."""
    ceiling_told: Literal["all", "range"] = switch(
        "arch/*/include/asm/tlbflush.h",
        "flush_tlb_range",
        since("all"),
        since("range", "v6.6", "6bbd42e2df8f", on="ppc"),
        since("range", "v6.15", "4a02ed8e1cc3", on="x86"),
    )
    """What the secondaries are told of such a flush: (0, ULONG_MAX), as the CPUs (v6.6), or the
    range that was asked for (x86, 4a02ed8e1cc3, v6.15; ppc, ``__radix__flush_tlb_range``, which
    may flush the whole PID and calls them with its start and end in either case, v6.6)."""
    spurious_fault_flushes: bool = switch(
        "arch/arm64/include/asm/pgtable.h",
        "flush_tlb_fix_spurious_fault",
        since(True, on="arm64"),
        since(False, "v5.10", "6a1bdb173184", on="arm64"),
        since(False, on="x86 ppc"),
    )
    """arm64: ``flush_tlb_fix_spurious_fault`` is ``flush_tlb_page``, and ``ptep_set_access_flags``
    flushes for a load as well (to v5.9; 6a1bdb173184)."""
    rcu_table_free: bool = switch(
        "mm/mmu_gather.c",
        "tlb_remove_table",
        since(True, on="arm64 ppc"),
        since(True, on="x86"),
        since(False, "v4.19", "48a8b97cfd80", on="x86"),
        since(True, "v6.15", "a37259732a7d", on="x86"),
    )
    """A page table is freed when no lockless walk is in progress on any processor
    (``CONFIG_MMU_GATHER_RCU_TABLE_FREE``: arm64, ppc; x86 to v4.18, and from a37259732a7d on,
    v6.15), or with the pages of its gather: on the bare x86 of v4.19 to v6.14, which selects it for
    PARAVIRT (and PT_RECLAIM) alone, the IPIs of the flush wait for such walks (48a8b97cfd80)."""
    fullmm_flush: Literal["always", "if_tables"] = switch(
        "arch/*/include/asm/tlb.h",
        "tlb_flush",
        since("always", on="x86 ppc"),
        since("if_tables", on="arm64"),
    )
    """What a gather of a whole mm (``fullmm``) flushes: the mm; or nothing unless it frees tables,
    for the ASID will not be given out again while somebody has entries of it (arm64, older than
    what is known here; to v4.19 not even with tables, whose own flush is another one)."""
    tlb_end_vma: Literal["nothing", "flush_cpus", "flush"] = switch(
        "arch/*/include/asm/tlb.h",
        "tlb_end_vma",
        since("nothing", on="x86 ppc"),
        since("flush_cpus", on="arm64"),
        since("flush", "v4.19", "fd1102f0aade", on="arm64"),
    )
    """What a gather does when it is done with a VMA: nothing (x86, ppc); it flushes the CPUs, and
    its range is empty again (arm64, to v4.18); or it calls ``invalidate_range`` as well
    (fd1102f0aade, v4.19)."""
    pte_needs_flush: bool = switch(
        "arch/x86/include/asm/tlbflush.h",
        "pte_needs_flush",
        since(False),
        since(True, "v5.19", "c9fe66560bf2", on="x86"),
        since(True, "v6.19", on="arm64"),
    )
    """``change_protection`` flushes only entries of which a TLB may hold too much (x86, v5.19;
    arm64, v6.19 by what is said of its backports: read in v7.2, its commit was looked up in
    vain)."""
    young_clear: Literal["atomic", "plain_store"] = switch(
        "include/linux/pgtable.h",
        "ptep_test_and_clear_young",
        since("atomic"),
        unreleased(
            "plain_store",
            "the generic function, for processors that never write an entry themselves",
        ),
    )
    """How aging takes the accessed bit out of an entry: by one access, in which no other bit gets
    lost (x86, arm64 and ppc have functions of their own), or by a store of what was loaded."""
    young_flush: Literal["page", "nosync", "none"] = switch(
        "arch/*/include/asm/pgtable.h",
        "ptep_clear_flush_young",
        since("page", on="x86 arm64"),
        since("none", "v3.15", "b13b1d2d8692", on="x86"),
        since("nosync", "v5.0", "3403e56b41c1", on="arm64"),
        since("none", on="ppc"),
    )
    """What follows: a flush of the page (to v3.14 on x86, to v4.20 on arm64); a TLBI for which
    nobody waits (arm64, v5.0: inferred from the dates of its review); nothing (x86, v3.15, which
    went into v3.14.y, too; by which point release was not looked up)."""
    pending_is_accessible: bool = switch(
        "arch/*/include/asm/pgtable.h",
        "pte_accessible",
        since(False),
        since(True, "v3.13", "20841405940e"),
    )
    """Whether ``pte_accessible`` says of a ``PROTNONE`` entry that a TLB may hold it while the mm
    owes a flush (v3.13), so that who clears it flushes.  ppc flushes for any entry."""

    def contradictions(self, kernel: Kernel) -> Iterator[tuple[str, str]]:
        """What belongs to broadcasts, to IPIs, to the arch hook or to POWER alone."""
        if self.upgrade_tlbi_scope == "local" and not self.upgrade_needs_flush:
            yield "upgrade_tlbi_scope = local without upgrade_needs_flush", "broadcast"
        if self.flush_mm_notifies and not self.arch_secondary_flush:
            yield "flush_mm_notifies without arch_secondary_flush", "the hook of v6.6"
        if self.secondary_before_dsb != "no" and not self.broadcast_tlbi:
            yield (
                f"secondary_before_dsb = {self.secondary_before_dsb} without broadcast_tlbi",
                "no: a flush by IPIs has no DSB",
            )
        if not self.broadcast_tlbi and not self.tlbi_waits_for_stores:
            yield "tlbi_waits_for_stores = false without broadcast_tlbi", "true"
        if self.tlbi_repeated and (not self.broadcast_tlbi or self.batch_mode != "none"):
            yield "tlbi_repeated without broadcast_tlbi, or with a batch_mode", "batch_mode = none"
        if self.batch_mode == ("ipi_deferred" if self.broadcast_tlbi else "tlbi_nosync"):
            yield (
                f"batch_mode = {self.batch_mode} contradicts broadcast_tlbi",
                "ipi_deferred is for IPIs, tlbi_nosync for broadcasts",
            )
        if self.tlbie_scope != "all" and not self.broadcast_tlbi:
            yield f"tlbie_scope = {self.tlbie_scope} without broadcast_tlbi", "all"
        if self.tlbie_scope != "all" and kernel.machine != "ppc":
            yield f"tlbie_scope = {self.tlbie_scope} without a POWER machine", "all"
        if self.batch_mode != "none" and self.tlbie_scope != "all":
            yield f"batch_mode = {self.batch_mode} contradicts tlbie_scope", "none"
        if self.spurious_fault_flushes and not self.upgrade_needs_flush:
            yield "spurious_fault_flushes without upgrade_needs_flush", "false: only arm64 did"
