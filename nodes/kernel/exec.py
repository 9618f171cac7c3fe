"""fs/exec.c: a new program in place of the old one."""

from __future__ import annotations

from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.exit import exit_mm


async def exec_mmap(cpu: Processor, mm: str) -> int:
    """``execve``: ``exec_mmap``, then the old mm's ``mmput``; the new one is empty.

    The mm keeps its name, and with it its table's top level and its tags.
    """
    await exit_mm(cpu, mm)
    return 0
