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
        "invalidate_range",
        since("exact"),
    )
    """How an SVA driver reads the range that it is given (``nodes.secondaries.decode``)."""
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
    btm: bool = switch(
        "drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.h",
        "ARM_SMMU_FEAT_BTM",
        since(False),
        unreleased(True, ""),
        hardware=True,
    )
    """The IOMMU takes part in broadcast TLB maintenance."""
    btm_skips_cmd: bool = switch(
        "drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3-sva.c",
        "arm_smmu_mm_arch_invalidate_secondary_tlbs",
        since(False, on="x86 ppc"),
        since(True, on="arm64"),
    )
    """Its driver queues no command for what it sees broadcast (``ARM_SMMU_FEAT_BTM``)."""

    def contradictions(self, kernel: Kernel) -> Iterator[tuple[str, str]]:
        """A unit hears broadcasts only where there are some, and on POWER ``ocxl_link`` says it."""
        if self.btm and not kernel.arch.broadcast_tlbi:
            yield "btm without broadcast_tlbi", "broadcast_tlbi = true"
        if self.btm and kernel.arch.tlbie_scope != "all":
            yield "btm contradicts tlbie_scope", "false: ocxl_link says it"
