"""What a device with a translation table of its own is told, and what it asks of a processor.

A driver that needs more has messages of its own; these do for most.
"""

from __future__ import annotations

from typing import ClassVar

from mmurace.protocol.messages.base import Ack, Message, Request
from mmurace.protocol.messages.program import Operation


class DeviceAccess(Operation, frozen=True):
    """A device reads or writes a word at an address of an mm; subclasses name the device's."""

    mm: str
    address: int
    write: bool
    value: int = 0
    ONLY_A_BASE: ClassVar[bool] = True
    CHANGES: ClassVar[str] = "wp_page_copy"
    AGENT: ClassVar[str] = "device"
    CALLED: ClassVar[str] = "device access"


class InvalidateRangeStart(Request[Ack], frozen=True):
    """``invalidate_range_start``: answered once no access through an old entry is left."""

    mm: str
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("table", "mm")


class InvalidateRangeEnd(Request[Ack], frozen=True):
    """``invalidate_range_end``."""

    mm: str
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("table", "mm")


class UserPage(Message, frozen=True):
    """A page that was looked up: its entry (0: none), and the name of the load that found it."""

    entry: int
    load: str


class GetUserPage(Request[UserPage], frozen=True):
    """A worker thread of a processor looks a page up for a device, and keeps no reference."""

    device: str
    mm: str
    address: int
    write: bool
