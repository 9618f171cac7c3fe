"""An RDMA NIC with on-demand paging: an own translation table, kept right by ``mmu_notifier``."""

from typing import ClassVar, Literal

from mmurace import plugin as api


@api.declare
class NicSwitches(api.Switches, frozen=True):
    OWNER: ClassVar[str] = "nic"
    nic_fault: Literal["retries", "installs"] = api.switch(
        "drivers/infiniband/hw/nic/odp.c", "pagefault_mr", api.since("retries"),
        api.unreleased("installs", "the fault does not look whether it was invalidated"),
    )  # fmt: skip


class Nic(api.ShadowPart, frozen=True):
    """``[[world.nics]]``: ``name``, ``mm``, ``cpu``."""


class NicDma(api.DeviceAccess, frozen=True):
    """The NIC reads or writes a word of its memory region."""


class NicNode(api.ShadowNode):
    """The NIC: its translation table (MTT), and the driver's counters of invalidations."""

    CACHE, ACCESS, FAULT = "mtt", NicDma, "pagefault_mr"

    def __init__(self, name: str, world: api.World, port: api.Port) -> None:
        super().__init__(name, world, port)
        self.retries = NicSwitches.of(world.kernel).nic_fault == "retries"
        self.seq = self.open = 0

    async def access(self, dma: NicDma) -> int:
        while True:
            entry = self.table.lookup(dma.mm, dma.address)
            if entry is not None and api.pte.permits(entry.pte, dma.write):
                await api.data_access(self.table, entry, dma.address, dma.write, dma.value)
                return 0
            seq = self.seq
            page = await self.get_user_page(dma.mm, dma.address, dma.write)
            if not page.entry:
                return -api.errno.EFAULT
            while self.retries and self.open:
                await self.port.park("no invalidation is open")
            if self.seq == seq or not self.retries:
                self.table.install(dma.mm, dma.address, page.entry, page.load)

    async def invalidate_range_start(self, mm: str, start: int, end: int) -> None:
        self.open += 1
        await self.table.invalidate(mm, start, end)

    async def invalidate_range_end(self, mm: str, start: int, end: int) -> None:
        self.seq, self.open = self.seq + 1, self.open - 1
        self.port.wake("no invalidation is open")


api.register_shadow("nic", "nics", Nic, NicNode)
