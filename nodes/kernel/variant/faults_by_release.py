"""mm/memory.c, and what page faults call: under which lock, and what they make of a page."""

from __future__ import annotations

from typing import Literal

from mmurace.nodes.kernel.variant.switch import Switches, since, switch


class Faults(Switches, frozen=True):
    """mm/memory.c, and what page faults call: under which lock, and what they make of a page."""

    fault_vma_lock: Literal["none", "anon", "without_files", "all"] = switch(
        "arch/*/mm/fault.c",
        "do_user_addr_fault",
        since("none"),
        since("anon", "v6.4", "0bff0aaea03e", on="x86"),
        since("anon", "v6.4", "cd7f176aea5f", on="arm64"),
        since("anon", "v6.4", "70d4cbc80c88", on="ppc"),
        since("without_files", "v6.6", "4c2f803abb17"),
        since("all", "v6.7", "12214eba1992"),
    )
    """Which faults of a processor hold only the lock of their VMA: none; those of anonymous
    memory that is not in swap (v6.4; 17c05f18e541 for swap); all but those that ask a file for a
    page, or tell it of a store (v6.6); those, too (v6.7).  Entries of a device's memory, and faults
    of anybody else, need mmap_lock in all releases."""
    anon_vma_prepare: Literal["mmap_lock", "trylock"] = switch(
        "mm/memory.c",
        "vmf_anon_prepare",
        since("mmap_lock"),
        since("mmap_lock", "v6.4", "2ac0af1b66e3"),
        since("trylock", "v6.10", "737019cf6ac5"),
    )
    """What the first fault in anonymous memory takes beside the lock of its VMA: it is made under
    mmap_lock as a whole (v6.4), or has that for a moment if nobody has to be waited for (v6.10,
    with a373baed5a9d)."""
    fork_locks_vmas: bool = switch(
        "mm/mmap.c",
        "dup_mmap",
        since(False),
        since(True, "v6.5", "fb49c455323f", backports="v6.4.3"),
    )
    """``fork`` holds each VMA of the parent for write until it has flushed (v6.5; v6.4.3 is what
    the reports of it say)."""
    madvise_vma_lock: bool = switch(
        "mm/madvise.c",
        "try_vma_read_lock",
        since(False),
        since(True, "v6.17", "a6fde7add78d"),
    )
    """``MADV_DONTNEED`` and ``MADV_FREE`` of a part of one VMA hold only its lock (v6.17, from the
    dates of their review; a v6.12 takes mmap_lock and a v6.18 does not, as measured)."""
    cow_reuse: Literal["reuse_swap_page", "page_count", "free_swap", "anon_exclusive"] = switch(
        "mm/memory.c",
        "do_wp_page",
        since("reuse_swap_page"),
        since("page_count", "v5.9", "09854ba94c6a"),
        since("free_swap", "v5.18", "53a05ad9f21d"),
        since("anon_exclusive", "v5.19", "6c287605fd56"),
    )
    """When ``do_wp_page`` and ``do_swap_page`` let a process write to an anonymous page instead of
    copying it: no other entry maps it or has its swap slot (to v5.8); nobody else has a reference,
    the swap cache included (09854ba94c6a, v5.9; only ``do_wp_page``); the same, the swap cache
    excluded if no entry has the slot (53a05ad9f21d, c145e0b47c77, v5.18); or it is
    ``PageAnonExclusive``, without the folio lock, else the same (6c287605fd56, v5.19)."""
    cow_frees_swap_cache: bool = switch(
        "mm/memory.c",
        "wp_page_copy",
        since(False),
        since(True, "v5.14", "f4c4a3f48480"),
    )
    """``wp_page_copy`` takes the old page out of the swap cache if nobody has it any more
    (f4c4a3f48480, v5.14)."""
    numa_fault_maps: Literal["before_migration", "after_migration"] = switch(
        "mm/memory.c",
        "do_numa_page",
        since("before_migration"),
        since("after_migration", "v5.13", "b99a342d4f11"),
    )
    """When a NUMA hint fault makes the entry accessible: before it migrates the page, which
    flushes the entry then, or only if the page has not moved (b99a342d4f11, v5.13)."""
    migrate_to_ram_ref: bool = switch(
        "mm/memory.c",
        "do_swap_page",
        since(False),
        since(True, "v6.1", "16ce101db85d"),
    )
    """A fault on a device-private entry looks at it again under the PTL and takes a reference to
    the page for ``migrate_to_ram`` (16ce101db85d, v6.1), or uses what it has loaded."""
    exclusive_fault_ref: bool = switch(
        "mm/memory.c",
        "remove_device_exclusive_entry",
        since(False),
        since(True, "v6.3", "7c7b962938dd"),
    )
    """A fault on a device-exclusive entry has a reference to the page that it locks (7c7b962938dd,
    v6.3; in v5.15.107, too)."""
    migration_wait_ref: Literal["while_asleep", "until_queued", "none"] = switch(
        "mm/migrate.c",
        "migration_entry_wait",
        since("while_asleep"),
        since("until_queued", "v5.0", "9a1ea439b16b"),
        since("none", "v5.17", "ffa65753c431"),
    )
    """Until when ``migration_entry_wait`` has a reference to the page: while it sleeps (to v4.20),
    or until it is in the queue (9a1ea439b16b, v5.0); it takes none (ffa65753c431, v5.17)."""
    gup_fast_rechecks_pmd: bool = switch(
        "mm/gup.c",
        "gup_pte_range",
        since(False),
        since(True, "v6.1", "70cbc3cc78a9"),
    )
    """``gup_pte_range`` looks at the upper entry again, too, when it has a reference
    (70cbc3cc78a9, v6.1)."""
