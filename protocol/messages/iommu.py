"""What an ``iommu`` answers: its devices' accesses and the driver's command queue."""

from __future__ import annotations

from typing import ClassVar

from protocol.messages.base import Ack, Message, Request


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


class IotlbInvalidate(Request[Ack], frozen=True):
    """An invalidation command and its sync: answered once complete.

    (0, ULONG_MAX) is everything of the PASID.  Commands of one unit are a stream: they arrive
    in the order in which they were queued.
    """

    pasid: str
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("iotlb", "pasid")
