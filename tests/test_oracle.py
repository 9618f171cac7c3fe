"""The rules about translations, each from both sides: O, S1, S3, S4, S8."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmurace.oracle.rules.o_s4_deadlines import REVOKING
from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from tests.oracle_story import (
    APIC_GPA,
    OTHER,
    PAGE,
    RO,
    RW,
    Story,
    broken,
    change,
    dropped,
    entry,
    play,
)

FREED = r.FrameFreed(3)
IOTLB = ("O", "iommu0", "iotlb")


def unmap(s: Story, *order: str, kind: str = "Munmap", old: int = entry(3)) -> None:
    """cpu0 takes PAGE away and then does these in this order: flush, free, access."""
    s.begin("m/0", "cpu0", kind)
    s.call("m/0", "memory", change(old, 0))
    for what in order:
        if what == "flush":
            s.call("m/0", "iommu0", *dropped("iotlb", "f"))
        elif what == "free":
            s.call("m/0", "memory", FREED)
        else:
            s.begin("d/1", "dev0", "Dma")
            s.go("d/1", "iommu0")
            s.use("d/1", "iommu0", "f", 3)
            s.end("d/1", "dev0", "Dma")
    s.end("m/0", "cpu0", kind)


def cached(pte: int = entry(3)) -> Story:
    """PAGE is mapped and the IOTLB has it as ``f``."""
    s = Story()
    s.map("t/0", pte)
    s.dma("d/0", pte, "f", write=bool(pte & ptes.WRITE))
    return s


def test_flush_before_free_is_right() -> None:
    s = cached()
    unmap(s, "flush", "free")
    assert broken(s) == []


def test_free_before_flush_breaks_o_though_nobody_was_hurt() -> None:
    s = cached()
    unmap(s, "free", "flush")
    assert broken(s) == [IOTLB]


def test_a_report_says_who_what_and_by_when() -> None:
    s = cached()
    unmap(s, "free", "flush")
    (v,) = play(s.steps).violations
    assert (v.mm, v.address, v.frame) == ("mm0", PAGE, 3)
    assert v.filled is not None
    assert v.filled.id.startswith("d/0")
    assert v.pte == "frame 0x3 RW A"
    assert v.change == "frame 0x3 RW A -> none"
    assert v.owed == "Munmap m/0 on cpu0"
    assert v.deadline is not None
    assert v.deadline.what == "frame 0x3 freed"
    assert [event.what for event in v.racing] == ["entry changed", "frame 0x3 freed"]
    assert v.as_dict()["deadline"]["node"] == "memory"
    assert "iotlb of mm0:0x10000" in v.text()


def test_access_after_free_is_s1_and_before_it_is_not() -> None:
    late, early = cached(), cached()
    unmap(late, "free", "access", "flush")
    unmap(early, "access", "flush", "free")
    assert broken(late) == [IOTLB, ("S1", "iommu0", "iotlb")]
    assert broken(early) == []


def test_the_kernels_own_access_needs_no_translation() -> None:
    s = cached()
    unmap(s, "flush", "free")
    s.begin("k/0", "cpu0", "Touch")
    s.call("k/0", "memory", r.Access(3, 0, True, 1))
    assert broken(s) == []


def test_whoever_never_held_it_owes_nothing() -> None:
    s = Story()
    s.map("t/0", entry(3))
    unmap(s, "free")
    assert broken(s) == []


@pytest.mark.parametrize("kind", sorted(REVOKING))
def test_revoking_operations_are_due_at_their_end(kind: str) -> None:
    late, right = cached(), cached()
    unmap(late, kind=kind)
    unmap(right, "flush", kind=kind)
    assert broken(late) == [IOTLB]
    assert broken(right) == []


def test_other_operations_are_not_due_at_their_end_but_owe_nothing_after_it() -> None:
    s = cached()
    unmap(s, kind="MigratePages")
    assert broken(s) == [("S5", "iommu0", "iotlb")]


def test_an_invalidation_nobody_waited_for_does_not_count() -> None:
    """It has the smaller number, but nothing orders it before the free."""
    s = cached()
    s.begin("m/0", "cpu0", "Munmap")
    s.call("m/0", "memory", change(entry(3), 0))
    s.begin("x/0", "cpu1", "Touch")
    s.go("x/0", "iommu0", *dropped("iotlb", "f"))
    s.call("m/0", "memory", FREED)
    s.end("m/0", "cpu0", "Munmap")
    assert broken(s) == [IOTLB]


def test_an_eviction_that_the_flush_followed_counts() -> None:
    s = cached()
    s.begin("x/0", "cpu1", "Touch")
    s.go("x/0", "iommu0", r.Evict("iotlb", "f"))
    s.begin("m/0", "cpu0", "Munmap")
    s.call("m/0", "memory", change(entry(3), 0))
    s.call("m/0", "iommu0")
    s.call("m/0", "memory", FREED)
    assert broken(s) == []


def protect(s: Story, old: int, new: int, *, through_none: bool) -> None:
    """mprotect without any flush."""
    s.begin("m/0", "cpu0", "Mprotect")
    if through_none:
        s.call("m/0", "memory", change(old, 0))
        s.call("m/0", "memory", change(0, new))
    else:
        s.call("m/0", "memory", change(old, new))
    s.end("m/0", "cpu0", "Mprotect")


@pytest.mark.parametrize("through_none", [True, False])
@pytest.mark.parametrize(
    ("held", "old", "new", "breach"),
    [(RW, RW, RO, True), (RO, RW, RO, False), (RO, RO, RW, False), (RW, RW, RW, False)],
)
def test_only_what_exceeds_the_new_entry_is_owed(
    through_none: bool, held: int, old: int, new: int, breach: bool
) -> None:
    s = Story()
    s.map("t/0", entry(3, held))
    s.dma("d/0", entry(3, held), "f", write=False)
    protect(s, entry(3, old), entry(3, new), through_none=through_none)
    assert broken(s) == ([IOTLB] if breach else [])


def cow(s: Story, *, flush: bool, op: str = "c/0") -> None:
    s.begin("c/0", "cpu0", "Touch")
    s.call("c/0", "memory", change(entry(3, RO), 0))
    if flush:
        s.call("c/0", "iommu0", *dropped("iotlb", "f"))
    if op != "c/0":
        s.begin(op, "cpu1", "Touch")
    s.call(op, "memory", change(0, entry(4)))
    s.end("c/0", "cpu0", "Touch")


def test_cow_is_due_when_the_new_entry_is_published() -> None:
    late, right, by_another = (cached(entry(3, RO)) for _ in range(3))
    cow(late, flush=False)
    cow(right, flush=True)
    cow(by_another, flush=False, op="c2/0")
    assert broken(late) == [IOTLB]
    assert broken(right) == []
    published_nothing = [("S5", "iommu0", "iotlb")]
    assert broken(by_another) == published_nothing


def test_replacing_a_frame_in_one_store_is_due_at_once() -> None:
    s = cached()
    s.begin("c/0", "cpu0", "Touch")
    s.call("c/0", "memory", change(entry(3), entry(4)))
    assert broken(s) == [IOTLB]


def migrate(s: Story, *order: str, apic: bool = False) -> None:
    s.begin("g/0", "cpu0", "MigratePages")
    s.call("g/0", "memory", change(entry(3), 0))
    s.call("g/0", "memory", change(0, ptes.make(3, ptes.MIGRATION)))
    for what in order:
        if what == "flush":
            s.call("g/0", "iommu0", *dropped("iotlb", "f"))
        else:
            s.call("g/0", "memory", r.FrameCopied(3, 4))
    s.call("g/0", "memory", change(ptes.make(3, ptes.MIGRATION), entry(4)))
    s.end("g/0", "cpu0", "MigratePages")


def test_migration_is_due_when_the_copy_starts() -> None:
    late, right = cached(), cached()
    migrate(late, "copy", "flush")
    migrate(right, "flush", "copy")
    assert broken(late) == [IOTLB]
    assert broken(right) == []


def test_a_migration_that_gave_up_took_nothing_away() -> None:
    s = cached()
    s.begin("g/0", "cpu0", "MigratePages")
    s.call("g/0", "memory", change(entry(3), 0))
    s.call("g/0", "memory", change(0, ptes.make(3, ptes.MIGRATION)))
    s.call("g/0", "memory", change(ptes.make(3, ptes.MIGRATION), entry(3)))
    s.end("g/0", "cpu0", "MigratePages")
    assert broken(s) == []


def raced_walk(install: bool) -> Story:
    """The walk's load comes before the munmap, its result after it."""
    s = Story()
    s.map("t/0", entry(3))
    s.begin("d/0", "dev0", "Dma")
    s.go("d/0", "iommu0")
    read = s.go("d/0", "memory", r.PteRead("mm0", PAGE, entry(3)))
    unmap(s, "free")
    s.go("d/0", "iommu0")
    s.also(
        r.Fill("iotlb", "mm0", PAGE, entry(3), "f", read)
        if install
        else r.WalkDiscarded("iotlb", "mm0", PAGE)
    )
    return s


