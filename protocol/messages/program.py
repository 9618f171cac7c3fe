"""Operations: what programs ask of processors, devices and vCPUs, one message each.

The broker feeds a program's next operation when the last one is done; the id of the message is
``program/index``.
"""

from __future__ import annotations

from mmurace.protocol.messages.base import Message, Request


class OpDone(Message, frozen=True):
    """The operation's outcome, as the system call would return it: 0 or more, or -errno."""

    result: int


class Operation(Request[OpDone], frozen=True):
    """Base of all operations."""


def operation_kinds() -> list[type[Operation]]:
    """Every operation that there is by now: those that others are not derived from."""
    found: list[type[Operation]] = []
    todo = list(Operation.__subclasses__())
    while todo:
        kind = todo.pop(0)
        derived = kind.__subclasses__()
        todo += derived
        if not derived and kind.__name__ != "DeviceAccess":
            found.append(kind)
    return found


class Mmap(Operation, frozen=True):
    """``mmap(MAP_FIXED)`` of [address, address + length): anonymous and private, or a file."""

    mm: str
    address: int
    length: int
    read: bool
    write: bool
    file: str = ""
    offset: int = 0
    shared: bool = False
    """``MAP_SHARED``; only of a file."""


class Mremap(Operation, frozen=True):
    """``mremap(MREMAP_MAYMOVE | MREMAP_FIXED)``; in place if the addresses are equal."""

    mm: str
    address: int
    length: int
    new_address: int
    new_length: int


class Fork(Operation, frozen=True):
    """``fork``: ``child``, an mm in which nothing is mapped, becomes a copy of ``mm``."""

    mm: str
    child: str


class ClearRefs(Operation, frozen=True):
    """4 is written to ``/proc/PID/clear_refs``: from now on stores make pages soft-dirty again."""

    mm: str


class Execve(Operation, frozen=True):
    """``execve`` in the process of ``mm``: nothing is mapped in it afterwards."""

    mm: str


class Exit(Operation, frozen=True):
    """``exit_group`` of the process of ``mm``: nothing is mapped in it afterwards."""

    mm: str


class Truncate(Operation, frozen=True):
    """``ftruncate``: the file has ``size`` bytes from now on."""

    file: str
    size: int


class Writeback(Operation, frozen=True):
    """A flusher thread writes the dirty pages of a file, which stay in memory."""

    file: str


class Munmap(Operation, frozen=True):
    """``munmap``."""

    mm: str
    address: int
    length: int


class Brk(Operation, frozen=True):
    """``brk``: move the end of the heap to ``address`` (0: only ask)."""

    mm: str
    address: int


class Mprotect(Operation, frozen=True):
    """``mprotect``."""

    mm: str
    address: int
    length: int
    read: bool
    write: bool


class MadviseDontneed(Operation, frozen=True):
    """``madvise(MADV_DONTNEED)``."""

    mm: str
    address: int
    length: int


class MadviseFree(Operation, frozen=True):
    """``madvise(MADV_FREE)``."""

    mm: str
    address: int
    length: int


class Kswapd(Operation, frozen=True):
    """kswapd wakes up and looks at ``pages`` pages; it has no mm of its own."""

    pages: int


class MigratePages(Operation, frozen=True):
    """``move_pages``: migrate the pages mapped in [address, address + length)."""

    mm: str
    address: int
    length: int


class Touch(Operation, frozen=True):
    """A user-mode load or store by a thread of ``mm``; ``value`` is what a store writes."""

    mm: str
    address: int
    write: bool
    value: int = 0
