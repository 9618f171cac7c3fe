"""Append-only journals: a header, then records, each with its length in front.

A journal is readable to its last whole record after any crash: records are appended by one
``write`` each (or one for several), and a reader stops where the next length does not fit what is
there.  The header is ``[magic, version, name]``; a layout change raises the version.
"""

from __future__ import annotations

import os
from pathlib import Path
from struct import Struct

from mmurace.protocol import codec
from mmurace.protocol.errors import PeerError, UserError
from mmurace.protocol.limits import JOURNAL_RECORD_BYTES_MAX

MAGIC = "mmu-notifier-emulator journal"
VERSION = 1
SUFFIX = ".journal"
READ_BYTES = 256 * 1024

_LENGTH = Struct(">I")


def journal_path(directory: Path, name: str) -> Path:
    """Where the journal of a node (or of ``broker``) lies in a run's directory."""
    return directory / (name + SUFFIX)


class Journal:
    """The writing end.  ``append`` buffers, ``flush`` writes; ``write`` does both."""

    def __init__(self, path: Path, name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            self._file = os.open(path, flags, 0o644)
        except FileExistsError:
            raise UserError(
                str(path), "a run is recorded here already", "a new directory"
            ) from None
        except OSError as error:
            raise UserError(str(path), f"cannot write: {error.strerror}") from None
        self._path = path
        self._buffer: list[bytes] = []
        self.write(codec.pack([MAGIC, VERSION, name]))

    def append(self, record: bytes) -> None:
        """Queue one record."""
        self._buffer += (_LENGTH.pack(len(record)), record)

    def flush(self) -> None:
        """Hand everything queued to the kernel.  Raises ``OSError`` with the path (disk full)."""
        if not self._buffer:
            return
        data = b"".join(self._buffer)
        self._buffer.clear()
        written = 0
        try:
            while written < len(data):  # a disk that fills up, or a signal
                written += os.write(self._file, data[written:])
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def write(self, record: bytes) -> None:
        """Append one record and hand it to the kernel."""
        self.append(record)
        self.flush()

    def close(self) -> None:
        """Write what is queued and close.  Closing twice does nothing."""
        if self._file >= 0:
            self.flush()
            os.close(self._file)
            self._file = -1


class JournalReader:
    """The reading end; follows a journal that is still growing.

    Raises ``UserError`` for a file that cannot be read, is not a journal or has another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
            raise UserError(str(path), problem, "a journal of the run") from None
        self._data, self._at = b"", 0
        self._checked = False
        self.damaged = False
        """A length prefix that cannot be right was found; nothing is read beyond it."""

    def next(self) -> bytes | None:
        """The next whole record, or None if there is none (yet)."""
        if not self._checked:
            first = self._whole()
            if first is None:
                return None
            self._check(first)
        return self._whole()

    def tail_bytes(self) -> int:
        """Bytes after the last whole record that was read: a record that was cut short."""
        return len(self._data) - self._at

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _whole(self) -> bytes | None:
        while not self.damaged:
            start = self._at + _LENGTH.size
            if start <= len(self._data):
                (length,) = _LENGTH.unpack_from(self._data, self._at)
                self.damaged = length > JOURNAL_RECORD_BYTES_MAX
                if start + length <= len(self._data) and not self.damaged:
                    self._at = start + length
                    return self._data[start : self._at]
            if not self._more():
                break
        return None

    def _more(self) -> bool:
        data = self._file.read(READ_BYTES)
        if data:
            self._data, self._at = self._data[self._at :] + data, 0
        return bool(data)

    def _check(self, first: bytes) -> None:
        self._checked = True
        expected = f"a journal of version {VERSION}"
        try:
            magic, version, _name = codec.unpack(first)
        except (PeerError, TypeError, ValueError):
            raise UserError(str(self.path), "not a journal", expected) from None
        if magic != MAGIC:
            raise UserError(str(self.path), "not a journal", expected)
        if version != VERSION:
            raise UserError(str(self.path), f"journal version {version}", expected)
