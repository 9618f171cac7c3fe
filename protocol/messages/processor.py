"""What a processor (a ``cpu`` node, or the CPU under a thread that runs a guest) answers."""

from __future__ import annotations

from typing import ClassVar

from mmurace.protocol.messages.base import Ack, Request
from mmurace.protocol.told import Told


class FlushTlbIpi(Request[Ack], frozen=True):
    """``flush_tlb_func``: drop translations of [start, end); waits while interrupts are off."""

    mm: str
    start: int
    end: int
    tables: bool = False
    """``freed_tables``: page tables that map some of it are to be freed."""
    TOLD: ClassVar[Told] = Told(row="receiver")


class Tlbi(Request[Ack], frozen=True):
    """Broadcast TLB maintenance (arm64 ``tlbi``): takes effect whatever the interrupt state.

    The issuer learns of completion only by its own ``dsb``, which waits for every observer.
    """

    mm: str
    start: int
    end: int
    tables: bool = False
    """It is not for the last level only, for page tables are to be freed."""
    OBJECT: ClassVar[tuple[str, ...]] = ("tlb", "mm")
    TOLD: ClassVar[Told] = Told(row="receiver")


class SyncIpi(Request[Ack], frozen=True):
    """``tlb_remove_table_smp_sync``: an empty interrupt; answered with interrupts on."""

    OBJECT: ClassVar[tuple[str, ...]] = ("interrupts",)


class SendSigkill(Request[Ack], frozen=True):
    """``do_send_sig_info(SIGKILL)`` to the threads of ``mm`` on this processor."""

    mm: str
    OBJECT: ClassVar[tuple[str, ...]] = ("signals",)


class SynchronizeSrcu(Request[Ack], frozen=True):
    """Answered once no srcu read section is left on this CPU of those that are open now.

    The counters of sections are per CPU (kernel/rcu/srcutree.c), so a reader sends no message.
    """

    OBJECT: ClassVar[tuple[str, ...]] = ("srcu",)
    MAY_SLEEP: ClassVar[bool] = True
