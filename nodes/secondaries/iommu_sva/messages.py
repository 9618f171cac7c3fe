"""What an ``iommu`` answers: its devices' accesses and the driver's command queue."""

from __future__ import annotations

from typing import ClassVar

from mmurace.protocol.messages.base import Ack, Message, Request
from mmurace.protocol.messages.memory import Flag
from mmurace.protocol.messages.program import Operation
from mmurace.protocol.told import (
    ESSENTIAL,
    HELPFUL,
    Told,
    Values,
    finds_entry,
    over_range,
    says,
)


def _dma(values: Values, _: str) -> str:
    return f"DMA {'store to' if values['write'] else 'load from'} {values['address']:#x}"


def _page_request(_: Values, target: str) -> str:
    return f"page request to {target}"


class DmaDone(Message, frozen=True):
    """A DMA's outcome: whether it was done, and for a read the word."""

    ok: bool
    value: int


class DmaAccess(Request[DmaDone], frozen=True):
    """A device's untranslated access to (pasid, address)."""

    pasid: str
    address: int
    write: bool
    value: int
    OBJECT: ClassVar[tuple[str, ...]] = ("iotlb", "pasid")
    OF_MM: ClassVar[str] = "pasid"
    TOLD: ClassVar[Told] = Told(function="DMA", wording=_dma, weight=ESSENTIAL, row="receiver")


class Translation(Message, frozen=True):
    """A translation completion: the entry (0: page request needed) and the name of its fill.

    With 0 the fill is the one that denied the access; empty: no entry is kept.
    """

    pte: int
    fill: str


class AtsTranslate(Request[Translation], frozen=True):
    """A device's translation request (PCIe ATS); the answer may be cached in its ATC."""

    pasid: str
    address: int
    write: bool
    OBJECT: ClassVar[tuple[str, ...]] = ("iotlb", "pasid")
    OF_MM: ClassVar[str] = "pasid"
    TOLD: ClassVar[Told] = Told(
        function="ATS translation request",
        wording=finds_entry("ATS translation request"),
        weight=HELPFUL,
    )


class PriRequest(Request[Flag], frozen=True):
    """A device's page request (PCIe PRI) and its response: whether to try again."""

    pasid: str
    address: int
    write: bool
    OF_MM: ClassVar[str] = "pasid"
    TOLD: ClassVar[Told] = Told(function="page request", wording=_page_request, weight=HELPFUL)


class AtcInvalidate(Request[Ack], frozen=True):
    """``CMDQ_OP_ATC_INV`` and its sync: answered once every device of the unit has answered."""

    pasid: str
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("atc", "pasid")
    OF_MM: ClassVar[str] = "pasid"
    TOLD: ClassVar[Told] = Told(
        function="ATC invalidation command",
        wording=over_range("ATC invalidation command"),
        weight=ESSENTIAL,
    )


class IotlbInvalidate(Request[Ack], frozen=True):
    """An invalidation command and its sync: answered once complete.

    (0, ULONG_MAX) is everything of the PASID.  Commands of one unit are a stream: they arrive
    in the order in which they were queued.  ``leaf``: entries that lead to tables may stay.
    """

    pasid: str
    start: int
    end: int
    leaf: bool = False
    OBJECT: ClassVar[tuple[str, ...]] = ("iotlb", "pasid")
    OF_MM: ClassVar[str] = "pasid"
    TOLD: ClassVar[Told] = Told(
        function="IOTLB invalidation command",
        called="IOTLB invalidation",
        wording=over_range("IOTLB invalidation"),
        weight=ESSENTIAL,
        row="receiver",
    )


class DetachDevice(Request[Ack], frozen=True):
    """A device leaves the list of those that the unit passes ATC invalidations on to."""

    device: str
    OBJECT: ClassVar[tuple[str, ...]] = ("devices",)


class InvalidateRequest(Request[Ack], frozen=True):
    """Drop translations of (pasid, [start, end)); (0, ULONG_MAX) is everything of the PASID.

    Answered once every access through them has been answered.  Requests of one device are a
    stream.
    """

    pasid: str
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("atc", "pasid")
    OF_MM: ClassVar[str] = "pasid"
    TOLD: ClassVar[Told] = Told(
        function="ATC invalidation",
        wording=over_range("ATC invalidation"),
        weight=ESSENTIAL,
        row="receiver",
    )


class SurpriseDown(Request[Ack], frozen=True):
    """The device is pulled out (PCIe: *Surprise Down* of its link).

    Answered once nothing that it has sent is on its way.
    """

    TOLD: ClassVar[Told] = Told(
        function="the link to the device is down", wording=says("pulled out: its ATC is gone")
    )


# ---- operations, and what a processor answers ------------------------------------------------


class Dma(Operation, frozen=True):
    """A device's load or store to (mm's PASID, address)."""

    mm: str
    address: int
    write: bool
    value: int = 0
    FUNCTION: ClassVar[str] = "iommu_sva_handle_iopf"
    CHANGES: ClassVar[str] = "wp_page_copy"
    AGENT: ClassVar[str] = "DMA"
    CALLED: ClassVar[str] = "DMA"


class DeviceRemove(Operation, frozen=True):
    """A device is pulled out, and the hotplug worker takes it off its unit (``pciehp_ist``)."""

    unit: str
    device: str
    FUNCTION: ClassVar[str] = "iommu_release_device"
    CHANGES: ClassVar[str] = "iommu_release_device"


class PageRequest(Request[Flag], frozen=True):
    """An I/O page fault, queued to this CPU's workqueue (``iommu_sva_handle_iopf``)."""

    mm: str
    address: int
    write: bool
    TOLD: ClassVar[Told] = Told(function="iommu_sva_handle_iopf", wording=_page_request)
