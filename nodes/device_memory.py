"""Pages of devices (``ZONE_DEVICE``, ``MEMORY_DEVICE_PRIVATE``) in the ``memory`` node.

They come from the same pool as all others, as those of lib/test_hmm.c do; no processor reaches
them.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmurace.nodes.anon import Anon
from mmurace.nodes.driver import Handler
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.messages import device_memory as d
from mmurace.protocol.messages import memory as m
from mmurace.protocol.messages.base import Message


class DeviceMemory(Anon):
    """The part of the ``memory`` node that answers about them."""

    def device_handlers(self) -> Mapping[type[Message], Handler]:
        """By message."""
        return {d.DevicePageAlloc: self.device_page_alloc, d.PagePgmap: self.page_pgmap}

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
        return d.Pgmap(self.frame(message.frame).pgmap)