def test_a_walk_that_raced_must_install_nothing() -> None:
    assert broken(raced_walk(install=True)) == [IOTLB]
    assert broken(raced_walk(install=False)) == []
    (v,) = play(raced_walk(install=True).steps).violations
    assert [event.what for event in v.racing] == ["entry read", "entry changed"]


def test_the_zero_page_is_never_freed_but_cow_from_it_is_due() -> None:
    zero = entry(0, RO | ptes.SPECIAL)
    s = cached(zero)
    s.begin("c/0", "cpu0", "Touch")
    s.call("c/0", "memory", change(zero, 0))
    s.call("c/0", "memory", r.FrameFreed(0))
    assert broken(s) == []
    s.call("c/0", "memory", change(0, entry(4)))
    assert broken(s) == [IOTLB]


# ---- S3 --------------------------------------------------------------------------------------


def access_after_return(*, written: bool, remap: int) -> Story:
    s = cached()
    protect(s, entry(3), entry(3, RO), through_none=False)
    s.begin("t/1", "cpu0", "Touch")
    s.call("t/1", "memory", change(entry(3, RO), remap))
    s.end("t/1", "cpu0", "Touch")
    s.begin("d/1", "dev0", "Dma")
    s.go("d/1", "iommu0")
    s.use("d/1", "iommu0", "f", 3, write=written)
    return s


