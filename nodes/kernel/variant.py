"""Kernel variants: typed, independent switches, with presets by release and architecture.

A switch is named for what the kernel does, never for the harm that follows.  Which release has
which value is catalogue 4.1 to 4.4; contradictory values are refused.
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from protocol.errors import UserError

Arch = Literal["x86", "arm64"]


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
    arch_secondary_flush: bool
    """The architecture's TLB flush calls ``arch_invalidate_secondary_tlbs`` (v6.6)."""
    nested_encoding: Literal["neg1_neg1", "zero_neg1"]
    """The range that a nested gather flushes (mm/mmu_gather.c ``tlb_finish_mmu``)."""
    munmap_downgrades: bool
    """``munmap`` downgrades mmap_lock to read before it unmaps (v4.20)."""
    change_protection_gathers: bool
    """``change_protection`` flushes through an ``mmu_gather`` (v5.19)."""
    upgrade_needs_flush: bool
    """``ptep_set_access_flags`` flushes the TLB when it grants more (arm64)."""
    refetch_on_perm_fault: bool
    """The IOMMU walks again when an entry is too weak, instead of faulting on it (x86)."""
    broadcast_tlbi: bool
    """The CPU flush is TLBI and DSB (arm64) rather than IPIs (x86)."""
    btm: bool
    """The IOMMU takes part in broadcast TLB maintenance."""
    apic_gen: Literal[1, 2, 3]
    """APIC-access page: reload requested from range_start (1, v4.15), from invalidate_range
    (2, v5.8), or from the zap, with a retrying reload (3, v6.5)."""
    kvm_retry_hva: bool
    """``mmu_notifier_retry_hva``: only faults inside the range retry (v5.12)."""
    kvm_lockless_skip: bool
    """Invalidations that touch no memslot take no mmu_lock; ``mn_active_invalidate_count``
    holds off memslot updates (v5.15)."""

    def validate(self, where: str) -> Kernel:
        """Itself, or ``UserError`` naming the switches that contradict each other."""
        for left, right, why in (
            (self.arch_secondary_flush, self.end_calls_ir, "end_calls_ir"),
            (self.arch_secondary_flush, self.gather_calls_ir, "gather_calls_ir"),
            (self.arch_secondary_flush, self.clear_flush_calls_ir, "clear_flush_calls_ir"),
            (self.arch_secondary_flush, self.apic_gen == 2, "apic_gen = 2"),
        ):
            if left and right:
                raise UserError(
                    where, f"arch_secondary_flush contradicts {why}",
                    "invalidate_range does not exist beside the arch hook",
                )  # fmt: skip
        if self.btm and not self.broadcast_tlbi:
            raise UserError(where, "btm without broadcast_tlbi", "broadcast_tlbi = true")
        return self


_V4_15: dict[str, object] = {
    "end_calls_ir": True,
    "gather_calls_ir": True,
    "clear_flush_calls_ir": True,
    "arch_secondary_flush": False,
    "nested_encoding": "neg1_neg1",
    "munmap_downgrades": False,
    "change_protection_gathers": False,
    "apic_gen": 1,
    "kvm_retry_hva": False,
    "kvm_lockless_skip": False,
}
_V5_7 = _V4_15 | {"munmap_downgrades": True}
_V5_8 = _V5_7 | {"apic_gen": 2}
_V6_2 = _V5_8 | {
    "change_protection_gathers": True,
    "kvm_retry_hva": True,
    "kvm_lockless_skip": True,
}
_V6_5 = _V6_2 | {"apic_gen": 3}
_V6_6 = _V6_5 | {
    "end_calls_ir": False,
    "gather_calls_ir": False,
    "clear_flush_calls_ir": False,
    "arch_secondary_flush": True,
    "nested_encoding": "zero_neg1",
}
_RELEASES: dict[str, dict[str, object]] = {
    "v4.15": _V4_15,
    "v5.7": _V5_7,
    "v5.8": _V5_8,
    "v6.2": _V6_2,
    "v6.5": _V6_5,
    "v6.6": _V6_6,
}
_ARCHES: dict[str, dict[str, object]] = {
    "x86": {"upgrade_needs_flush": False, "refetch_on_perm_fault": True,
            "broadcast_tlbi": False, "btm": False},
    "arm64": {"upgrade_needs_flush": True, "refetch_on_perm_fault": False,
              "broadcast_tlbi": True, "btm": False},
}  # fmt: skip

RELEASES = tuple(_RELEASES)
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
    switches = _RELEASES[release] | _ARCHES[arch]
    unknown = set(overrides or {}) - set(switches)
    if unknown:
        raise UserError(
            where, f"unknown switch {sorted(unknown)[0]!r}", f"one of {', '.join(switches)}"
        )
    values = {"release": release, "arch": arch} | switches
    try:
        return msgspec.convert(values | (overrides or {}), Kernel).validate(where)
    except msgspec.ValidationError as error:
        raise UserError(where, str(error)) from None
