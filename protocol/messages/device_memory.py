"""What the ``memory`` node answers about pages of devices (include/linux/memremap.h)."""

from __future__ import annotations

from typing import ClassVar

from mmurace.protocol.messages.base import Ack, Message, Request
from mmurace.protocol.messages.memory import FrameNumber
from mmurace.protocol.told import MINOR, Told


class Pgmap(Message, frozen=True):
    """``page->pgmap->owner``: the node of a device; empty for a page of system memory."""

    owner: str


class DevicePageAlloc(Request[FrameNumber], frozen=True):
    """``zone_device_page_init``: a zeroed page of a device's memory with one reference."""

    owner: str
    OBJECT: ClassVar[tuple[str, ...]] = ("allocator",)


class PagePgmap(Request[Pgmap], frozen=True):
    """Look at ``page->pgmap``, with nothing held: whose memory is it?"""

    frame: int
    ops: bool = False
    """To call one of its functions for the page, which must be somebody's then."""
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "frame")
    ACCESS: ClassVar[str] = "read"


class FolioWaitIdle(Request[Ack], frozen=True):
    """Answered once nobody has the page locked, or a reference beside those of its entries.

    The kernel has no such thing: whoever finds a page in use faults again, until it is not.
    """

    frame: int
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "frame")
    MAY_SLEEP: ClassVar[bool] = True
    TOLD: ClassVar[Told] = Told(weight=MINOR)
