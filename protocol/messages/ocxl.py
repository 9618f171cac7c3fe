"""What an ``ocxl`` node (an OpenCAPI link) answers, and what is asked of others for its sake.

Two numbers name an address space.  The *PASID* names a context of the accelerator and is the index
of its process element in the Shared Process Area.  The *PID* (``mm->context.id``) is in that
element; it tags translations, and the process table leads from it to the page table.
"""

from __future__ import annotations

from typing import ClassVar

from protocol.messages.base import Ack, Message, Request
from protocol.messages.memory import Count, Flag


def pid_tag(pid: int) -> str:
    """The tag of translations under a PID: ``pid1``."""
    return f"pid{pid}"


class MmName(Message, frozen=True):
    """An mm by its name; empty: none."""

    mm: str


# ---- memory: mm->context ---------------------------------------------------------------------


class ContextIdAlloc(Request[Count], frozen=True):
    """``alloc_context_id``: the PID of the mm, the lowest free one if it has none."""

    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("context_id",)


class ContextIdLoad(Request[Count], frozen=True):
    """``mm->context.id``; 0: none."""

    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("context_id", "mm")
    ACCESS: ClassVar[str] = "read"


class Mmgrab(Request[Ack], frozen=True):
    """``mmgrab``: the mm, and with it its PID, stays until it is dropped as often."""

    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("context_id",)


class Mmdrop(Request[Ack], frozen=True):
    """``mmdrop``; the last one is ``destroy_context``: the PID is free, its table entry is 0."""

    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("context_id",)


class ProcessTableLoad(Request[MmName], frozen=True):
    """A walker loads the process table's entry: whose page table a PID leads to."""

    pid: int
    OBJECT: ClassVar[tuple[str, ...]] = ("context_id",)
    ACCESS: ClassVar[str] = "read"


class ActiveCpusLoad(Request[Count], frozen=True):
    """``mm->context.active_cpus``: processors in the mm's mask, and one more for coprocessors."""

    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("cpumask", "mm")
    ACCESS: ClassVar[str] = "read"


class ActiveCpusAdd(Request[Ack], frozen=True):
    """``inc_mm_active_cpus`` (+1) or ``dec_mm_active_cpus`` (-1) on behalf of coprocessors."""

    mm: str
    delta: int
    OBJECT: ClassVar[tuple[str, ...]] = ("cpumask", "mm")


class CoprosAdd(Request[Count], frozen=True):
    """``mm->context.copros``: one more (+1), one less (-1) or a read (0)."""

    mm: str
    delta: int
    OBJECT: ClassVar[tuple[str, ...]] = ("copros", "mm")


class NotifierAdd(Request[Ack], frozen=True):
    """``hlist_add_head_rcu`` in ``__mmu_notifier_register``, under ``mm_take_all_locks``."""

    mm: str
    driver: str
    node: str
    OBJECT: ClassVar[tuple[str, ...]] = ("subscriptions", "mm")


# ---- memory: struct ocxl_link and the Shared Process Area ------------------------------------


class SpaLock(Request[Ack], frozen=True):
    """``mutex_lock(&spa->spa_lock)``; granted in turn."""

    link: str
    OBJECT: ClassVar[tuple[str, ...]] = ("spa_lock", "link")


class SpaUnlock(Request[Ack], frozen=True):
    """``mutex_unlock(&spa->spa_lock)``."""

    link: str
    OBJECT: ClassVar[tuple[str, ...]] = ("spa_lock", "link")


class AtsdLock(Request[Ack], frozen=True):
    """``spin_lock(&link->atsd_lock)``; granted in turn."""

    link: str
    OBJECT: ClassVar[tuple[str, ...]] = ("atsd_lock", "link")


class AtsdUnlock(Request[Ack], frozen=True):
    """``spin_unlock(&link->atsd_lock)``."""

    link: str
    OBJECT: ClassVar[tuple[str, ...]] = ("atsd_lock", "link")


class PasidAlloc(Request[Count], frozen=True):
    """``ocxl_context_alloc``: the lowest free PASID; 0 if the mm has a context here already."""

    link: str
    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("contexts", "link")


class PasidFind(Request[Count], frozen=True):
    """The PASID of the context that the mm's process has open; 0: none."""

    link: str
    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("contexts", "link")
    ACCESS: ClassVar[str] = "read"


class PasidFree(Request[Ack], frozen=True):
    """``ocxl_context_free``: the PASID may have another owner from here on."""

    link: str
    pasid: int
    OBJECT: ClassVar[tuple[str, ...]] = ("contexts", "link")


class SpaStore(Request[Ack], frozen=True):
    """Write a process element of the Shared Process Area; a PID of 0 clears it."""

    link: str
    pasid: int
    pid: int
    OBJECT: ClassVar[tuple[str, ...]] = ("spa", "link", "pasid")


class SpaLoad(Request[Count], frozen=True):
    """The link loads a process element: its PID, 0 if it is not valid."""

    link: str
    pasid: int
    OBJECT: ClassVar[tuple[str, ...]] = ("spa", "link", "pasid")
    ACCESS: ClassVar[str] = "read"


class PeTreeInsert(Request[Ack], frozen=True):
    """``radix_tree_insert(&spa->pe_tree)``: whose faults those of a PASID are."""

    link: str
    pasid: int
    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("pe_tree", "link", "pasid")


class PeTreeLookup(Request[MmName], frozen=True):
    """``radix_tree_lookup(&spa->pe_tree)``."""

    link: str
    pasid: int
    OBJECT: ClassVar[tuple[str, ...]] = ("pe_tree", "link", "pasid")
    ACCESS: ClassVar[str] = "read"


class PeTreeDelete(Request[MmName], frozen=True):
    """``radix_tree_delete(&spa->pe_tree)``: what was there."""

    link: str
    pasid: int
    OBJECT: ClassVar[tuple[str, ...]] = ("pe_tree", "link", "pasid")


# ---- the link --------------------------------------------------------------------------------


class Tlbie(Request[Ack], frozen=True):
    """A broadcast ``tlbie`` and its ``tlbsync``, as a link that snoops the bus sees them.

    (0, ULONG_MAX) is everything of the PID.
    """

    pid: int
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("xsl", "pid")


class AtsdLaunch(Request[Ack], frozen=True):
    """A write to the ATSD launch register: one page of a PID, or (0, ULONG_MAX) all of it.

    Answered when the status register says that it is done.
    """

    pid: int
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("xsl", "pid")


class SpaClearCache(Request[Ack], frozen=True):
    """``opal_npu_spa_clear_cache``: the link drops its copy of a process element."""

    pasid: int
    OBJECT: ClassVar[tuple[str, ...]] = ("pe_cache", "pasid")


class AfuStart(Request[Ack], frozen=True):
    """The process gives the accelerator work under its PASID."""

    mm: str
    pasid: int
    OBJECT: ClassVar[tuple[str, ...]] = ("afu",)


class TerminatePasid(Request[Ack], frozen=True):
    """``ocxl_config_terminate_pasid``: answered once the accelerator is done with the PASID."""

    pasid: int
    OBJECT: ClassVar[tuple[str, ...]] = ("afu",)


# ---- a processor -----------------------------------------------------------------------------


class XslFault(Request[Flag], frozen=True):
    """``xsl_fault_handler``: a translation fault of a link; RESTART (true) or ADDRESS_ERROR."""

    link: str
    pasid: int
    address: int
    write: bool