def test_a_write_after_mprotect_returned_is_s3_and_a_read_is_not() -> None:
    ordered = access_after_return(written=True, remap=entry(3, RO))
    assert ("S3", "iommu0", "iotlb") in broken(ordered)
    reads = access_after_return(written=False, remap=entry(3, RO))
    assert broken(reads) == [IOTLB]
    granted = access_after_return(written=True, remap=entry(3))
    assert broken(granted) == [IOTLB]


def test_a_write_before_mprotect_returned_is_legal() -> None:
    s = cached()
    s.begin("m/0", "cpu0", "Mprotect")
    s.call("m/0", "memory", change(entry(3), entry(3, RO)))
    s.begin("d/1", "dev0", "Dma")
    s.go("d/1", "iommu0")
    s.use("d/1", "iommu0", "f", 3)
    s.call("m/0", "iommu0", *dropped("iotlb", "f"))
    s.end("m/0", "cpu0", "Mprotect")
    assert broken(s) == []


# ---- S4: shadow MMUs -----------------------------------------------------------------------------


def shadowed() -> Story:
    """vcpu0 has an sPTE ``s`` and a guest TLB entry ``g`` of PAGE."""
    s = Story()
    s.map("t/0", entry(3))
    s.begin("v/0", "vcpu0", "GuestTouch", 0)
    read = s.call("v/0", "memory", r.PteRead("mm0", PAGE, entry(3)))
    s.call("v/0", "kvm0", r.Fill("spte", "kvm0", PAGE, entry(3), "s", read))
    s.also(r.Fill("gtlb", "kvm0", 0, entry(3), "g", "s"))
    s.end("v/0", "vcpu0", "GuestTouch")
    return s


def bracket(s: Story, begin: bool, seq: int = 1) -> None:
    mark = r.Invalidation(begin, seq, int(begin), PAGE, PAGE + 4096)
    s.call("m/0", "kvm0", mark)


def notify(
    s: Story, *order: str, kind: str = "MigratePages", old: int = entry(3), new: int = 0
) -> None:
    """A bracket around the change of an operation; ``order``: zap, flush, change, end."""
    s.begin("m/0", "cpu0", kind)
    bracket(s, True, 0)
    for what in order:
        if what == "zap":
            s.call("m/0", "kvm0", *dropped("spte", "s", "kvm0"))
        elif what == "flush":
            s.call("m/0", "vcpu0", *dropped("gtlb", "g", "kvm0"))
        elif what == "change":
            s.call("m/0", "memory", change(old, new))
        else:
            bracket(s, False)


def test_shadow_entries_are_due_at_the_end_of_the_bracket() -> None:
    right, kept, unflushed = shadowed(), shadowed(), shadowed()
    notify(right, "zap", "flush", "change", "end")
    notify(kept, "flush", "change", "end")
    notify(unflushed, "zap", "change", "end")
    assert broken(right) == []
    assert broken(kept) == [("S4", "kvm0", "spte")]
    assert broken(unflushed) == [("S4", "vcpu0", "gtlb")]


