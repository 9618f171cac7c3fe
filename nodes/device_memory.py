"""Pages of devices (``ZONE_DEVICE``, ``MEMORY_DEVICE_PRIVATE``) in the ``memory`` node.

They come from the same pool as all others, as those of lib/test_hmm.c do; no processor reaches
them.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmurace.nodes.anon import Anon
from mmurace.nodes.driver import Handler, Port
from mmurace.nodes.world import World
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.messages import device_memory as d
from mmurace.protocol.messages import memory as m
from mmurace.protocol.messages.base import Ack, Message
from mmurace.protocol.records import BadPageCheck


class DeviceMemory(Anon):
    """The part of the ``memory`` node that answers about them."""

    def __init__(self, name: str, world: World, port: Port) -> None:
        super().__init__(name, world, port)
        self.idle_waiters: dict[int, tuple[str, ...]] = {}
        """Frame -> requests that wait until nobody uses its page."""

    def device_handlers(self) -> Mapping[type[Message], Handler]:
        """By message."""
        return {
            d.DevicePageAlloc: self.device_page_alloc, d.PagePgmap: self.page_pgmap,
            d.FolioWaitIdle: self.folio_wait_idle,
        }  # fmt: skip

    def bad_page(self, frame: int, check: BadPageCheck) -> None:
        """A check has failed."""
        raise NotImplementedError

    def frame_alloc(self, message: m.FrameAlloc, _: Envelope) -> m.FrameNumber:
        """Take a frame out of the pool."""
        raise NotImplementedError

    def device_page_alloc(self, message: d.DevicePageAlloc, envelope: Envelope) -> m.FrameNumber:
        """An anonymous page that is on no LRU list."""
        taken = self.frame_alloc(m.FrameAlloc("device"), envelope)
        if taken.frame >= 0:
            page = self.frame(taken.frame)
            page.anon, page.pgmap = True, message.owner
        return taken

    def page_pgmap(self, message: d.PagePgmap, _: Envelope) -> d.Pgmap:
        """Whose memory it is; of a frame that has another owner by now, that one's."""
        if message.ops and not self.frame(message.frame).refs:
            self.port.touch(("page", message.frame), "read")
            self.bad_page(message.frame, "pgmap")
        return d.Pgmap(self.frame(message.frame).pgmap)

    def folio_wait_idle(self, message: d.FolioWaitIdle, envelope: Envelope) -> Ack | None:
        """Wait, if it is in use."""
        frame = message.frame
        if not self._in_use(frame):
            return Ack()
        self.idle_waiters[frame] = (*self.idle_waiters.get(frame, ()), envelope.id)
        return None

    def _in_use(self, number: int) -> bool:
        self.port.touch(("folio_lock", number), "read")
        self.port.touch(("rmap", number), "read")
        page = self.frame(number)
        return ("folio_lock", number) in self.locks or page.refs > len(page.rmap)

    def less_used(self, number: int) -> None:
        """A page is not locked, or has fewer references of its own; whoever waits looks again."""
        if number in self.idle_waiters:
            self.port.touch(("page", number))
            if not self._in_use(number):
                for request in self.idle_waiters.pop(number):
                    self.port.reply(request, Ack())

    def _mapped(self, number: int, mm: str, address: int) -> None:
        """A reference is that of an entry from here on."""
        super()._mapped(number, mm, address)
        self.less_used(number)

    def wake_up_folio(self, frame: int) -> None:
        """It was unlocked."""
        super().wake_up_folio(frame)
        self.less_used(frame)
