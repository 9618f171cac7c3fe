"""A device with a translation table of its own, in few lines: what drivers of that kind share.

The table is filled by the driver's page faults and is kept right by ``invalidate_range_start`` and
``_end``; what lies between the look-up and the install is what most drivers get wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import msgspec

from mmurace.nodes.driver import Port
from mmurace.nodes.kernel import gup
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.node import Handlers, Node
from mmurace.nodes.secondary import Cache, Drawn, Part, Secondary, register
from mmurace.nodes.translation import TranslationCache
from mmurace.nodes.world import World
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.errors import EmulatorError
from mmurace.protocol.messages.base import Ack
from mmurace.protocol.messages.program import OpDone, Operation
from mmurace.protocol.messages.shadow import (
    DeviceAccess,
    GetUserPage,
    InvalidateRangeEnd,
    InvalidateRangeStart,
    UserPage,
)
from mmurace.protocol.records import FaultRetry


class ShadowPart(Part, frozen=True):
    """A row of a world file: the mm that the device is given, the CPU that serves its faults."""

    MMS: ClassVar[tuple[str, ...]] = ("mm",)
    CPUS: ClassVar[tuple[str, ...]] = ("cpu",)

    mm: str
    cpu: str

    def subscribed(self, _kernel: Any) -> tuple[str, ...]:
        """From the start."""
        return (self.mm,)


class ShadowNode(Node):
    """The device.  Subclasses say what an access does, and what the two callbacks do."""

    CACHE: ClassVar[str]
    """What its translation table is called."""
    ACCESS: ClassVar[type[DeviceAccess]]
    """What a program asks of it."""
    FAULT: ClassVar[str] = "get_user_pages"
    """The driver's function that fills the table; for reports."""

    def __init__(self, name: str, world: World, port: Port) -> None:
        super().__init__(name, world, port)
        part = world.part_of(name)
        assert isinstance(part, ShadowPart)
        self.cpu = part.cpu
        self.table = TranslationCache(self.CACHE, world, port)
        self._looked_up: dict[str, int] = {}
        """Operation in flight -> the address whose page was looked up for it."""

    def handlers(self) -> Handlers:
        """Its accesses and the two callbacks."""
        return {
            self.ACCESS: self._operate,
            InvalidateRangeStart: self._start,
            InvalidateRangeEnd: self._end,
        }

    async def access(self, access: Any) -> int:
        """Do one access: 0, or -errno."""
        raise NotImplementedError

    async def invalidate_range_start(self, mm: str, start: int, end: int) -> None:
        """Drop what is in the range, and bar installs until the end."""
        await self.table.invalidate(mm, start, end)

    async def invalidate_range_end(self, mm: str, start: int, end: int) -> None:
        """Lift the bar."""

    async def get_user_page(self, mm: str, address: int, write: bool) -> UserPage:
        """Have the driver look a page up; it may be gone again when this returns.

        Whoever looks the same one up once more did not use what was found first: that shows, in
        the record, that the driver's check was put to use.
        """
        operation = self.port.operation
        if self._looked_up.get(operation) == address:
            why = refusal(self.CACHE)
            self.port.emit(FaultRetry(mm, address, write, why, operation))
        self._looked_up[operation] = address
        return await self.port.call(self.cpu, GetUserPage(self.name, mm, address, write))

    async def _operate(self, access: DeviceAccess, _: Envelope) -> OpDone:
        done = await self.operate(access, self.access(access))
        self._looked_up.pop(self.port.operation, None)
        return done

    async def _start(self, message: InvalidateRangeStart, _: Envelope) -> Ack:
        await self.invalidate_range_start(message.mm, message.start, message.end)
        return Ack()

    async def _end(self, message: InvalidateRangeEnd, _: Envelope) -> Ack:
        await self.invalidate_range_end(message.mm, message.start, message.end)
        return Ack()


async def invalidate_range_start(cpu: Processor, node: str, mm: str, start: int, end: int) -> None:
    """The driver's callback: tell the device, and wait until nothing uses what it dropped."""
    await cpu.port.call(node, InvalidateRangeStart(mm, start, end))


async def invalidate_range_end(cpu: Processor, node: str, mm: str, start: int, end: int) -> None:
    """The driver's callback: tell the device."""
    await cpu.port.call(node, InvalidateRangeEnd(mm, start, end))


async def get_user_page(cpu: Processor, message: GetUserPage) -> UserPage:
    """The driver's page fault: look the page up, and give the reference back."""
    page = await gup.get_user_pages_fast(cpu, message.mm, message.address, message.write)
    if isinstance(page, int):
        return UserPage(0, "")
    await gup.put_page(cpu, page.frame)
    return UserPage(page.pte, page.walk)


CALLBACKS: dict[str, Callable[..., Awaitable[None]]] = {
    "invalidate_range_start": invalidate_range_start,
    "invalidate_range_end": invalidate_range_end,
}


def register_shadow(
    name: str, key: str, part: type[ShadowPart], node: type[ShadowNode]
) -> Secondary:
    """Make a device of this kind known: ``key`` is its key in world files.

    Raises ``EmulatorError`` if a name is taken, or the node's class does not say what it is.
    """
    for said in ("CACHE", "ACCESS"):
        if not hasattr(node, said):
            raise EmulatorError(f"{node.__name__} does not say its {said}")
    if node.access is ShadowNode.access:
        raise EmulatorError(f"{node.__name__} does not say what an access does (async def access)")

    def draw(row: ShadowPart, drawn: Drawn) -> Operation:
        return node.ACCESS(row.mm, drawn.address, drawn.write, drawn.value)

    cache = Cache(
        node.CACHE, "shadow", filled_by=node.FAULT, dropped_by=(InvalidateRangeStart,),
        refused=refusal(node.CACHE),
    )  # fmt: skip
    return register(
        Secondary(
            name=name,
            key=key,
            part=part,
            node_class=lambda _row, _name: node,
            caches=(cache,),
            ops=lambda _kernel: CALLBACKS,
            work={GetUserPage: get_user_page},
            accesses={node.ACCESS: lambda row: (row.name,)},
            drawn={node.ACCESS: draw} if _has_only(node.ACCESS, DeviceAccess) else {},
            made=part if _has_only(part, ShadowPart) else None,
        )
    )


def refusal(cache: str) -> str:
    """Why a page that was looked up is not installed, as a record (``FaultRetry``) says it."""
    return f"{cache} retry"


def _has_only(kind: type[msgspec.Struct], base: type[msgspec.Struct]) -> bool:
    """Whether it can be made of the fields of a base: its own have defaults."""
    own = [field for field in msgspec.structs.fields(kind) if field.required]
    return {field.name for field in own} <= set(base.__struct_fields__)
