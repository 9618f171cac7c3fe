"""virt/kvm and arch/x86/kvm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from mmurace.nodes.kernel.variant.switch import Switches, declare, since, switch, unreleased

if TYPE_CHECKING:
    from mmurace.nodes.kernel.variant.kernel import Kernel


@declare
class KvmSwitches(Switches, frozen=True):
    """virt/kvm and arch/x86/kvm."""

    OWNER: ClassVar[str] = "kvm"
    PROFILES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "x86": ("kvm-x86",),
        "arm64": ("kvm-arm64",),
    }

    apic_reload: Literal[
        "invalidate_page", "no_hook", "range_start", "invalidate_range", "zap_retries", "zap_spins"
    ] = switch(
        "arch/x86/kvm/vmx/vmx.c",
        "vmx_set_apic_access_page_addr",
        since("invalidate_page", "v3.18", "38b9917350cb"),
        since("no_hook", "v4.13", "fb1522e099f0"),
        since("range_start", "v4.15", "b1394e745b94"),
        since("invalidate_range", "v5.8", "e649b3f0188f", backports="v5.4.47 v5.6.19 v5.7.3"),
        since("zap_retries", "v6.5", "878940b33d76"),
        unreleased("zap_spins", "first suggested on the list, before the retry was posted again"),
    )
    """Who asks a vCPU to look its APIC-access page up again: ``invalidate_page``, when the entry
    has changed (to v4.12); nobody (v4.13, v4.14: the callback went, and nothing took its place);
    ``range_start``, before it changes (v4.15); ``invalidate_range``, after (v5.8); or the zap, with
    a reload that posts the request again while an invalidation is open (v6.5), or that waits in
    its place until it is over.  The fix of v4.15 went into v4.14 point releases, too: which ones
    could not be found, no announcement of that year was to be had.  e649b3f0188f did not apply to
    v4.19.y; the announcements of v5.4.47, v5.6.19 and v5.7.3 have it."""
    kvm_retry: Literal["none", "count", "seq", "count+seq"] = switch(
        "virt/kvm/kvm_main.c",
        "mmu_invalidate_retry",
        since("count+seq", "v2.6.28", "e930bffe95e1"),
        unreleased("none", "no retry at all"),
        unreleased("count", "half of it"),
        unreleased("seq", "half of it"),
    )
    """What makes a page fault that looked its page up start over: an invalidation in progress,
    ``mmu_invalidate_seq`` having moved, either (v2.6.28), or nothing.  Up to v5.19 the names are
    ``mmu_notifier_retry`` and ``mmu_notifier_seq``."""
    kvm_retry_hva: bool = switch(
        "virt/kvm/kvm_main.c",
        "mmu_notifier_retry_hva",
        since(False),
        since(True, "v5.12", "4a42d848db95", on="kvm-x86"),
    )
    """``mmu_notifier_retry_hva``: only faults inside the range retry (x86, v5.12).  The page fault
    of arm64 (``user_mem_abort``) asks ``mmu_invalidate_retry`` to v6.6 and beyond."""
    kvm_looks_at_vma: bool = switch(
        "arch/arm64/kvm/mmu.c",
        "user_mem_abort",
        since(False),
        since(True, on="arm64"),
    )
    """The page fault looks the VMA up before the page, under mmap_lock (arm64).  No commit: older
    than what is known here; that it reads ``mmu_invalidate_seq`` under that lock, too, or right
    behind it, makes no difference."""
    kvm_seq_sample: Literal["before", "after"] = switch(
        "arch/x86/kvm/mmu/mmu.c",
        "kvm_faultin_pfn",
        since("before"),
        unreleased("after", "the wrong order"),
    )
    """When the page fault reads ``mmu_invalidate_seq``: before its lookup, or after it."""
    kvm_retry_check: Literal["under_mmu_lock", "before_mmu_lock"] = switch(
        "arch/x86/kvm/mmu/mmu.c",
        "direct_page_fault",
        since("under_mmu_lock"),
        unreleased("before_mmu_lock", "the wrong place"),
    )
    """Where the page fault decides that it need not start over."""
    kvm_end_order: Literal["seq_first", "count_first"] = switch(
        "virt/kvm/kvm_main.c",
        "kvm_mmu_invalidate_end",
        since("seq_first"),
        unreleased("count_first", "the wrong order"),
    )
    """What ``invalidate_range_end`` changes first."""
    kvm_second_range: Literal["added", "replaces"] = switch(
        "virt/kvm/kvm_main.c",
        "kvm_mmu_invalidate_begin",
        since("added"),
        unreleased("replaces", "a range that forgets the first"),
    )
    """What a second bracket does to the range in progress (``kvm_mmu_invalidate_range_add``)."""
    kvm_range_forgotten: Literal["at_zero", "at_each_end"] = switch(
        "virt/kvm/kvm_main.c",
        "kvm_mmu_invalidate_end",
        since("at_zero"),
        unreleased("at_each_end", "a range that is forgotten too early"),
    )
    """When that range is forgotten: when no bracket is open any more, or whenever one ends."""
    shadow_passes_over: Literal["nothing", "protection_page"] = switch(
        "virt/kvm/kvm_main.c",
        "kvm_mmu_notifier_invalidate_range_start",
        since("nothing"),
        unreleased("protection_page", "an event filter that goes too far"),
    )
    """Events for which a shadow MMU drops nothing: none, or those of pages that became read-only
    one by one (``MMU_NOTIFY_PROTECTION_PAGE``: fork)."""
    kvm_lockless_skip: bool = switch(
        "virt/kvm/kvm_main.c",
        "__kvm_handle_hva_range",
        since(False),
        since(True, "v5.15", "071064f14d87"),
    )
    """Invalidations that touch no memslot take no mmu_lock; ``mn_active_invalidate_count``
    holds off memslot updates (v5.15)."""
    kvm_memslots_wait: bool = switch(
        "virt/kvm/kvm_main.c",
        "install_new_memslots",
        since(False),
        since(True, "v5.15", "52ac8b358b0c"),
    )
    """A new set of memslots waits until no notifier bracket is open (v5.15)."""
    kvm_fault_lock: Literal["exclusive", "shared"] = switch(
        "arch/x86/kvm/mmu/mmu.c",
        "direct_page_fault",
        since("exclusive"),
        since("shared", "v5.15", "71ba3f3189c7", on="x86"),
        since("shared", "v6.2", "1577cb5823ce", on="arm64"),
    )
    """How a page fault takes mmu_lock: alone, or for read, beside others (x86 with the TDP MMU on,
    71ba3f3189c7, v5.15; arm64, 1577cb5823ce, v6.2)."""
    kvm_tlb_flush: Literal["request_and_kick", "vmid_each", "vmid_range"] = switch(
        "virt/kvm/kvm_main.c",
        "kvm_flush_remote_tlbs",
        since("request_and_kick", on="x86 ppc"),
        since("vmid_each", on="arm64"),
        unreleased(
            "vmid_range", "7657ea920c54, v6.6, on processors with range operations and S2FWB"
        ),
    )
    """How KVM flushes what it has zapped: each vCPU is asked to, and leaves the guest for it (x86);
    or by broadcasts for the VMID, which interrupt nobody (arm64): one for each entry, or one for
    the range, whether it had entries or not (7657ea920c54, v6.6, on processors with range
    operations and S2FWB; the presets' have none)."""

    gpc_retry: Literal["no_cache", "none", "count+seq", "active_count+seq"] = switch(
        "virt/kvm/pfncache.c",
        "hva_to_pfn_retry",
        since("no_cache"),
        since("count+seq", "v5.17", "982ed0de4753", on="kvm-x86"),
        since("active_count+seq", "v5.19", "58cd407ca4c6", on="kvm-x86", backports="v5.18.18"),
        unreleased("none", "no retry at all"),
    )
    """What makes the refresh of a ``gfn_to_pfn_cache`` (x86, v5.17) start over.

    ``count+seq``: what makes a page fault do so, asked under mmu_lock and before ``gpc->lock`` is
    taken; meanwhile the cache is valid and has no pfn.  ``active_count+seq``: a notifier bracket
    that is open (``mn_active_invalidate_count``) or ``mmu_invalidate_seq`` having moved, asked
    under ``gpc->lock``; meanwhile it is not valid (v5.19).  Lists of what went into stable releases
    name 58cd407ca4c6 right behind 93984f19e7bc, which was in the review of v5.18.18; its own
    announcement was not to be had."""
    gpc_refresh_lock: bool = switch(
        "virt/kvm/pfncache.c",
        "kvm_gfn_to_pfn_cache_refresh",
        since(False),
        since(True, "v5.19", "93984f19e7bc", on="kvm-x86", backports="v5.18.18"),
    )
    """``gpc->refresh_lock``: one refresh of a cache at a time (v5.19)."""
    gpc_pins_page: bool = switch(
        "virt/kvm/pfncache.c",
        "kvm_gfn_to_pfn_cache_refresh",
        since(False),
        since(True, "v5.17", "982ed0de4753", on="kvm-x86"),
        since(False, "v5.19", "85165781c5d9", on="kvm-x86"),
    )
    """A cache keeps a reference to its page, valid or not, until it gets another (to v5.18)."""

    def contradictions(self, kernel: Kernel) -> Iterator[tuple[str, str]]:
        """The hook that a reload needs, and the count that a range belongs to."""
        if self.apic_reload == "invalidate_range" and kernel.arch.arch_secondary_flush:
            yield (
                "arch_secondary_flush contradicts apic_reload = invalidate_range",
                "invalidate_range does not exist beside the arch hook",
            )
        if self.apic_reload == "invalidate_page" and kernel.mm.rmap_notifies == "range":
            yield (
                "rmap_notifies = range contradicts apic_reload = invalidate_page",
                "no_hook: nobody calls invalidate_page",
            )
        if self.kvm_retry_hva and "count" not in self.kvm_retry:
            yield (
                f"kvm_retry_hva contradicts kvm_retry = {self.kvm_retry}",
                "the range belongs to the count",
            )
