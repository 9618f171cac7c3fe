"""Whose an anonymous page is: ``PageAnonExclusive``, and who maps it, in the ``memory`` node."""

from __future__ import annotations

from collections.abc import Mapping

from mmurace.nodes.driver import Handler
from mmurace.nodes.swap import Swap
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.messages import memory as m
from mmurace.protocol.messages.base import Ack, Message
from mmurace.protocol.records import FrameCopied


class Anon(Swap):
    """The part of the ``memory`` node that answers about anonymous pages."""

    def anon_handlers(self) -> Mapping[type[Message], Handler]:
        """By message."""
        return {
            m.RmapAdd: self.rmap_add, m.RmapTryDup: self.rmap_try_dup,
            m.RmapTryShare: self.rmap_try_share,
            m.PageAnonExclusive: self.page_anon_exclusive,
            m.SetPageAnonExclusive: self.set_page_anon_exclusive,
            m.PagesIdentical: self.pages_identical, m.SetPageKsm: self.set_page_ksm,
        }  # fmt: skip

    def rmap_add(self, message: m.RmapAdd, _: Envelope) -> Ack:
        """Note a mapping of a frame."""
        self._mapped(message.frame, message.mm, message.address)
        if message.exclusive:
            self.port.touch(("page", message.frame))
            self.frame(message.frame).anon_exclusive = True
        return Ack()

    def _mapped(self, number: int, mm: str, address: int) -> None:
        self.frame(number).rmap.append((mm, address))

    def rmap_try_dup(self, message: m.RmapTryDup, _: Envelope) -> m.Flag:
        """A mapping in another process, unless only a copy will do."""
        exclusive = self.world.kernel.mm.cow_reuse == "anon_exclusive"
        shared = self._share(message.frame, or_else=not exclusive)
        if shared:
            self._mapped(message.frame, message.mm, message.address)
        return m.Flag(shared)

    def rmap_try_share(self, message: m.RmapTryShare, _: Envelope) -> m.Flag:
        """A swap or migration entry, which a fork copies as it is, is about to lead to it."""
        return m.Flag(self._share(message.frame))

    def _share(self, number: int, or_else: bool = False) -> bool:
        """Unless it is pinned, and exclusive ``or_else``."""
        folio = self.frame(number)
        self.port.touch(("page", number))
        if folio.pins and (folio.anon_exclusive or or_else):
            return False
        folio.anon_exclusive = False
        return True

    def page_anon_exclusive(self, message: m.PageAnonExclusive, _: Envelope) -> m.Flag:
        """Whether it is."""
        return m.Flag(self.frame(message.frame).anon_exclusive)

    def set_page_anon_exclusive(self, message: m.SetPageAnonExclusive, _: Envelope) -> Ack:
        """From now on."""
        self.frame(message.frame).anon_exclusive = True
        return Ack()

    def pages_identical(self, message: m.PagesIdentical, _: Envelope) -> m.Flag:
        """To who merges, that they are is as good as a copy of one into the other."""
        words, others = (self.frame(f).words for f in (message.frame, message.other))
        self.port.touch(("word", message.other), "read")
        same = {i: w for i, w in words.items() if w} == {i: w for i, w in others.items() if w}
        if same and message.merging:
            self.port.emit(FrameCopied(message.frame, message.other))
        return m.Flag(same)

    def set_page_ksm(self, message: m.SetPageKsm, _: Envelope) -> Ack:
        """From now on."""
        self.port.touch(("page", message.frame))
        self.frame(message.frame).ksm = True
        return Ack()
