"""What kernel code knows of the processor that runs it."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Any, Protocol, TypeVar

from mmurace.nodes.driver import Port
from mmurace.nodes.world import World
from mmurace.protocol.messages.base import Message, Request

R = TypeVar("R", bound=Message)


class Processor(Protocol):
    """A CPU, whatever its thread runs, as the kernel sees it (``current`` and arch hooks).

    A processor runs one thread.  ``call`` spins: the thread keeps the CPU while it waits (a
    spinlock, a load, an IPI acknowledgement); ``sleep`` gives the CPU away until the reply is
    there (mmap_lock, rwsems, folio locks) and then waits for its turn again.
    """

    name: str
    world: World
    port: Port
    fatal_signal_pending: bool
    """``SIGKILL`` was sent to the thread; looked at where the kernel looks, and nowhere else."""
    active_mms: list[str]
    """mms that this processor is in the cpumask of."""

    def mem(self, message: Request[R]) -> Awaitable[R]:
        """One access to shared memory; spins."""

    async def sleep(self, dst: str, message: Request[R]) -> R:
        """A request that may sleep."""

    async def sleep_all(self, requests: Iterable[tuple[str, Request[Any]]]) -> None:
        """Requests that may sleep, all at once; a receiver that is dead has answered."""

    async def user_access(self, mm: str, address: int, write: bool, value: int) -> int:
        """A load or store in user mode: 0, or -errno for what kills the process."""

    async def get_signal(self, mm: str) -> None:
        """``get_signal``: a thread of a process that was killed leaves nothing behind."""

    def srcu_read_lock(self) -> None:
        """``srcu_read_lock(&srcu)``: what is found on a notifier list stays until the unlock."""

    def srcu_read_unlock(self) -> None:
        """``srcu_read_unlock(&srcu)``."""

    def irq_disable(self) -> None:
        """``local_irq_disable``: IPIs wait until interrupts are on again."""

    def irq_enable(self) -> None:
        """``local_irq_enable``."""

    async def flush_tlb_local(self, mm: str, start: int, end: int, tables: bool = False) -> None:
        """Drop this processor's own translations of [start, end)."""
