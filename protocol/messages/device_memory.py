"""What the ``memory`` node answers about pages of devices (include/linux/memremap.h)."""

from __future__ import annotations

from typing import ClassVar

from mmurace.protocol.messages.base import Message, Request
from mmurace.protocol.messages.memory import FrameNumber


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
    OBJECT: ClassVar[tuple[str, ...]] = ("page", "frame")
    ACCESS: ClassVar[str] = "read"
