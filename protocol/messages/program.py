"""Operations: what programs ask of processors, devices and vCPUs, one message each.

The broker feeds a program's next operation when the last one is done; the id of the message is
``program/index``.
"""

from __future__ import annotations

from protocol.messages.base import Message, Request


class OpDone(Message, frozen=True):
    """The operation's outcome, as the system call would return it: 0 or more, or -errno."""

    result: int


class Operation(Request[OpDone], frozen=True):
    """Base of all operations."""


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


class Dma(Operation, frozen=True):
    """A device's load or store to (mm's PASID, address)."""

    mm: str
    address: int
    write: bool
    value: int = 0


class AfuTouch(Operation, frozen=True):
    """A load or store of an accelerator on an OpenCAPI link, for the process of ``mm``."""

    mm: str
    address: int
    write: bool
    value: int = 0


class OcxlAttach(Operation, frozen=True):
    """``OCXL_IOCTL_ATTACH``: the process of ``mm`` opens and attaches a context of a link."""

    mm: str
    link: str


class OcxlDetach(Operation, frozen=True):
    """The process of ``mm`` closes its context of a link (``afu_release``)."""

    mm: str
    link: str


class KvmAddMemslot(Operation, frozen=True):
    """``KVM_SET_USER_MEMORY_REGION``: guest frames from ``gfn`` are at [address, + length)."""

    vm: str
    gfn: int
    address: int
    length: int


class GuestTouch(Operation, frozen=True):
    """A guest load or store to a guest-physical address."""

    gpa: int
    write: bool
    value: int = 0


class GuestApic(Operation, frozen=True):
    """A guest access to its APIC page: must trap, never reach memory."""

    gpa: int
    write: bool
    value: int = 0


class Sigkill(Operation, frozen=True):
    """``SIGKILL`` for a vCPU's thread; done once ``do_exit`` has run."""


class DeviceRemove(Operation, frozen=True):
    """A device is pulled out, and the hotplug worker takes it off its unit (``pciehp_ist``)."""

    unit: str
    device: str


class KvmDestroyVm(Operation, frozen=True):
    """The last reference to a VM is dropped (``kvm_put_kvm``), so it is destroyed.

    Each of its vCPUs holds one: it comes after all that they do, or after their ``SIGKILL``.
    """

    vm: str
