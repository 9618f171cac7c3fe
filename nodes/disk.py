"""The disk: the one seam through which all files of a run are written, and a disk with faults.

Every process has one disk.  Whoever starts a process gives it the disk (``Plan.disk``), so that a
fault can be put into any file of a run, on processes as in the simulator.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Literal

NEW_FILE: Final = 0o644


class Disk:
    """What files are written through.  Raises ``OSError``."""

    def open(self, path: Path, flags: int) -> int:
        """Open for writing; the descriptor is not inherited."""
        return os.open(path, flags | os.O_WRONLY | os.O_CLOEXEC, NEW_FILE)

    def write(self, file: int, data: bytes) -> int:
        """Write the beginning of ``data``; how much of it was written, in bytes."""
        return os.write(file, data)

    def sync(self, file: int) -> None:
        """Wait until everything written is on the medium."""
        os.fsync(file)

    def close(self, file: int) -> None:
        """Close what ``open`` gave."""
        os.close(file)

    def replace(self, old: Path, new: Path) -> None:
        """Let ``new`` name what ``old`` names, in one step."""
        old.replace(new)

    def link(self, link: Path, target: str) -> None:
        """Make a symbolic link."""
        link.symlink_to(target)


FaultOfDisk = Literal["full", "error", "short"]
"""``full``: ENOSPC, after half of the data; ``error``: EIO; ``short``: half is written, and no
error."""


@dataclass(slots=True)
class FaultyDisk(Disk):
    """A disk that fails at its nth operation on a file whose name matches, counted from 1.

    A full disk stays full and a broken one stays broken, for the files that match; a write is cut
    short once.  ``nth`` 0: never, so that ``operations`` says how many there are.
    """

    nth: int
    fault: FaultOfDisk = "full"
    names: str = "*"
    """A glob of file names."""
    operations: int = 0
    _matching: set[int] = field(default_factory=set)
    """Descriptors of files that match."""

    def open(self, path: Path, flags: int) -> int:
        """See ``Disk``; a new file needs an inode."""
        matches = fnmatchcase(path.name, self.names)
        if matches:
            self._fail()
        file = Disk.open(self, path, flags)
        if matches:
            self._matching.add(file)
        return file

    def write(self, file: int, data: bytes) -> int:
        """See ``Disk``."""
        if file in self._matching:
            self.operations += 1
            if self.operations == self.nth and self.fault in ("full", "short") and len(data) > 1:
                return Disk.write(self, file, data[: len(data) // 2])
            self._raise()
        return Disk.write(self, file, data)

    def sync(self, file: int) -> None:
        """See ``Disk``."""
        if file in self._matching:
            self._fail()
        Disk.sync(self, file)

    def close(self, file: int) -> None:
        """See ``Disk``; never fails."""
        self._matching.discard(file)
        Disk.close(self, file)

    def replace(self, old: Path, new: Path) -> None:
        """See ``Disk``."""
        if fnmatchcase(new.name, self.names):
            self._fail()
        Disk.replace(self, old, new)

    def link(self, link: Path, target: str) -> None:
        """See ``Disk``."""
        if fnmatchcase(link.name, self.names):
            self._fail()
        Disk.link(self, link, target)

    def _fail(self) -> None:
        self.operations += 1
        self._raise()

    def _raise(self) -> None:
        if self.fault != "short" and 0 < self.nth <= self.operations:
            number = errno.ENOSPC if self.fault == "full" else errno.EIO
            raise OSError(number, os.strerror(number))


_disks: list[Disk] = [Disk()]


def disk() -> Disk:
    """The disk of this process."""
    return _disks[-1]


def install(new: Disk) -> None:
    """Write through another disk from now on."""
    _disks.append(new)


@contextmanager
def on(other: Disk) -> Iterator[Disk]:
    """Write through another disk inside the block."""
    _disks.append(other)
    try:
        yield other
    finally:
        _disks.remove(other)
