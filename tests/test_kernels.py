"""Kernels as data: what each release does, against a table that was made from kernel source.

The table's facts come from the kernel's own history: the commit that is named beside each switch
(``nodes/kernel/variant``), its stable backports, and source of the file at that time.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter

import msgspec
import pytest

from mmurace.nodes.kernel.variant import MACHINES, preset
from mmurace.nodes.kernel.variant.preset import origin
from mmurace.nodes.kernel.variant.release import (
    LONG_TERM,
    MAINLINE,
    NEWEST,
    OLDEST,
    Release,
    parse,
)
from mmurace.nodes.kernel.variant.switch import (
    ALWAYS,
    Field,
    Since,
    Switches,
    Unreleased,
    Value,
    fields,
    fields_of,
    owners,
)
from mmurace.protocol.errors import UserError
from mmurace.protocol.messages import program as op
from mmurace.protocol.records import NotifierCall
from mmurace.report.facts import kernel_text
from mmurace.report.kernels import profiles, table_dict
from tests.file_programs import FILE, file_programs, file_world
from tests.observed import observe
from tests.worlds import small_programs, small_world

# ---- what releases do ------------------------------------------------------------------------

RELEASES = ("v4.19", "v5.4", "v5.10", "v5.15", "v6.1", "v6.6", "v6.6.5")

ON_X86: dict[str, tuple[Value, ...]] = {
    # mm/rmap.c: 369ea8242c0f (v4.13)
    "rmap_notifies": ("range",) * 7,
    # mm/mmu_notifier.c: 0f0a327fa12c (v3.19), ec8832d007cb (v6.6)
    "end_calls_ir": (True, True, True, True, True, False, False),
    # include/asm-generic/tlb.h: 34ee645e83b6 (v3.19), 6bbd42e2df8f (v6.6)
    "gather_calls_ir": (True, True, True, True, True, False, False),
    # include/linux/mmu_notifier.h: 34ee645e83b6 (v3.19), ec8832d007cb (v6.6)
    "clear_flush_calls_ir": (True, True, True, True, True, False, False),
    # mm/memory.c: 4645b9fe84bf (v4.15), ec8832d007cb (v6.6)
    "cow_range_only_end": (True, True, True, True, True, False, False),
    # mm/migrate.c: 7e12beb8ca2a (v6.3)
    "migration_batches": (False, False, False, False, False, True, True),
    # mm/rmap.c: 3ea277194daa (v4.13), 5ee2fa2f0636 (v5.17)
    "batched_marker": ("bool", "bool", "bool", "bool", "generation", "generation", "generation"),
    # mm/mmu_gather.c: 99baac21e458 (v4.13), 7a30df49f63a (v5.2), 6bbd42e2df8f (v6.6)
    "nested_encoding": (
        "exact", "neg1_neg1", "neg1_neg1", "neg1_neg1", "neg1_neg1", "zero_neg1", "zero_neg1",
    ),
    # mm/memory.c: 5df397dec7c4 (v6.2)
    "zap_delays_rmap": (False, False, False, False, False, True, True),
    # mm/memory.c: 2c8659951654 (v5.18)
    "unmap_mapping_lock": (
        "exclusive", "exclusive", "exclusive", "exclusive", "shared", "shared", "shared",
    ),
    # mm/mmap.c: dd2283f2605e (v4.20)
    "munmap_downgrades": (False, True, True, True, True, True, True),
    # mm/mprotect.c: 4a18419f71cd (v5.19)
    "change_protection_gathers": (False, False, False, False, True, True, True),
    # mm/mremap.c: eb66ae030829 (v4.19); 2c91bd4a4e2e (v5.0); 97113eb39fa7 (v5.14)
    "mremap_cpu_flush": ("under_both_ptl",) * 7,
    "have_move_pmd": (False, True, True, True, True, True, True),
    "move_pmd_rmap_locks": (
        "if_needed", "if_needed", "if_needed", "always", "always", "always", "always",
    ),
    # arch/x86/include/asm/tlbflush.h: 6bbd42e2df8f (v6.6)
    "arch_secondary_flush": (False, False, False, False, False, True, True),
    "flush_mm_notifies": (False, False, False, False, False, True, True),
    # mm/rmap.c: 72b252aed506 (v4.3)
    "batch_mode": ("ipi_deferred",) * 7,
    # virt/kvm/kvm_main.c, arch/x86/kvm: b1394e745b94 (v4.15), e649b3f0188f (v5.8), 878940b33d76
    # (v6.5); 4a42d848db95 (v5.12); 071064f14d87 and 52ac8b358b0c (v5.15)
    "apic_reload": (
        "range_start", "range_start", "invalidate_range", "invalidate_range", "invalidate_range",
        "zap_retries", "zap_retries",
    ),
    "kvm_retry_hva": (False, False, False, True, True, True, True),
    "kvm_lockless_skip": (False, False, False, True, True, True, True),
    "kvm_memslots_wait": (False, False, False, True, True, True, True),
    # drivers/iommu/intel-svm.c, intel/svm.c: 2d6ffc63f124 (v5.11), e7ad6c2a4b1a (v6.7, v6.6.5)
    "sva_decoder": (
        "unaligned", "unaligned", "unaligned", "round_up_overflow", "round_up_overflow",
        "round_up_overflow", "exact",
    ),
}  # fmt: skip

ON_ARM64: dict[str, tuple[Value, ...]] = {
    # arch/arm64/include/asm/tlbflush.h: 6bbd42e2df8f (v6.6), f7edb07ad7c6 (v6.14, v6.6.88)
    "arm64_range_start": ("kept", "kept", "kept", "kept", "kept", "advanced", "advanced"),
    "secondary_before_dsb": ("no", "no", "no", "no", "no", "page", "page"),
    # mm/rmap.c and arch/arm64: 43b3dfdd0455 (v6.6)
    "batch_mode": ("none", "none", "none", "none", "none", "tlbi_nosync", "tlbi_nosync"),
    "batched_pending_flush": ("flush_tlb_mm",) * 5 + ("dsb",) * 2,
    # arch/arm64/Kconfig: 45544eee9606 (v5.11)
    "have_move_pmd": (False, False, False, True, True, True, True),
    # arm-smmu-v3-sva.c: 51d113c3be09 (v5.13), 95d4782c34a6 (v5.18), d5afb4b47e13 (v6.6)
    "sva_decoder": (
        "size0_noop", "size0_noop", "size0_noop", "size0_noop", "as_given", "size0_all",
        "size0_all",
    ),
    "btm_skips_cmd": (True,) * 7,
    # arch/arm64/kvm/mmu.c: user_mem_abort asks mmu_invalidate_retry, with no address
    "kvm_retry_hva": (False,) * 7,
    "upgrade_needs_flush": (True,) * 7,
}  # fmt: skip


def of(machine: str, release: str, switch: str, *drivers: str) -> Value:
    """What a release does."""
    return preset(release, machine, profiles=drivers).switches()[switch]


@pytest.mark.parametrize("switch", ON_X86)
def test_what_releases_do_on_x86(switch: str) -> None:
    assert tuple(of("x86", release, switch) for release in RELEASES) == ON_X86[switch]


@pytest.mark.parametrize("switch", ON_ARM64)
def test_what_releases_do_on_arm64(switch: str) -> None:
    assert tuple(of("arm64", release, switch) for release in RELEASES) == ON_ARM64[switch]


POINTS = [
    # CVE-2018-18281
    ("x86", "mremap_cpu_flush", "v4.14.77", "dirty_under_old_ptl", "v4.14.78", "under_both_ptl"),
    ("x86", "mremap_cpu_flush", "v4.18.15", "dirty_under_old_ptl", "v4.18.16", "under_both_ptl"),
    # e649b3f0188f in stable
    ("x86", "apic_reload", "v5.4.46", "range_start", "v5.4.47", "invalidate_range"),
    ("x86", "apic_reload", "v5.6.18", "range_start", "v5.6.19", "invalidate_range"),
    ("x86", "apic_reload", "v5.7.2", "range_start", "v5.7.3", "invalidate_range"),
    # 2d6ffc63f124 and e7ad6c2a4b1a in stable
    ("x86", "sva_decoder", "v5.4.90", "unaligned", "v5.4.91", "round_up_overflow"),
    ("x86", "sva_decoder", "v6.6.4", "round_up_overflow", "v6.6.5", "exact"),
    # 95d4782c34a6 and d5afb4b47e13 in stable
    ("arm64", "sva_decoder", "v5.17.6", "size0_noop", "v5.17.7", "as_given"),
    ("arm64", "sva_decoder", "v5.15.38", "size0_noop", "v5.15.39", "as_given"),
    ("arm64", "sva_decoder", "v5.15.133", "as_given", "v5.15.134", "size0_all"),
    ("arm64", "sva_decoder", "v6.1.55", "as_given", "v6.1.56", "size0_all"),
    ("arm64", "sva_decoder", "v6.5.5", "as_given", "v6.5.6", "size0_all"),
    # f7edb07ad7c6 in stable
    ("arm64", "arm64_range_start", "v6.6.87", "advanced", "v6.6.88", "kept"),
    # 97113eb39fa7 in stable
    ("x86", "move_pmd_rmap_locks", "v5.13.2", "if_needed", "v5.13.3", "always"),
    ("x86", "move_pmd_rmap_locks", "v5.10.136", "if_needed", "v5.10.137", "always"),
    ("x86", "move_pmd_rmap_locks", "v5.4.210", "if_needed", "v5.4.211", "always"),
    # 7a30df49f63a and 912efa17e512 in stable
    ("x86", "nested_encoding", "v5.1.12", "exact", "v5.1.13", "neg1_neg1"),
    ("x86", "clear_refs_flush", "v5.10.19", "nested_gather", "v5.10.20", "flush_tlb_mm"),
]


@pytest.mark.parametrize(("machine", "switch", "last", "before", "first", "after"), POINTS)
def test_a_fix_reaches_a_point_release(
    machine: str, switch: str, last: str, before: Value, first: str, after: Value
) -> None:
    assert of(machine, last, switch) == before
    assert of(machine, first, switch) == after


def test_what_came_and_went_between_the_long_term_releases() -> None:
    old = [("v4.9", "page_after_ptl"), ("v4.11", "page_under_ptl"), ("v4.13", "range")]
    assert [of("x86", release, "rmap_notifies") for release, _ in old] == [v for _, v in old]
    hooks = [("v4.12", "invalidate_page"), ("v4.13", "no_hook"), ("v4.14", "no_hook"),
             ("v4.15", "range_start"), ("v5.7", "range_start")]  # fmt: skip
    assert [of("x86", release, "apic_reload") for release, _ in hooks] == [v for _, v in hooks]
    # mm_context_remove_copro: the order was wrong in v4.18 alone.
    orders = [of("ppc", release, "copro_removal") for release in ("v4.17", "v4.18", "v4.19")]
    assert orders == ["flush_then_count", "count_then_flush", "flush_then_count"]


@pytest.mark.parametrize("release", MAINLINE, ids=str)
def test_a_driver_of_amd_flushes_a_page_or_everything(release: Release) -> None:
    """To v6.6, with which it went; the one that came with v6.10 flushes ranges."""
    wanted = "page_or_all" if release < Release(6, 10) else "exact"
    assert of("x86", str(release), "sva_decoder", "amd-iommu") == wanted


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("release", [*map(str, MAINLINE), *LONG_TERM, "v4.19.300", "v6.6.88"])
def test_every_release_has_a_preset_without_contradiction(release: str, machine: str) -> None:
    assert preset(release, machine).release == release


# ---- which releases there are ----------------------------------------------------------------

UNKNOWN = [
    ("v7.3", "unknown kernel 'v7.3': newer than v7.2"),
    ("v8.0", "unknown kernel 'v8.0': newer than v7.2"),
    ("v7.3.1", "unknown kernel 'v7.3.1': newer than v7.2"),
    ("v6.20", "unknown kernel 'v6.20'"),
    ("v4.8", "unknown kernel 'v4.8'"),
    ("v4.21", "unknown kernel 'v4.21'"),
    ("v5.20", "unknown kernel 'v5.20'"),
    ("6.6", "unknown kernel '6.6'"),
    ("v6.6-rc1", "unknown kernel 'v6.6-rc1'"),
]


@pytest.mark.parametrize(("name", "said"), UNKNOWN)
def test_what_is_not_known_is_refused_by_name(name: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as told:
        preset(name)
    assert str(OLDEST) in str(told.value)


def test_a_driver_that_a_machine_cannot_have_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"no driver 'vt-d' on arm64 .*smmu-v3"):
        preset("v6.6", "arm64", profiles=["vt-d"])
    with pytest.raises(UserError, match="vt-d and amd-iommu are both drivers of sva"):
        preset("v6.6", profiles=["amd-iommu", "vt-d"])


def test_profiles_are_shown_and_decide_what_a_kernel_does() -> None:
    usual, other = preset("v5.10"), preset("v5.10", profiles=["amd-iommu"])
    said = table_dict([other])
    assert said["drivers"] == {"v5.10 x86": ["dmirror", "amd-iommu", "kvm-x86"]}
    assert said["profiles"]["x86"] == {
        "gpu": ("dmirror", "amdgpu", "nouveau"), "sva": ("vt-d", "amd-iommu"), "kvm": ("kvm-x86",)
    }  # fmt: skip
    assert (kernel_text(usual), kernel_text(other)) == ("v5.10 x86", "v5.10 x86 amd-iommu")
    assert usual.switches() != other.switches()
    assert [chosen for _, _, chosen in profiles([usual, other])] == [
        ["dmirror"] * 2, ["vt-d", "amd-iommu"], ["kvm-x86"] * 2,
    ]  # fmt: skip


# ---- the data itself -------------------------------------------------------------------------

ALL = [pytest.param(field, id=field.name) for field in fields()]


def sinces(field: Field) -> list[Since]:
    """What releases brought."""
    return [one for one in field.switch.history if isinstance(one, Since)]


@pytest.mark.parametrize("field", ALL)
def test_a_history_is_sorted(field: Field) -> None:
    for machine in MACHINES:
        for drivers in _profiles(machine):
            on = frozenset((machine, *drivers))
            here = [one.release for one in sinces(field) if not one.on or one.on & on]
            assert here == sorted(here), (machine, drivers)
    for one in sinces(field):
        assert all(back < one.release for back in one.backports)
        assert all(back.point for back in one.backports)


def _profiles(machine: str) -> list[tuple[str, ...]]:
    return [(p,) for owner in owners() for p in owner.PROFILES.get(machine, ())]


@pytest.mark.parametrize("field", ALL)
def test_every_value_has_an_origin_and_every_origin_a_value(field: Field) -> None:
    assert {one.value for one in field.switch.history} == set(field.values)
    for one in field.switch.history:
        assert not isinstance(one, Unreleased) or one.why, "why is it there, then?"


@pytest.mark.parametrize("field", ALL)
def test_what_came_after_the_oldest_release_has_a_commit_or_says_why_not(field: Field) -> None:
    for one in sinces(field):
        if one.commit:
            assert re.fullmatch(r"[0-9a-f]{12}", one.commit)
        elif one.release > OLDEST:
            assert re.search(r"No commit|looked up|not last", docstring(field)), field.name


def docstring(field: Field) -> str:
    """What stands under a switch in its owner's source."""
    source = inspect.getsource(field.owner)
    found = re.search(rf"\n    {field.name}: .*?\n    \"\"\"(.*?)\"\"\"", source, re.DOTALL)
    assert found is not None, field.name
    return found[1]


