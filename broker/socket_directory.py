"""The private directory of a socket: short, locked, and swept if its owner is dead.

A directory belongs to whoever holds the lock (``flock``) on it, and the kernel lets go of that
when the process ends, however it ends.  So a directory that can be locked is nobody's, and what
kill -9 has left behind goes at the next start.  Between making and locking one, somebody else may
sweep it; then it is no longer there once it is locked, and another one is made::

    owner                              sweeper
    mkdir
                                       open, lock: nobody has it
    open, lock: refused, or too late
                                       unlink, rmdir
    not the directory at that path: another one
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from mmurace.protocol.errors import UserError

PREFIX: Final = "mmu-emulator-"
NAME: Final = re.compile(PREFIX + r"[a-z0-9_]{8}")
"""What ``tempfile.mkdtemp`` makes of the prefix."""
SOCKET_PATH_BYTES_MAX: Final = 107
"""``sun_path`` of unix(7), without the byte that ends it."""
ROOM: Final = len(f"/{PREFIX}12345678/listener-12345678")
"""What comes after the directory for temporary files in the longest path of a socket."""
ELSEWHERE: Final = ("/tmp", "/var/tmp", "/dev/shm")
"""Where to if ``TMPDIR`` is too long, or nothing can be made there."""
TRIES_MAX: Final = 10


class SocketDirectory:
    """One, from making to removing; the lock keeps others from sweeping it."""

    def __init__(self) -> None:
        """Sweep, then make and lock it.  Raises ``UserError`` if there is no place for it."""
        self.path, self._lock = "", -1
        for place in _places():
            sweep(place)
            if self._make(place):
                return
        raise UserError(
            "TMPDIR",
            f"no socket can be made in {', '.join(map(str, (_temporary(), *ELSEWHERE)))}",
            f"a directory to write to, of at most {SOCKET_PATH_BYTES_MAX - ROOM} bytes",
        )

    def _make(self, place: Path) -> bool:
        for _ in range(TRIES_MAX):
            try:
                path = tempfile.mkdtemp(prefix=PREFIX, dir=place)  # 0700
            except OSError:
                return False
            lock = _locked(Path(path))
            if lock is not None:
                self.path, self._lock = path, lock
                return True
            with suppress(OSError):  # swept, or nothing can be locked here
                Path(path).rmdir()
        return False

    def remove(self) -> None:
        """Remove it with its sockets.  Twice does no harm, nor that it is gone already."""
        if self._lock >= 0:
            _remove(Path(self.path))
            os.close(self._lock)
            self._lock = -1


def sweep(place: Path) -> None:
    """Remove the directories of owners that are dead; nobody else's, and nothing but sockets."""
    with suppress(OSError):
        for path in place.iterdir():
            if NAME.fullmatch(path.name) and path.lstat().st_uid == os.geteuid():
                _sweep(path)


def _sweep(path: Path) -> None:
    lock = _locked(path)
    if lock is not None:
        _remove(path)
        os.close(lock)


def _locked(path: Path) -> int | None:
    """An open file that holds the lock on the directory at ``path``; None: somebody else does."""
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(directory), path.lstat()):
            return directory
    except OSError:
        pass
    os.close(directory)
    return None


def _remove(path: Path) -> None:
    """Nothing but sockets is ever in it; with anything else in it it is left alone."""
    with suppress(OSError):
        inside = list(path.iterdir())
        if all(stat.S_ISSOCK(file.lstat().st_mode) for file in inside):
            for file in inside:
                file.unlink()
            path.rmdir()


def _places() -> Iterator[Path]:
    for place in dict.fromkeys((_temporary(), *map(Path, ELSEWHERE))):
        if len(os.fsencode(place)) + ROOM <= SOCKET_PATH_BYTES_MAX:
            yield place


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:  # it has tried some, and can write to none
        return Path(ELSEWHERE[0])
