"""Lock words: spinlocks and reader-writer semaphores, granted first-in-first-out."""

from __future__ import annotations

from collections import deque

from mmurace.protocol.errors import EmulatorError


class LockWord:
    """One lock.  Readers share; a waiting writer holds off the readers behind it."""

    __slots__ = ("readers", "waiters", "writer")

    def __init__(self) -> None:
        self.writer = False
        self.readers = 0
        self.waiters: deque[tuple[str, bool]] = deque()
        """(request to be granted, whether for write), oldest first."""

    @property
    def held(self) -> bool:
        """Whether anybody holds it."""
        return self.writer or self.readers > 0

    def acquire(self, request: str, write: bool = True) -> bool:
        """Take it now if that is fair, else queue ``request``."""
        if self.waiters or not self._free_for(write):
            self.waiters.append((request, write))
            return False
        self._take(write)
        return True

    def release(self) -> list[str]:
        """Let go; the requests that hold it now."""
        if self.writer:
            self.writer = False
        elif self.readers:
            self.readers -= 1
        else:
            raise EmulatorError("released a lock that nobody holds")
        return self._grant()

    def downgrade(self) -> list[str]:
        """The writer becomes a reader; the readers that come in with it."""
        if not self.writer:
            raise EmulatorError("downgraded a lock that is not held for write")
        self.writer, self.readers = False, 1
        return self._grant()

    def _free_for(self, write: bool) -> bool:
        return not self.writer and not (write and self.readers)

    def _take(self, write: bool) -> None:
        if write:
            self.writer = True
        else:
            self.readers += 1

    def _grant(self) -> list[str]:
        granted = []
        while self.waiters and self._free_for(self.waiters[0][1]):
            request, write = self.waiters.popleft()
            self._take(write)
            granted.append(request)
        return granted
