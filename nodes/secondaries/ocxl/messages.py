"""What an ``ocxl`` node (an OpenCAPI link) answers, and what is asked of others for its sake.

Two numbers name an address space.  The *PASID* names a context of the accelerator and is the index
of its process element in the Shared Process Area.  The *PID* (``mm->context.id``) is in that
element; it tags translations, and the process table leads from it to the page table.
"""

from __future__ import annotations

from typing import ClassVar

from mmurace.protocol.lock import Lock
from mmurace.protocol.messages.base import Ack, Request
from mmurace.protocol.messages.book3s64 import MmName
from mmurace.protocol.messages.memory import Count, Flag
from mmurace.protocol.messages.program import Operation
from mmurace.protocol.told import ESSENTIAL, Told, over_range

# ---- memory: struct ocxl_link and the Shared Process Area ------------------------------------


_SPA_LOCK = Lock("SpaLock", "spa_lock of {link}")
_ATSD_LOCK = Lock("AtsdLock", "atsd_lock of {link}", spins=True)


class SpaLock(Request[Ack], frozen=True):
    """``mutex_lock(&spa->spa_lock)``; granted in turn."""

    link: str
    OBJECT: ClassVar[tuple[str, ...]] = ("spa_lock", "link")
    TAKES: ClassVar[Lock | None] = _SPA_LOCK


class SpaUnlock(Request[Ack], frozen=True):
    """``mutex_unlock(&spa->spa_lock)``."""

    link: str
    OBJECT: ClassVar[tuple[str, ...]] = ("spa_lock", "link")
    GIVES_BACK: ClassVar[Lock | None] = _SPA_LOCK


class AtsdLock(Request[Ack], frozen=True):
    """``spin_lock(&link->atsd_lock)``; granted in turn."""

    link: str
    OBJECT: ClassVar[tuple[str, ...]] = ("atsd_lock", "link")
    TAKES: ClassVar[Lock | None] = _ATSD_LOCK


class AtsdUnlock(Request[Ack], frozen=True):
    """``spin_unlock(&link->atsd_lock)``."""

    link: str
    OBJECT: ClassVar[tuple[str, ...]] = ("atsd_lock", "link")
    GIVES_BACK: ClassVar[Lock | None] = _ATSD_LOCK


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


class ContextClose(Request[Count], frozen=True):
    """``ctx->status = CLOSED``, under ``status_mutex``: the PASID of what was ATTACHED until then.

    0 if the mm's process has no such context (any more).
    """

    link: str
    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("contexts", "link")


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


class AtsdLaunch(Request[Ack], frozen=True):
    """A write to the ATSD launch register: one page of a PID, or (0, ULONG_MAX) all of it.

    Answered when the status register says that it is done.
    """

    pid: int
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("pid_tlb", "pid")
    TOLD: ClassVar[Told] = Told(
        function="pnv_ocxl_tlb_invalidate",
        called="ATSD",
        wording=over_range("ATSD"),
        weight=ESSENTIAL,
        row="receiver",
    )


class SpaClearCache(Request[Ack], frozen=True):
    """``opal_npu_spa_clear_cache``: the link drops its copy of a process element."""

    pasid: int
    OBJECT: ClassVar[tuple[str, ...]] = ("pe_cache", "pasid")
    TOLD: ClassVar[Told] = Told(function="pnv_ocxl_spa_remove_pe_from_cache", weight=ESSENTIAL)


class AfuStart(Request[Ack], frozen=True):
    """The process gives the accelerator work under its PASID."""

    mm: str
    pasid: int
    OBJECT: ClassVar[tuple[str, ...]] = ("afu",)


class TerminatePasid(Request[Ack], frozen=True):
    """``ocxl_config_terminate_pasid``: answered once the accelerator is done with the PASID."""

    pasid: int
    OBJECT: ClassVar[tuple[str, ...]] = ("afu",)
    TOLD: ClassVar[Told] = Told(function="ocxl_config_terminate_pasid", weight=ESSENTIAL)


# ---- a processor -----------------------------------------------------------------------------


class XslFault(Request[Flag], frozen=True):
    """``xsl_fault_handler``: a translation fault of a link; RESTART (true) or ADDRESS_ERROR."""

    link: str
    pasid: int
    address: int
    write: bool


# ---- operations, and what a processor answers ------------------------------------------------


class AfuTouch(Operation, frozen=True):
    """A load or store of an accelerator on an OpenCAPI link, for the process of ``mm``."""

    mm: str
    address: int
    write: bool
    value: int = 0
    FUNCTION: ClassVar[str] = "xsl_fault_handler_bh"
    CHANGES: ClassVar[str] = "wp_page_copy"
    AGENT: ClassVar[str] = "accelerator"
    CALLED: ClassVar[str] = "accelerator access"


class OcxlAttach(Operation, frozen=True):
    """``OCXL_IOCTL_ATTACH``: the process of ``mm`` opens and attaches a context of a link."""

    mm: str
    link: str
    FUNCTION: ClassVar[str] = "ocxl_link_add_pe"
    CHANGES: ClassVar[str] = "ocxl_link_add_pe"


class OcxlDetach(Operation, frozen=True):
    """The process of ``mm`` closes its context of a link (``afu_release``)."""

    mm: str
    link: str
    FUNCTION: ClassVar[str] = "ocxl_link_remove_pe"
    CHANGES: ClassVar[str] = "ocxl_link_remove_pe"
