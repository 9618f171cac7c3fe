"""IOMMU drivers with shared virtual addressing, and their units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from mmurace.nodes.kernel.variant.switch import Switches, declare, since, switch, unreleased
from mmurace.nodes.secondaries.decode import Decoder

if TYPE_CHECKING:
    from mmurace.nodes.kernel.variant.kernel import Kernel


@declare
class SvaSwitches(Switches, frozen=True):
    """IOMMU drivers with shared virtual addressing, and their units."""

    OWNER: ClassVar[str] = "sva"
    PROFILES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "x86": ("vt-d", "amd-iommu"),
        "arm64": ("smmu-v3",),
    }

    sva_decoder: Decoder = switch(
        "drivers/iommu/",
        "arch_invalidate_secondary_tlbs",
        since("exact"),
        since("unaligned", "v4.4", "2f26e0a9c986", on="vt-d"),
        since("round_up_overflow", "v5.11", "2d6ffc63f124", on="vt-d", backports="v5.4.91 v5.10.9"),
        since("exact", "v6.7", "e7ad6c2a4b1a", on="vt-d", backports="v6.6.5"),
        since("page_or_all", "v3.19", "", on="amd-iommu"),
        since("size0_noop", on="smmu-v3"),
        since("size0_noop", "v5.13", "51d113c3be09", on="smmu-v3"),
        since("as_given", "v5.18", "95d4782c34a6", on="smmu-v3", backports="v5.15.39 v5.17.7"),
        since(
            "size0_all",
            "v6.6",
            "d5afb4b47e13",
            on="smmu-v3",
            backports="v5.15.134 v6.1.56 v6.5.6",
        ),
        since("exact", "v6.10", on="amd-iommu"),
        since("no_granule", "v6.10", on="smmu-v3"),
        since("size0_all", "v6.15", "12f78021973a", on="smmu-v3", backports="v6.12.107"),
        unreleased("per_page_loop", "a driver of an IOMMU that does as that of an OpenCAPI link"),
        unreleased("off_by_one", "an arch/riscv patch in review in 2025"),
    )
    """How an SVA driver reads the range that it is given (``nodes.secondaries.decode``).

    vt-d: ``intel_invalidate_range`` and ``intel_flush_svm_range_dev`` (drivers/iommu/intel-svm.c,
    from v5.9 intel/svm.c).  amd-iommu: ``mn_invalidate_range`` of AMD IOMMUv2, whose first release
    and commit were looked up in vain.  smmu-v3: ``arm_smmu_mm_invalidate_range``
    (arm-smmu-v3-sva.c); before v5.13 the driver flushes no IOTLB (SVA is for units with BTM only,
    and there is none before v5.11): the oldest that does stands for them.  In v6.6 two commits
    meet, d5afb4b47e13 and 38b14e2e3de9.  v6.10 to v6.14 shift a range by a granule that is 0
    (12f78021973a says so; a v6.12.107 has the cure, which need not be the first).  AMD has shared
    addressing again from v6.10 on (``sva_arch_invalidate_secondary_tlbs``, amd/pasid.c), as read in
    v6.12; of v6.7 to v6.9 the value stands for nothing.  The announcements of the point releases
    have each of these commits by its title; of v5.17.7 there was only the list of its commits."""
    range_inv: bool = switch(
        "drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.h",
        "ARM_SMMU_FEAT_RANGE_INV",
        since(True),
        unreleased(False, "the machine may have it: an SMMUv3 before v3.2"),
        hardware=True,
    )
    """The unit takes commands of ranges; else one for each page (``__arm_smmu_tlb_inv_range``)."""
    sec_inv_scope: Literal["all_levels", "leaf_only"] = switch(
        "drivers/iommu/",
        "invalidate_range",
        since("all_levels"),
        unreleased("leaf_only", "to see what the tables' entries are for"),
    )
    """What an SVA driver's command reaches: entries of every level (all releases), or leaves."""
    ats_order: Literal["iotlb_first", "atc_first"] = switch(
        "drivers/iommu/",
        "invalidate_range",
        since("iotlb_first"),
        unreleased("atc_first", "the wrong order"),
    )
    """What an SVA driver invalidates first: the unit's IOTLB, or the TLBs of its devices."""
    ats_wait: bool = switch(
        "drivers/iommu/",
        "invalidate_range",
        since(True),
        unreleased(False, "a driver that does not wait for its devices"),
    )
    """It waits until the devices have said that they are done."""
    ats_gives_up: bool = switch(
        "drivers/iommu/",
        "qi_submit_sync",
        since(True),
        unreleased(False, "VT-d (to v6.8, 4fc82cd907ac) asks again what timed out"),
    )
    """An ATC invalidation that a device does not answer completes by a time-out, and the driver
    leaves it at that (``arm_smmu_cmdq_skip_err``).  ``qi_check_fault`` of VT-d begins again after
    it; v6.9 looks first whether hot-plug knows that the device is gone.  Presets of vt-d have the
    first value all the same: its unit and hot-plug are assumed to be in time."""
    btm: bool = switch(
        "drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.h",
        "ARM_SMMU_FEAT_BTM",
        since(False),
        unreleased(True, "the machine may have it: no mainline driver of these releases does"),
        hardware=True,
    )
    """The IOMMU takes part in broadcast TLB maintenance."""
    btm_skips_cmd: bool = switch(
        "drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3-sva.c",
        "arm_smmu_mm_arch_invalidate_secondary_tlbs",
        since(False),
        since(True, on="smmu-v3"),
        since(True, "v5.13", "51d113c3be09", on="smmu-v3"),
    )
    """Its driver queues no command for what it sees broadcast (``ARM_SMMU_FEAT_BTM``; up to v5.12
    it queues none at all)."""

    def contradictions(self, kernel: Kernel) -> Iterator[tuple[str, str]]:
        """A unit hears broadcasts only where there are some, and on POWER ``ocxl_link`` says it."""
        if self.btm and not kernel.arch.broadcast_tlbi:
            yield "btm without broadcast_tlbi", "broadcast_tlbi = true"
        if self.btm and kernel.arch.tlbie_scope != "all":
            yield "btm contradicts tlbie_scope", "false: ocxl_link says it"
