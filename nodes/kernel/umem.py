"""drivers/infiniband/core/umem.c: memory whose pages a driver pins for its device.

The device has frame numbers and no translation, so it hears of no ``mmu_notifier`` and needs none:
whoever wants the frame finds a reference to it.

driver (pins)                       who would take the page away or share it
a reference; pte is the same
device stores to the frame          [Required: it stays that of the page: reclaim and migration
dirty; no reference                 put it back, fork copies, and no copy on write leaves it]
"""

from __future__ import annotations

from mmurace.nodes.kernel import gup
from mmurace.nodes.kernel.context import Processor
from mmurace.nodes.kernel.locking import folio_lock, folio_unlock
from mmurace.nodes.kernel.page_ref import unpin_user_page
from mmurace.nodes.translation import word_of
from mmurace.protocol.messages.memory import FrameRead, FrameWrite
from mmurace.protocol.messages.swap import FolioMarkDirty


async def ib_umem_get(cpu: Processor, mm: str, address: int) -> int:
    """``ib_umem_get``: the frame of a page, pinned, for a region that may be written; or -errno.

    ``pin_user_pages_fast(FOLL_WRITE | FOLL_LONGTERM)`` (v5.6; before, ``get_user_pages``).  Which
    zone the page is in does not matter here, so nothing is migrated first.
    """
    got = await gup.get_user_pages_fast(cpu, mm, address, True, pin=True)
    return got if isinstance(got, int) else got.frame


async def ib_umem_release(cpu: Processor, frame: int, dirty: bool) -> None:
    """``__ib_umem_release``: ``set_page_dirty_lock`` of what was written, ``unpin_user_page``."""
    if dirty:
        await folio_lock(cpu, frame)
        await cpu.mem(FolioMarkDirty(frame))
        await folio_unlock(cpu, frame)
    await unpin_user_page(cpu, frame)


async def pinned_access(cpu: Processor, mm: str, address: int, write: bool, value: int) -> int:
    """A region of one page is registered, its device accesses a word, and it is given up again."""
    frame = await ib_umem_get(cpu, mm, address)
    if frame < 0:
        return frame
    early = cpu.world.kernel.mm.umem_release == "at_once"
    if early:
        await ib_umem_release(cpu, frame, write)
    word = word_of(address)
    if write:
        await cpu.mem(FrameWrite(frame, word, value))
    else:
        await cpu.mem(FrameRead(frame, word))
    if not early:
        await ib_umem_release(cpu, frame, write)
    return 0
