"""Files of a run that are written whole or not at all, and the seal that says that one is intact.

A file gets its name only once all of it is on the disk; until then, and for ever if that fails,
what was there before stays.  A seal is a first line with the checksum of the rest, so that damage
is told from meaning.  Without that line a file is taken as it is: somebody wrote it by hand.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final
from zlib import crc32

from mmurace.nodes.disk import disk
from mmurace.protocol.errors import UserError

_SEAL_TEXT: Final = "# crc32 {:08x} of all that follows; take this line out to change it by hand\n"
_SEAL: Final = re.compile(_SEAL_TEXT.replace("{:08x}", "([0-9a-f]{8})").encode())
_TRACES: Final = (b"crc32", b"of all that follows", b"take this line out")
"""What is left of a seal that was damaged itself."""
_MACHINE: Final = frozenset({
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG,
    errno.EROFS,
})  # fmt: skip


def not_opened(path: Path, error: OSError, problem: str, expected: str = "") -> Exception:
    """What to raise for a file that could not be opened, read or made.

    ``UserError`` if another path would have done; ``OSError`` with the path if the machine has
    nothing left to give (descriptors, memory, room), which no other path changes.
    """
    if error.errno in _MACHINE:
        return OSError(error.errno, error.strerror, str(path))
    return UserError(str(path), f"{problem}: {error.strerror}", expected)


def write_all(file: int, data: bytes) -> None:
    """Write everything to a descriptor of the disk.  Raises ``OSError``."""
    written = 0
    while written < len(data):  # a disk that fills up, or a signal
        written += disk().write(file, data[written:])


def write_whole(path: Path, data: bytes) -> None:
    """Let ``path`` be a file with this content, in one step.  Raises ``OSError`` with the path."""
    target = Path(os.path.realpath(path))
    new = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        _write_synced(new, data)
        disk().replace(new, target)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def _write_synced(path: Path, data: bytes) -> None:
    file = disk().open(path, os.O_CREAT | os.O_TRUNC)
    try:
        write_all(file, data)
        disk().sync(file)
    finally:
        disk().close(file)


def unwritten(path: Path, text: str) -> str:
    """Write a file that can be had again from others: empty, or why it could not be written."""
    try:
        write_whole(path, text.encode())
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def sealed(text: str) -> str:
    """The text with its seal in front."""
    return _SEAL_TEXT.format(crc32(text.encode())) + text


def read_file(path: Path, expected: str = "") -> bytes:
    """A whole file.  Raises ``UserError``; ``OSError`` for a fault of the machine."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise not_opened(path, error, "cannot be read", expected) from None


def read_sealed(path: Path, expected: str = "") -> str:
    """The text of a file with an empty line for its seal, which must be right if there is one.

    Raises ``UserError``: file, byte, what was expected; ``OSError`` for a fault of the machine.
    """
    data = read_file(path, expected)
    try:
        return _without_seal(data, path).decode()
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"is not UTF-8 at byte {error.start}", expected) from None


def _without_seal(data: bytes, path: Path) -> bytes:
    seal = _SEAL.match(data)
    if seal is not None:
        rest = data[seal.end() :]
        if int(seal[1], 16) == crc32(rest):
            return b"\n" + rest
        found = f"{crc32(rest):08x}"
    else:
        first = data.partition(b"\n")[0]
        if not any(trace in first for trace in _TRACES):
            return data
        found = "not to be read"
    problem = f"does not fit its checksum, which is {found}: damaged, or changed by hand"
    raise UserError(f"{path}:1", problem, "no such line in a file that was changed by hand")
