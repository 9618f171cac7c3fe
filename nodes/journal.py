"""Append-only journals: a header, then records, each with its length and checksums in front.

A journal is readable to its last whole record after any crash: records are appended by one
``write`` each (or one for several), and a reader stops where a record is not all there.  What is
there and does not fit its checksum is damage: it is named and never believed.

=======  =====================================================================================
header   length (4 bytes), ``[magic, version, name]`` as msgpack, CRC-32 of both (4 bytes)
record   length (4 bytes), CRC-32 of the record (4), CRC-32 of those eight bytes (4), the record
=======  =====================================================================================

The length has a checksum of its own because a wrong one would look like a record that was cut
short.  The header's first two parts are the same in all versions, so that another version is
refused by name.

CRC-32 is zlib's: it finds every burst of 32 bits, any three flipped bits in a record of 11 KiB and
any four in one of 371 bytes; one in 2^32 of all else escapes it (P. Koopman, "32-bit cyclic
redundancy codes for internet applications", 2002, table 1; quoted, not looked up again).  CRC-32C
finds up to five in short records, and would need a package for what the standard library has.
"""

from __future__ import annotations

import os
from pathlib import Path
from struct import Struct
from struct import error as StructError  # noqa: N812 - it is one
from typing import Final
from zlib import crc32

from mmurace.nodes.disk import disk
from mmurace.nodes.files import not_opened, write_all
from mmurace.protocol import codec
from mmurace.protocol.errors import PeerError, UserError
from mmurace.protocol.limits import JOURNAL_HEADER_BYTES_MAX, JOURNAL_RECORD_BYTES_MAX

MAGIC = "mmu-notifier-emulator journal"
VERSION: Final = 2
SUFFIX = ".journal"
READ_BYTES = 256 * 1024

_LENGTH = Struct(">I")
_HEAD = Struct(">II")
_FRAME = Struct(">III")


def journal_path(directory: Path, name: str) -> Path:
    """Where the journal of a node (or of ``broker``) lies in a run's directory."""
    return directory / (name + SUFFIX)


def header_of(name: str, version: int = VERSION) -> bytes:
    """The bytes that a journal begins with."""
    packed = codec.pack([MAGIC, version, name])
    head = _LENGTH.pack(len(packed)) + packed
    return head + _LENGTH.pack(crc32(head))


class Journal:
    """The writing end.  ``append`` buffers, ``flush`` writes; ``write`` does both.

    Once a write has failed nothing more is written: what came after a record that was cut short
    could not be read.
    """

    def __init__(self, path: Path, name: str, late: bool = False) -> None:
        """``late``: the file is made by the first ``flush``, which is where that may fail."""
        self._path = path
        self._file = -1
        self._closed = False
        self._buffer: list[bytes] = [header_of(name)]
        self._failed: OSError | None = None
        if not late:
            try:
                self.flush()
            except OSError:
                self.abandon()
                raise

    def _open(self) -> None:
        try:
            self._file = disk().open(self._path, os.O_CREAT | os.O_EXCL | os.O_APPEND)
        except FileExistsError:
            problem = "a run is recorded here already"
            raise UserError(str(self._path), problem, "a new directory") from None
        except OSError as error:
            raise not_opened(self._path, error, "cannot write") from None

    def append(self, record: bytes) -> None:
        """Queue one record."""
        length, check = len(record), crc32(record)
        self._buffer += (_FRAME.pack(length, check, crc32(_HEAD.pack(length, check))), record)

    def flush(self) -> None:
        """Hand everything queued to the kernel.  Raises ``OSError`` with the path (disk full)."""
        if self._failed is not None:
            raise self._failed
        if not self._buffer:
            return
        if self._file < 0:
            self._open()
        data = b"".join(self._buffer)
        self._buffer.clear()
        try:
            write_all(self._file, data)
        except OSError as error:
            self._failed = OSError(error.errno, error.strerror, str(self._path))
            raise self._failed from None

    def write(self, record: bytes) -> None:
        """Append one record and hand it to the kernel."""
        self.append(record)
        self.flush()

    def close(self) -> None:
        """Write what is queued and close.  Closing twice does nothing."""
        if not self._closed:
            self.flush()
            self.abandon()

    def abandon(self) -> None:
        """Close without writing what is queued."""
        self._closed = True
        if self._file >= 0:
            disk().close(self._file)
            self._file = -1


class JournalReader:
    """The reading end; follows a journal that is still growing.

    Raises ``UserError`` for a file that cannot be read, is not a journal, is another's, has
    another version, or is damaged (which record, at which byte).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise not_opened(path, error, "cannot be read", "a journal of the run") from None
        self._data, self._at = b"", 0
        self._before = 0
        """Bytes of the file before ``_data``."""
        self._checked = False
        self.records = 0
        """Whole records read."""

    def next(self) -> bytes | None:
        """The next whole record, or None if there is none (yet)."""
        if not self._checked and not self._check_header():
            return None
        start = self._at + _FRAME.size
        while start > len(self._data):
            if not self._more():
                return None
            start = self._at + _FRAME.size
        length, check, head_check = _FRAME.unpack_from(self._data, self._at)
        fits = head_check == crc32(self._data[self._at : self._at + _HEAD.size])
        if not fits or length > JOURNAL_RECORD_BYTES_MAX:
            raise self._damaged("length")
        while start + length > len(self._data):
            if not self._more():
                return None
            start = self._at + _FRAME.size
        record = self._data[start : start + length]
        if crc32(record) != check:
            raise self._damaged("content")
        self._at = start + length
        self.records += 1
        return record

    def tail_bytes(self) -> int:
        """Bytes after the last whole record that was read: a record that was cut short."""
        return len(self._data) - self._at

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _damaged(self, part: str) -> UserError:
        where = f"{self.path}: record {self.records + 1} at byte {self._before + self._at}"
        return UserError(where, f"its {part} does not fit its checksum", "a journal as written")

    def _more(self) -> bool:
        try:
            data = self._file.read(READ_BYTES)
        except OSError as error:  # a directory opens, and cannot be read
            raise not_opened(self.path, error, "cannot be read", "a journal of the run") from None
        if data:
            self._before += self._at
            self._data, self._at = self._data[self._at :] + data, 0
        return bool(data)

    def _check_header(self) -> bool:
        """Whether the header is there.  Raises ``UserError`` unless it is that of this journal."""
        wanted = header_of(self.path.name.removesuffix(SUFFIX))
        while len(self._data) < len(wanted):
            if not self._more():
                break
        found = self._data[: len(wanted)]
        if not wanted.startswith(found):
            raise self._foreign()
        self._checked = found == wanted
        if self._checked:
            self._at = len(wanted)
        return self._checked

    def _foreign(self) -> UserError:
        """What is wrong with the header."""
        where, expected = str(self.path), f"a journal of version {VERSION}"
        try:
            (length,) = _LENGTH.unpack_from(self._data)
            packed = self._data[_LENGTH.size : _LENGTH.size + length]
            magic, version, name = codec.unpack(packed, JOURNAL_HEADER_BYTES_MAX)
        except (PeerError, TypeError, ValueError, StructError):
            return UserError(where, "not a journal", expected)
        if magic != MAGIC:
            return UserError(where, "not a journal", expected)
        if version != VERSION:
            return UserError(where, f"journal version {version}", expected)
        if header_of(name) == self._data[: len(header_of(name))]:
            stem = self.path.name.removesuffix(SUFFIX)
            return UserError(where, f"is the journal of {name}", f"that of {stem}")
        return UserError(f"{where}: header", "does not fit its checksum", expected)
