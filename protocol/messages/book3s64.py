"""What ``memory`` answers on a POWER machine: ``mm->context`` of book3s64, and its ``tlbie``.

The *PID* (``mm->context.id``) tags translations, and the process table leads from it to the page
table.
"""

from __future__ import annotations

from typing import ClassVar

from mmurace.protocol.messages.base import Ack, Message, Request
from mmurace.protocol.messages.memory import Count
from mmurace.protocol.told import ESSENTIAL, Told


def pid_tag(pid: int) -> str:
    """The tag of translations under a PID: ``pid1``."""
    return f"pid{pid}"


class MmName(Message, frozen=True):
    """An mm by its name; empty: none."""

    mm: str


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


class Tlbie(Request[Ack], frozen=True):
    """A broadcast ``tlbie`` and its ``tlbsync``, as a link that snoops the bus sees them.

    (0, ULONG_MAX) is everything of the PID.
    """

    pid: int
    start: int
    end: int
    OBJECT: ClassVar[tuple[str, ...]] = ("pid_tlb", "pid")
    TOLD: ClassVar[Told] = Told(weight=ESSENTIAL, row="receiver")
