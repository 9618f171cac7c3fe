"""mm/oom_kill.c: a process dies because nothing is left to reclaim.

The one that asks for memory dies, as with ``vm.oom_kill_allocating_task``.
"""

from __future__ import annotations

from mmurace.nodes.kernel.context import Processor
from mmurace.protocol.messages.processor import SendSigkill
from mmurace.protocol.records import OomKill


async def out_of_memory(cpu: Processor, victim: str) -> None:
    """``out_of_memory`` and ``oom_kill_process``: ``SIGKILL`` for every thread of an mm.

    A thread takes it when its system call or fault is over, and never with a lock held.
    """
    cpu.port.emit(OomKill(victim))
    await cpu.port.gather((name, SendSigkill(victim)) for name in cpu.world.processors())