@pytest.mark.parametrize("field", ALL)
def test_a_switch_names_a_file_and_a_function(field: Field) -> None:
    assert "/" in field.switch.file
    assert field.switch.function


def test_a_release_names_what_brought_its_values() -> None:
    kernel = preset("v6.6.5")
    told = {field.name: str(origin(field, kernel).release) for field in fields()}
    assert told["sva_decoder"] == "v6.7"
    assert told["migration_batches"] == "v6.3"
    assert told["kvm_seq_sample"] == ALWAYS


def test_no_two_owners_declare_the_same_switch() -> None:
    names = [field.name for owner in owners() for field in fields_of(owner)]
    assert len(names) == len(set(names))
    assert all(issubclass(owner, Switches) for owner in owners())


def test_the_newest_release_is_the_last_of_the_table() -> None:
    assert max(MAINLINE) == NEWEST == parse(str(NEWEST)) == Release(7, 2)


# ---- kernels that call invalidate_page -------------------------------------------------------

SOUND: dict[str, object] = {"sva_decoder": "exact", "nested_encoding": "exact"}
"""Without what those releases do wrong and is not about ``invalidate_page``."""


@pytest.mark.parametrize("release", ["v4.9", "v4.10", "v4.11", "v4.12"])
def test_an_old_kernel_calls_invalidate_page_and_is_right(release: str) -> None:
    told = set()
    for seed in range(20):
        ran = observe(small_world(release, "x86", **SOUND), small_programs(), seed)
        assert not ran.violations, [v.text() for v in ran.violations]
        records = (record for step in ran.steps for record in step.records)
        told |= {(r.callback, r.subscriber) for r in records if isinstance(r, NotifierCall)}
    assert {("invalidate_page", "kvm0"), ("invalidate_page", "iommu0")} <= told


