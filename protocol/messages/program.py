"""Operations: what programs ask of nodes, one message each.

The broker feeds a program's next operation when the last one is done; the id of the message is
``program/index``.
"""

from __future__ import annotations

from typing import ClassVar

from mmurace.protocol.messages.base import Message, Request


class OpDone(Message, frozen=True):
    """The operation's outcome, as the system call would return it: 0 or more, or -errno."""

    result: int


class Operation(Request[OpDone], frozen=True):
    """Base of all operations."""

    ONLY_A_BASE: ClassVar[bool] = False
    """Nobody is asked for it: others are derived from it (said of itself, not of those)."""
    FUNCTION: ClassVar[str] = ""
    """The kernel function that serves it; of an access, that serves its fault."""
    CHANGES: ClassVar[str] = ""
    """The kernel function in which it takes an entry away."""
    AGENT: ClassVar[str] = ""
    """Whose access it is (``user``), if it is one: its fields are ``write`` and ``value``."""
    CALLED: ClassVar[str] = ""
    """What is said of its node while it runs, if not ``FUNCTION``."""
    DATA: ClassVar[str] = ""
    """What its loads and stores of memory are called (``guest {}``), if not by ``AGENT``."""
    OWN_ADDRESS: ClassVar[str] = ""
    """The field with an address of its node's own, which stands for one of an mm."""
    REFUSES_RANGES: ClassVar[bool] = False
    """A range that no mm can have is refused by the call itself, and may be asked for."""
    GIVES_RANGE: ClassVar[bool] = False
    """From then on addresses of a secondary's own stand for [address, address + length)."""


def operation_kinds() -> list[type[Operation]]:
    """Every operation that there is by now: those that others are not derived from."""
    found: list[type[Operation]] = []
    todo = list(Operation.__subclasses__())
    while todo:
        kind = todo.pop(0)
        derived = kind.__subclasses__()
        todo += derived
        if not derived and not vars(kind).get("ONLY_A_BASE"):
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
    FUNCTION: ClassVar[str] = "mmap_region"
    CHANGES: ClassVar[str] = "zap_pte_range"


class Mremap(Operation, frozen=True):
    """``mremap(MREMAP_MAYMOVE | MREMAP_FIXED)``; in place if the addresses are equal."""

    mm: str
    address: int
    length: int
    new_address: int
    new_length: int
    FUNCTION: ClassVar[str] = "move_page_tables"
    CHANGES: ClassVar[str] = "move_ptes"


class Fork(Operation, frozen=True):
    """``fork``: ``child``, an mm in which nothing is mapped, becomes a copy of ``mm``."""

    mm: str
    child: str
    FUNCTION: ClassVar[str] = "dup_mmap"
    CHANGES: ClassVar[str] = "copy_present_pte"


class ClearRefs(Operation, frozen=True):
    """4 is written to ``/proc/PID/clear_refs``: from now on stores make pages soft-dirty again."""

    mm: str
    FUNCTION: ClassVar[str] = "clear_refs_write"
    CHANGES: ClassVar[str] = "clear_soft_dirty"


class Execve(Operation, frozen=True):
    """``execve`` in the process of ``mm``: nothing is mapped in it afterwards."""

    mm: str
    FUNCTION: ClassVar[str] = "exec_mmap"
    CHANGES: ClassVar[str] = "zap_pte_range"


class Exit(Operation, frozen=True):
    """``exit_group`` of the process of ``mm``: nothing is mapped in it afterwards."""

    mm: str
    FUNCTION: ClassVar[str] = "exit_mmap"
    CHANGES: ClassVar[str] = "zap_pte_range"


class Truncate(Operation, frozen=True):
    """``ftruncate``: the file has ``size`` bytes from now on."""

    file: str
    size: int
    FUNCTION: ClassVar[str] = "unmap_mapping_range"
    CHANGES: ClassVar[str] = "zap_pte_range"


class Writeback(Operation, frozen=True):
    """A flusher thread writes the dirty pages of a file, which stay in memory."""

    file: str
    FUNCTION: ClassVar[str] = "write_cache_pages"
    CHANGES: ClassVar[str] = "page_mkclean_one"


