"""The ``memory`` node of a POWER machine: ``mm->context`` of book3s64."""

from __future__ import annotations

from collections.abc import Mapping

from mmurace.nodes.driver import Handler, Port
from mmurace.nodes.memory import Memory
from mmurace.nodes.world import World
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.messages.base import Ack, Message
from mmurace.protocol.messages.book3s64 import (
    ActiveCpusAdd,
    ActiveCpusLoad,
    ContextIdAlloc,
    ContextIdLoad,
    CoprosAdd,
    Mmdrop,
    Mmgrab,
    MmName,
    ProcessTableLoad,
    pid_tag,
)
from mmurace.protocol.messages.memory import Count
from mmurace.protocol.records import Coverage, TagAlloc, TagFree


def lowest_free(used: set[int]) -> int:
    """As ``ida_alloc`` gives numbers out: the lowest from 1, so that one is used again at once."""
    return next(number for number in range(1, len(used) + 2) if number not in used)


class Book3s64Memory(Memory):
    """``memory`` with ``mm->context``: PIDs, references, and who counts as running an mm."""

    def __init__(self, name: str, world: World, port: Port) -> None:
        super().__init__(name, world, port)
        self.context_ids: dict[str, int] = {}
        """PIDs (``mm->context.id``)."""
        self.mm_counts = dict.fromkeys(world.mms, 1)
        self.copros = dict.fromkeys(world.mms, 0)
        self.active_extra = dict.fromkeys(world.mms, 0)
        self.given: dict[tuple[str, int], str] = {}
        """Number -> whose it was last."""

    def handlers(self) -> Mapping[type[Message], Handler]:
        """Those of any memory, and one for each message of ``protocol.messages.book3s64`` to it."""
        return {
            **super().handlers(),
            ContextIdAlloc: self.context_id_alloc, ContextIdLoad: self.context_id_load,
            Mmgrab: self.mmgrab, Mmdrop: self.mmdrop,
            ProcessTableLoad: self.process_table_load,
            ActiveCpusLoad: self.active_cpus_load, ActiveCpusAdd: self.active_cpus_add,
            CoprosAdd: self.copros_add,
        }  # fmt: skip

    def context_id_alloc(self, message: ContextIdAlloc, _: Envelope) -> Count:
        """Give the mm a PID if it has none."""
        mm = message.mm
        self.mm_counts[mm] = max(self.mm_counts[mm], 1)
        if mm not in self.context_ids:
            pid = self.context_ids[mm] = lowest_free(set(self.context_ids.values()))
            self._given("pid_reused", ("pid", pid), mm)
            self.port.emit(TagAlloc(pid_tag(pid), mm))
        return Count(self.context_ids[mm])

    def context_id_load(self, message: ContextIdLoad, _: Envelope) -> Count:
        """The mm's PID."""
        return Count(self.context_ids.get(message.mm, 0))

    def mmgrab(self, message: Mmgrab, _: Envelope) -> Ack:
        """Take a reference to the mm."""
        self.mm_counts[message.mm] += 1
        return Ack()

    def mmdrop(self, message: Mmdrop, _: Envelope) -> Ack:
        """Drop a reference; with the last one the PID goes."""
        mm = message.mm
        if self.mm_counts[mm] == 0:
            return Ack()  # the process had ended before, and nobody has begun another one
        self.mm_counts[mm] -= 1
        if self.mm_counts[mm] == 0 and mm in self.context_ids:
            self.port.emit(TagFree(pid_tag(self.context_ids.pop(mm)), mm))
        return Ack()

    def process_table_load(self, message: ProcessTableLoad, _: Envelope) -> MmName:
        """Whose page table it is."""
        return MmName(next((m for m, pid in self.context_ids.items() if pid == message.pid), ""))

    def active_cpus_load(self, message: ActiveCpusLoad, _: Envelope) -> Count:
        """The count, which ``switch_mm`` keeps beside the mask."""
        mm = message.mm
        return Count(len(self.mms[mm].cpumask) + self.active_extra[mm])

    def active_cpus_add(self, message: ActiveCpusAdd, _: Envelope) -> Ack:
        """Move what coprocessors add to it."""
        self.active_extra[message.mm] += message.delta
        return Ack()

    def copros_add(self, message: CoprosAdd, _: Envelope) -> Count:
        """Move or read the count of contexts of coprocessors (``atomic_dec_if_positive``)."""
        self.copros[message.mm] = max(0, self.copros[message.mm] + message.delta)
        return Count(self.copros[message.mm])

    def _given(self, point: str, number: tuple[str, int], mm: str) -> None:
        """Note that a number was another mm's before."""
        if self.given.get(number, mm) != mm:
            self.port.emit(Coverage(point))
        self.given[number] = mm