MOVES: dict[str, object] = {
    "mremap_cpu_flush": "under_both_ptl", "mremap_sec_flush": "beside_cpu_flush",
    "batched_marker": "bool", "refetch_on_perm_fault": True,
}  # fmt: skip
"""Cures of what their moves and their batches are known for, and of what no flush repairs."""


@pytest.mark.parametrize("arch", ["x86", "arm64"])
@pytest.mark.parametrize("release", ["v4.9", "v4.11"])
def test_so_it_is_when_pages_of_files_are_reclaimed_and_written(release: str, arch: str) -> None:
    daemons = (op.Kswapd(4), op.Writeback(FILE), op.Kswapd(4))
    told = Counter[str]()
    for seed in range(6):
        here = file_world(release, arch, SOUND | MOVES, frames=20)
        ran = observe(here, file_programs(seed, 30, daemons, (1, 2, 4)), seed)
        assert not ran.violations, [v.text() for v in ran.violations]
        for record in (record for step in ran.steps for record in step.records):
            if isinstance(record, NotifierCall) and record.callback == "invalidate_page":
                told[record.subscriber] += 1
    assert told["kvm0"] > 10
    assert told["iommu0"] > 10


def test_without_the_hook_the_vmcs_keeps_the_old_frame() -> None:
    """``no_hook``: invalidate_page is gone, and nobody asks the vCPU to look again."""
    found = set()
    for seed in range(20):
        ran = observe(small_world("v4.14", "x86", **SOUND), small_programs(), seed)
        found |= {(v.agent, v.cache) for v in ran.violations}
    assert found == {("vcpu0", "vmcs")}


def test_a_reload_that_spins_is_as_right_as_one_that_is_posted_again() -> None:
    for seed in range(20):
        ran = observe(small_world("v6.6.5", apic_reload="zap_spins"), small_programs(), seed)
        assert not ran.violations, [v.text() for v in ran.violations]


def test_a_driver_that_flushes_a_range_in_part_is_found_and_another_is_not() -> None:
    """VT-d up to v5.10 (2d6ffc63f124); AMD's driver of the same release is right."""
    found = set()
    for seed in range(20):
        world = small_world("v5.8")
        found |= {(v.agent, v.cache) for v in observe(world, small_programs(), seed).violations}
        kernel = preset("v5.8", profiles=["amd-iommu"])
        amd = msgspec.structs.replace(world, kernel=kernel)
        assert not observe(amd, small_programs(), seed).violations
    assert found == {("iommu0", "iotlb")}


def test_a_callback_that_nobody_calls_is_refused() -> None:
    with pytest.raises(UserError, match="contradicts apic_reload = invalidate_page"):
        preset("v4.14", overrides={"apic_reload": "invalidate_page"})
    with pytest.raises(UserError, match="contradicts apic_reload = invalidate_range"):
        preset("v6.6", overrides={"apic_reload": "invalidate_range"})
