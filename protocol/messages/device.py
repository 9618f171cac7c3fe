"""What a ``device`` with a translation cache of its own (PCIe ATS) answers."""

from __future__ import annotations

from typing import ClassVar

from protocol.messages.base import Ack, Request


class InvalidateRequest(Request[Ack], frozen=True):
    """Drop translations of (pasid, [start, end)); (0, ULONG_MAX) is everything of the PASID.

    Answered once every access through them has been answered.  Requests of one device are a
    stream.
    """

    pasid: str
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("atc", "pasid")


class SurpriseDown(Request[Ack], frozen=True):
    """The device is pulled out (PCIe: *Surprise Down* of its link).

    Answered once nothing that it has sent is on its way.
    """
