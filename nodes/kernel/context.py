"""What kernel code knows of the processor that runs it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol, TypeVar

from nodes.driver import Port
from nodes.world import World
from protocol.messages.base import Message, Request

R = TypeVar("R", bound=Message)


class Processor(Protocol):
    """A CPU, or the CPU under a vCPU thread, as the kernel sees it (``current`` and arch hooks).

    A processor runs one thread.  ``call`` spins: the thread keeps the CPU while it waits (a
    spinlock, a load, an IPI acknowledgement); ``sleep`` gives the CPU away until the reply is
    there (mmap_lock, rwsems, folio locks) and then waits for its turn again.
    """

    name: str
    world: World
    port: Port

    def mem(self, message: Request[R]) -> Awaitable[R]:
        """One access to shared memory; spins."""

    async def sleep(self, dst: str, message: Request[R]) -> R:
        """A request that may sleep."""

    def irq_disable(self) -> None:
        """``local_irq_disable``: IPIs wait until interrupts are on again."""

    def irq_enable(self) -> None:
        """``local_irq_enable``."""

    async def flush_tlb_local(self, mm: str, start: int, end: int) -> None:
        """Drop this processor's own translations of [start, end)."""
