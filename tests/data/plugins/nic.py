"""An RDMA NIC with on-demand paging: an own translation table, kept right by ``mmu_notifier``."""

from __future__ import annotations

from typing import ClassVar, Literal

from nodes import plugin_api as api


class Nic(api.Part, frozen=True):
    """``[[world.nics]]``: whose memory it is given, and which CPU serves its page faults."""

    MMS: ClassVar = ("mm",)
    CPUS: ClassVar = ("cpu",)
    mm: str
    cpu: str

    def subscribed(self, kernel: api.Kernel) -> tuple[str, ...]:
        """The notifier is there from the start."""
        return (self.mm,)


@api.declare
class NicSwitches(api.Switches, frozen=True):
    """What the driver does."""

    OWNER: ClassVar = "nic"
    nic_fault: Literal["retries", "installs"] = api.switch(
        "drivers/infiniband/hw/nic/odp.c", "nic_pagefault", api.since("retries"),
        api.unreleased("installs", "the page fault does not look whether it was invalidated"),
    )


class NicDma(api.Operation, frozen=True):
    """The NIC reads or writes a word of the memory region."""

    mm: str
    address: int
    write: bool
    value: int = 0


class InvalidateStart(api.Request[api.Ack], frozen=True):
    """``invalidate_range_start``: zap the region's entries, and no new ones until the end."""

    mm: str
    start: int
    end: int


class InvalidateEnd(api.Request[api.Ack], frozen=True):
    """``invalidate_range_end``."""


class PageFault(api.Request[api.Page], frozen=True):
    """The NIC asks for a page."""

    mm: str
    address: int
    write: bool


class NicNode(api.Node):
    """The NIC with its translation table (MTT), and the driver's counters."""

    def __init__(self, name: str, world: api.World, port: api.Port) -> None:
        super().__init__(name, world, port)
        self.row = next(nic for nic in world.parts_of(Nic) if nic.name == name)
        self.mtt = api.TranslationCache("mtt", world, port)
        self.seq = self.active = 0
