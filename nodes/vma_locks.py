"""The locks of VMAs, which are taken beside mmap_lock (mm/mmap_lock.c, v6.4)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from mmurace.nodes.driver import Handler
from mmurace.nodes.node import Node
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.messages import memory as m
from mmurace.protocol.messages import vma_lock as v
from mmurace.protocol.messages.base import Ack, Message
from mmurace.protocol.ranges import overlaps

Extent = tuple[int, int]
"""[start, end) of a VMA."""


class VmaLockState(msgspec.Struct):
    """Who has which VMAs of an mm.

    A VMA is known by where it lies: nobody moves a border of one that somebody has.
    """

    readers: list[Extent] = []
    """One for each hold."""
    written: list[Extent] = []
    """``vm_lock_seq == mm_lock_seq``: held for write until mmap_lock is given back."""
    waiter: str = ""
    """The request of the one thread that has mmap_lock for write, while it waits for readers."""

    def taken(self, extent: Extent, holds: list[Extent]) -> bool:
        """Whether one of the holds is of a VMA in that range."""
        return any(overlaps(*extent, *hold) for hold in holds)


class VmaLocks(Node):
    """The part of the ``memory`` node that grants locks of VMAs."""

    vma_locks: dict[str, VmaLockState]
    """By mm; of those that are held or waited for."""

    def vmas_of(self, mm: str) -> list[m.Vma]:
        """The VMAs of an mm, by address."""
        raise NotImplementedError

    def vma_lock_handlers(self) -> Mapping[type[Message], Handler]:
        """By message."""
        return {
            v.VmaStartRead: self.vma_start_read, v.VmaEndRead: self.vma_end_read,
            v.VmaStartWrite: self.vma_start_write,
        }  # fmt: skip

    def vma_start_read(self, message: v.VmaStartRead, _: Envelope) -> m.VmaRange:
        """``lock_vma_under_rcu``: never waits."""
        self.port.touch(("vmas", message.mm), "read")
        for vma in self.vmas_of(message.mm):
            if vma.start <= message.address < vma.end:
                extent = vma.start, vma.end
                if self._refused(message, vma, extent):
                    break
                self.vma_locks.setdefault(message.mm, VmaLockState()).readers.append(extent)
                return m.VmaRange((vma,), *extent)
        return m.VmaRange((), 0, 0)

    def _refused(self, message: v.VmaStartRead, vma: m.Vma, extent: Extent) -> bool:
        state = self.vma_locks.get(message.mm)
        if state is not None and state.taken(extent, state.written):
            return True
        return bool(
            (message.anonymous and vma.file)
            or (message.anon_vma and not vma.file and not vma.anon_vma)
        )

    def vma_end_read(self, message: v.VmaEndRead, _: Envelope) -> Ack:
        """``vma_end_read``; the last reader lets the writer in."""
        state = self.vma_locks[message.mm]
        state.readers.remove((message.start, message.end))
        if state.waiter:
            self.port.touch(("vma_lock", message.mm))
            if not any(state.taken(extent, state.readers) for extent in state.written):
                self.port.reply(state.waiter, Ack())
                state.waiter = ""
        self._forget_idle(message.mm)
        return Ack()

    def vma_start_write(self, message: v.VmaStartWrite, envelope: Envelope) -> Ack | None:
        """``vma_start_write``: readers that come from here on are refused.

        A VMA counts as a whole, though only a part of it may be changed.
        """
        state = self.vma_locks.setdefault(message.mm, VmaLockState())
        start, end = message.start, message.end
        for vma in self.vmas_of(message.mm):
            if overlaps(vma.start, vma.end, message.start, message.end):
                start, end = min(start, vma.start), max(end, vma.end)
        if (start, end) not in state.written:
            state.written.append((start, end))
        if not state.taken((start, end), state.readers):
            return Ack()
        state.waiter = envelope.id
        return None

    def vma_end_write_all(self, mm: str) -> None:
        """``vma_end_write_all``: mmap_lock is given back, or held for read only."""
        state = self.vma_locks.get(mm)
        if state is not None and state.written:
            self.port.touch(("vma_lock", mm))
            state.written.clear()
            self._forget_idle(mm)

    def _forget_idle(self, mm: str) -> None:
        state = self.vma_locks[mm]
        if not state.readers and not state.written:
            del self.vma_locks[mm]
