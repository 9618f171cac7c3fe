"""include/linux/mm.h, include/linux/page_ref.h: references to pages.

Who finds a page without a lock pairs ``try_get_page`` with another look at what led to it, and who
frees one takes away what leads to it before the last ``put_page``: so either the look sees that it
was taken away, or the count is seen and the page is not freed.
"""

from __future__ import annotations

from typing import Final

from mmurace.nodes.kernel.context import Processor
from mmurace.protocol.messages.memory import PageGet, PagePut

ZERO_PAGE: Final = 0
"""The frame of ``ZERO_PAGE(0)``, which is not counted."""


async def try_get_page(cpu: Processor, frame: int) -> bool:
    """``try_get_page``, ``folio_try_get``: False if nobody has a reference, so it may be freed."""
    return (await cpu.mem(PageGet(frame))).value


async def try_grab_page(cpu: Processor, frame: int, pin: bool) -> bool:
    """``try_grab_page`` (``try_grab_folio``, v5.18): with ``FOLL_PIN`` or with ``FOLL_GET``."""
    return (await cpu.mem(PageGet(frame, pin))).value


async def get_page(cpu: Processor, frame: int) -> None:
    """``get_page``: the caller knows that the page has a reference."""
    await cpu.mem(PageGet(frame))


async def put_page(cpu: Processor, frame: int) -> None:
    """``put_page``; the zero page is not counted."""
    if frame != ZERO_PAGE:
        await cpu.mem(PagePut(frame))


async def unpin_user_page(cpu: Processor, frame: int) -> None:
    """``unpin_user_page`` (v5.6): what ``FOLL_PIN`` has taken."""
    await cpu.mem(PagePut(frame, pin=True))
