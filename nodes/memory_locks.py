"""Lock words of the ``memory`` node: which message takes which, and who is granted it next."""

from __future__ import annotations

from collections.abc import Mapping

from mmurace.nodes.driver import Handler
from mmurace.nodes.locks import LockWord
from mmurace.nodes.vma_locks import VmaLocks
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.errors import EmulatorError
from mmurace.protocol.messages import filemap as fm
from mmurace.protocol.messages import memory as m
from mmurace.protocol.messages import vma_lock
from mmurace.protocol.messages.base import Ack, Message
from mmurace.protocol.records import BadPageCheck


class MemoryLocks(VmaLocks):
    """The part of the ``memory`` node that grants locks, each in the order of the requests."""

    locks: dict[tuple[str, str | int], LockWord]
    """Those that are held or waited for: (label, what) -> word."""

    def is_page_table(self, frame: int) -> bool:
        """Whether it is, and was not freed since."""
        raise NotImplementedError

    def bad_page(self, frame: int, check: BadPageCheck) -> None:
        """A check of the kernel's own has failed."""
        raise NotImplementedError

    def wake_up_folio(self, frame: int) -> None:
        """Whoever waits for the unlock goes on."""
        raise NotImplementedError

    def lock_handlers(self) -> Mapping[type[Message], Handler]:
        """By message."""
        return {
            m.PtlLock: self.ptl_lock, m.PtlUnlock: self.ptl_unlock,
            m.MmapLock: self.mmap_lock, m.MmapUnlock: self.mmap_unlock,
            m.MmapDowngrade: self.mmap_downgrade,
            vma_lock.MmapReadTrylock: self.mmap_read_trylock,
            m.FolioLock: self.folio_lock, m.FolioUnlock: self.folio_unlock,
            m.AnonVmaLock: self.anon_vma_lock, m.AnonVmaUnlock: self.anon_vma_unlock,
            fm.InodeLock: self.inode_lock, fm.InodeUnlock: self.inode_unlock,
            fm.ImmapLock: self.i_mmap_lock, fm.ImmapUnlock: self.i_mmap_unlock,
            **self.vma_lock_handlers(),
        }  # fmt: skip

    def _acquire(self, lock: tuple[str, str | int], request: str, write: bool) -> Ack | None:
        word = self.locks.setdefault(lock, LockWord())
        granted = word.acquire(request, write)
        if write or not granted:
            self.port.touch(lock)
        return Ack() if granted else None

    def _release(self, lock: tuple[str, str | int]) -> Ack:
        word = self.locks.get(lock)
        if word is None:
            raise EmulatorError(f"{lock} is not held")
        if word.writer or word.waiters:
            self.port.touch(lock)
        self._granted(word.release())
        if not word.held:
            del self.locks[lock]
        return Ack()

    def _granted(self, requests: list[str]) -> None:
        for request in requests:
            self.port.reply(request, Ack())

    def ptl_lock(self, message: m.PtlLock, envelope: Envelope) -> Ack | None:
        """Grant a page-table lock, now or in turn.  It lies in the ``struct page`` of the table."""
        if not self.is_page_table(message.table):
            self.bad_page(message.table, "ptl")
        return self._acquire(("ptl", message.table), envelope.id, True)

    def ptl_unlock(self, message: m.PtlUnlock, _: Envelope) -> Ack:
        """Release a page-table lock."""
        return self._release(("ptl", message.table))

    def mmap_lock(self, message: m.MmapLock, envelope: Envelope) -> Ack | None:
        """Grant mmap_lock, now or in turn."""
        return self._acquire(("mmap_lock", message.mm), envelope.id, message.write)

    def mmap_read_trylock(self, message: vma_lock.MmapReadTrylock, envelope: Envelope) -> m.Flag:
        """Take mmap_lock for read, if nobody has it for write or waits for it."""
        lock = ("mmap_lock", message.mm)
        word = self.locks.get(lock)
        if word is not None and (word.writer or word.waiters):
            return m.Flag(False)
        self._acquire(lock, envelope.id, False)
        return m.Flag(True)

    def mmap_unlock(self, message: m.MmapUnlock, _: Envelope) -> Ack:
        """Release mmap_lock, and with it the VMAs that are held for write."""
        self.vma_end_write_all(message.mm)
        return self._release(("mmap_lock", message.mm))

    def mmap_downgrade(self, message: m.MmapDowngrade, _: Envelope) -> Ack:
        """Turn the write hold of mmap_lock into a read hold; VMAs are not held any more."""
        self.vma_end_write_all(message.mm)
        self._granted(self.locks["mmap_lock", message.mm].downgrade())
        return Ack()

    def folio_lock(self, message: m.FolioLock, envelope: Envelope) -> Ack | None:
        """Grant a folio lock, now or in turn."""
        return self._acquire(("folio_lock", message.frame), envelope.id, True)

    def folio_unlock(self, message: m.FolioUnlock, _: Envelope) -> Ack:
        """Release a folio lock and wake those who only wait."""
        self._release(("folio_lock", message.frame))
        self.wake_up_folio(message.frame)
        return Ack()

    def anon_vma_lock(self, message: m.AnonVmaLock, envelope: Envelope) -> Ack | None:
        """Grant the rmap lock, now or in turn."""
        return self._acquire(("anon_vma", message.mm), envelope.id, message.write)

    def anon_vma_unlock(self, message: m.AnonVmaUnlock, _: Envelope) -> Ack:
        """Release the rmap lock."""
        return self._release(("anon_vma", message.mm))

    def inode_lock(self, message: fm.InodeLock, envelope: Envelope) -> Ack | None:
        """Grant a file's own lock, now or in turn."""
        return self._acquire(("i_rwsem", message.file), envelope.id, True)

    def inode_unlock(self, message: fm.InodeUnlock, _: Envelope) -> Ack:
        """Release a file's own lock."""
        return self._release(("i_rwsem", message.file))

    def i_mmap_lock(self, message: fm.ImmapLock, envelope: Envelope) -> Ack | None:
        """Grant a file's rmap lock, now or in turn."""
        return self._acquire(("i_mmap_rwsem", message.file), envelope.id, message.write)

    def i_mmap_unlock(self, message: fm.ImmapUnlock, _: Envelope) -> Ack:
        """Release a file's rmap lock."""
        return self._release(("i_mmap_rwsem", message.file))