def test_a_writable_shadow_entry_lets_its_holder_store_unheard() -> None:
    """No store through it sets dirty in the entry, so it must go when that is made clean."""
    right, kept, dirty = shadowed(), shadowed(), entry(3, RW | ptes.DIRTY)
    for s, order in ((right, ("zap", "flush")), (kept, ("flush",))):
        notify(s, *order, "change", "end", kind="MadviseFree", old=dirty, new=entry(3))
    assert broken(right) == []
    assert broken(kept) == [("S4", "kvm0", "spte")]


def test_a_bracket_elsewhere_or_before_the_change_is_no_deadline() -> None:
    s = shadowed()
    s.begin("m/0", "cpu0", "MigratePages")
    s.call("m/0", "kvm0", r.Invalidation(True, 0, 1, OTHER, OTHER + 4096))
    s.call("m/0", "memory", change(entry(3), 0))
    s.call("m/0", "kvm0", r.Invalidation(False, 1, 0, OTHER, OTHER + 4096))
    assert broken(s) == []


def test_the_host_tlb_of_a_vcpu_is_no_shadow() -> None:
    s = Story()
    s.map("t/0", entry(3))
    s.begin("v/0", "vcpu0", "Touch")
    read = s.call("v/0", "memory", r.PteRead("mm0", PAGE, entry(3)))
    s.also(r.Fill("tlb", "mm0", PAGE, entry(3), "h", read))
    s.end("v/0", "vcpu0", "Touch")
    notify(s, "change", "end")
    assert broken(s) == []


def test_a_guest_tlb_entry_from_a_zapped_spte_is_stale_when_it_is_filled() -> None:
    s = Story()
    s.map("t/0", entry(3))
    s.begin("v/0", "vcpu0", "GuestTouch", 0)
    read = s.call("v/0", "memory", r.PteRead("mm0", PAGE, entry(3)))
    s.call("v/0", "kvm0", r.Fill("spte", "kvm0", PAGE, entry(3), "s", read))
    s.go("v/0", "kvm0")
    notify(s, "zap", "change", "end")
    s.go("v/0", "vcpu0", r.Fill("gtlb", "kvm0", 0, entry(3), "g", "s"))
    assert broken(s) == [("S4", "vcpu0", "gtlb")]


RELOAD = r.RequestPosted("APIC_PAGE_RELOAD", True)


def apic(*order: str) -> Story:
    """vcpu0 loads the page before it moves; then these: write, enter, change, request, end."""
    s = Story()
    s.map("t/0", entry(3))
    s.begin("m/0", "cpu0", "MigratePages")
    bracket(s, True, 0)
    s.begin("v/0", "vcpu0", "GuestApic", APIC_GPA)
    read = s.call("v/0", "memory", r.PteRead("mm0", PAGE, entry(3)))
    steps: dict[str, Callable[[], object]] = {
        "write": lambda: s.also(r.Fill("vmcs", "kvm0", APIC_GPA, entry(3), "a", read)),
        "enter": lambda: s.go("v/0", "vcpu0", r.GuestEnter("a")),
        "change": lambda: s.call("m/0", "memory", change(entry(3), 0)),
        "request": lambda: s.call("m/0", "vcpu0", RELOAD),
        "replace": lambda: s.go("v/0", "vcpu0", r.Evict("vmcs", "a"), r.GuestEnter("")),
        "end": lambda: bracket(s, False),
    }
    for what in order:
        steps[what]()
    return s


VMCS = ("S4", "vcpu0", "vmcs")


@pytest.mark.parametrize(
    ("order", "breach"),
    [
        ("write enter change end", True),
        ("write change end", False),
        ("write change end enter", True),
        ("write enter change request end", False),
        ("write change request end replace", False),
        ("write enter request change end", False),
        ("write enter change end request", True),
        ("write enter replace change end", True),  # the replacement is known to nobody
    ],
)
def test_a_vmcs_value_counts_once_it_is_used(order: str, breach: bool) -> None:
    assert broken(apic(*order.split())) == ([VMCS] if breach else [])


# ---- S8 ----------------------------------------------------------------------------------------


def test_a_fill_from_no_entry_of_its_page_is_s8() -> None:
    s = cached()
    s.begin("d/1", "dev0", "Dma")
    s.go("d/1", "iommu0", r.Fill("iotlb", "mm0", OTHER, entry(9), "x", "d/1.7"))
    read = s.call("d/1", "memory", r.PteRead("mm0", PAGE, entry(3)))
    s.also(r.Fill("iotlb", "mm0", OTHER, entry(3), "y", read))
    assert broken(s) == [("S8", "iommu0", "iotlb")] * 2