class Munmap(Operation, frozen=True):
    """``munmap``."""

    mm: str
    address: int
    length: int
    FUNCTION: ClassVar[str] = "do_vmi_munmap"
    CHANGES: ClassVar[str] = "zap_pte_range"


class Brk(Operation, frozen=True):
    """``brk``: move the end of the heap to ``address`` (0: only ask)."""

    mm: str
    address: int
    FUNCTION: ClassVar[str] = "do_brk"
    CHANGES: ClassVar[str] = "zap_pte_range"


class Mprotect(Operation, frozen=True):
    """``mprotect``."""

    mm: str
    address: int
    length: int
    read: bool
    write: bool
    FUNCTION: ClassVar[str] = "do_mprotect_pkey"
    CHANGES: ClassVar[str] = "change_pte_range"


class ChangeProtNuma(Operation, frozen=True):
    """NUMA balancing of ``mm``: who next uses a page of [address, address + length) shall fault, so
    that the page can be moved to his node."""

    mm: str
    address: int
    length: int
    FUNCTION: ClassVar[str] = "task_numa_work"
    CHANGES: ClassVar[str] = "change_pte_range"


class MadviseDontneed(Operation, frozen=True):
    """``madvise(MADV_DONTNEED)``."""

    mm: str
    address: int
    length: int
    FUNCTION: ClassVar[str] = "madvise_dontneed"
    CHANGES: ClassVar[str] = "zap_pte_range"


class MadviseFree(Operation, frozen=True):
    """``madvise(MADV_FREE)``."""

    mm: str
    address: int
    length: int
    FUNCTION: ClassVar[str] = "madvise_free"
    CHANGES: ClassVar[str] = "madvise_free_pte_range"


class MadviseNohugepage(Operation, frozen=True):
    """``madvise(MADV_NOHUGEPAGE)``: a flag of the VMA; others without it do not merge with it."""

    mm: str
    address: int
    length: int
    FUNCTION: ClassVar[str] = "hugepage_madvise"
    CHANGES: ClassVar[str] = "hugepage_madvise"


class Kswapd(Operation, frozen=True):
    """kswapd wakes up and looks at ``pages`` pages; it has no mm of its own."""

    pages: int
    FUNCTION: ClassVar[str] = "shrink_folio_list"
    CHANGES: ClassVar[str] = "try_to_unmap_one"


class ShrinkActiveList(Operation, frozen=True):
    """kswapd asks of ``pages`` pages whether they were used since it last asked (aging)."""

    pages: int
    FUNCTION: ClassVar[str] = "folio_referenced"
    CHANGES: ClassVar[str] = "ptep_test_and_clear_young"


class KsmScan(Operation, frozen=True):
    """ksmd looks at [address, address + length) of ``mm`` and merges pages of equal content."""

    mm: str
    address: int
    length: int
    FUNCTION: ClassVar[str] = "ksm_do_scan"
    CHANGES: ClassVar[str] = "replace_page"


class PinnedAccess(Operation, frozen=True):
    """A driver pins a page (``FOLL_PIN``), its device loads or stores a word of the frame, and the
    driver unpins it, as for an RDMA region without on-demand paging.
    """

    mm: str
    address: int
    write: bool
    value: int = 0
    FUNCTION: ClassVar[str] = "ib_umem_get"
    CHANGES: ClassVar[str] = "wp_page_copy"


class OomReap(Operation, frozen=True):
    """The OOM killer takes the process of ``mm``, and its reaper the memory."""

    mm: str
    FUNCTION: ClassVar[str] = "__oom_reap_task_mm"
    CHANGES: ClassVar[str] = "zap_pte_range"


class MigratePages(Operation, frozen=True):
    """``move_pages``: migrate the pages mapped in [address, address + length)."""

    mm: str
    address: int
    length: int
    FUNCTION: ClassVar[str] = "move_pages"
    CHANGES: ClassVar[str] = "try_to_migrate_one"


class Touch(Operation, frozen=True):
    """A user-mode load or store by a thread of ``mm``; ``value`` is what a store writes."""

    mm: str
    address: int
    write: bool
    value: int = 0
    FUNCTION: ClassVar[str] = "handle_mm_fault"
    CHANGES: ClassVar[str] = "wp_page_copy"
    AGENT: ClassVar[str] = "user"
    CALLED: ClassVar[str] = "user access"
