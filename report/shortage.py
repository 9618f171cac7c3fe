"""What the machine had not enough of, in one line."""

from __future__ import annotations

import errno
import resource
from typing import Final

WHERE_UNKNOWN: Final = "a file of the run, or the output"


def shortage(error: BaseException) -> str:
    """What an ``OSError`` or a ``MemoryError`` was about; empty for any other error."""
    if isinstance(error, MemoryError):
        return f"out of memory{_limit(resource.RLIMIT_AS, 'bytes of address space, ulimit -v')}"
    if not (isinstance(error, OSError) and error.strerror):
        return ""
    if error.errno == errno.EMFILE:
        limit = _limit(resource.RLIMIT_NOFILE, "descriptors, ulimit -n")
        return f"{_where(error, 'this process')}: {error.strerror}{limit}"
    return f"{_where(error, WHERE_UNKNOWN)}: {error.strerror}"


def _where(error: OSError, unknown: str) -> str:
    return str(error.filename or unknown)


def _limit(kind: int, what: str) -> str:
    """The limit that was reached, if there is one."""
    soft, _ = resource.getrlimit(kind)
    return "" if soft == resource.RLIM_INFINITY else f" (at most {soft} {what})"
