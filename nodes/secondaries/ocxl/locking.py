"""drivers/misc/ocxl/link.c: the locks of a link."""

from __future__ import annotations

from collections.abc import Awaitable

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.secondaries.ocxl.messages import AtsdLock, AtsdUnlock, SpaLock, SpaUnlock
from mmurace.nodes.world import MEMORY
from mmurace.protocol.messages.base import Ack


def lock_spa(cpu: Processor, link: str) -> Awaitable[Ack]:
    """``mutex_lock(&spa->spa_lock)``: no process element comes or goes; sleeps."""
    return cpu.sleep(MEMORY, SpaLock(link))


def unlock_spa(cpu: Processor, link: str) -> Awaitable[Ack]:
    """``mutex_unlock(&spa->spa_lock)``."""
    return cpu.mem(SpaUnlock(link))


def lock_atsd(cpu: Processor, link: str) -> Awaitable[Ack]:
    """``spin_lock(&link->atsd_lock)``: one invalidation at a time; spins."""
    return cpu.mem(AtsdLock(link))


def unlock_atsd(cpu: Processor, link: str) -> Awaitable[Ack]:
    """``spin_unlock(&link->atsd_lock)``."""
    return cpu.mem(AtsdUnlock(link))
