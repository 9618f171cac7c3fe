"""mm/page_alloc.c: a frame, if need be one that is taken from somebody else first.

Whoever allocates may hold mmap_lock and folio locks, but never a page-table lock.  Reclaim takes
folio locks by trylock, and nobody allocates under the rmap locks that it sleeps on, so it waits for
nobody who waits for memory.
"""

from __future__ import annotations

from typing import Final

from mmurace.nodes.kernel import oom_kill, vmscan
from mmurace.nodes.kernel.context import Processor
from mmurace.protocol.messages.memory import FrameAlloc

MAX_RECLAIM_RETRIES: Final = 16
"""Rounds in a row that freed nothing for this allocation."""


async def alloc_pages(
    cpu: Processor, current: str, request: FrameAlloc, thisnode: bool = False
) -> int:
    """``__alloc_pages``: a frame, or -1 for who is killed; ``current`` is the mm of the thread.

    With ``thisnode`` (``__GFP_THISNODE``: migration) nobody is killed for it.
    """
    frame = (await cpu.mem(request)).frame
    if frame >= 0:
        return frame
    return await alloc_pages_slowpath(cpu, current, request, thisnode)


async def alloc_pages_slowpath(
    cpu: Processor, current: str, request: FrameAlloc, thisnode: bool
) -> int:
    """``__alloc_pages_slowpath``: reclaim and try again; then the OOM killer.

    What reclaim frees, somebody else may be faster to take.
    """
    for _ in range(MAX_RECLAIM_RETRIES):
        progress = await vmscan.try_to_free_pages(cpu, current)
        frame = (await cpu.mem(request)).frame
        if frame >= 0:
            return frame
        if not progress:
            break
    if not thisnode:
        await oom_kill.out_of_memory(cpu, current)
    return -1
