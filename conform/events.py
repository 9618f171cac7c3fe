"""What a run did, operation by operation, in the words of the tables.

    start:A-B/EVENT  end:A-B  endonly:A-B   the notifier's bracket
    ir:A-B  as:A-B                          invalidate_range, arch_invalidate_secondary_tlbs
    flush:A-B                               the processors dropped their entries
    free:P  migset:P  migdone:P             the frame of page P; its migration entry
    lock:r  lock:w  unlock                  mmap_lock of the VMM
    spte:r  spte:w                          KVM made its entry

A-B are pages of the memory, A to B-1, what lies outside is cut off; ``all`` is everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.conform.program import MM, START, Said
from mmurace.nodes.build import build_all
from mmurace.nodes.secondaries.kvm.messages import SpteSet
from mmurace.protocol import records as r
from mmurace.protocol.envelope import Envelope, Handled, operation_of
from mmurace.protocol.limits import PAGE_SHIFT, PAGE_SIZE, ULONG_MAX
from mmurace.protocol.messages.memory_locks import MmapDowngrade, MmapLock, MmapUnlock
from mmurace.protocol.messages.processor import Tlbi
from mmurace.protocol.messages.vma_lock import MmapReadTrylock
from mmurace.protocol.pte import frame_of, is_migration, names_page, permits, pte_present

EVENTS: Final = {
    "CLEAR": "clear", "UNMAP": "unmap", "PROTECTION_VMA": "protvma",
    "PROTECTION_PAGE": "protpage", "SOFT_DIRTY": "softdirty", "MIGRATE": "migrate",
}  # fmt: skip
SEED: Final = 1
"""Of the one schedule: what runs alone has only one."""


class Listener:
    """Turns deliveries into words."""

    def __init__(self, said: Said) -> None:
        self.said = said
        self.place = {name: at for at, names in enumerate(said.names) for name in names}
        self.seen: list[list[str]] = [[] for _ in said.names]
        self.results: dict[str, int] = {}
        self.entries: dict[str, int] = {}
        """Guest access -> how often it entered the guest."""
        self._now = -1
        self._at: dict[int, int] = {}
        """Frame -> the page that it was last mapped at."""

    def observe(self, envelope: Envelope, handled: Handled) -> None:
        """One delivery."""
        self._now = self.place.get(operation_of(envelope.id), -1)
        for record in () if isinstance(envelope.body, Tlbi) else handled.records:
            self._record(record, operation_of(envelope.id))
        for message in (envelope.body,) if not envelope.is_reply else ():
            self._message(message)

    def _say(self, word: str) -> None:
        if self._now >= 0:
            self.seen[self._now].append(word)

    def _message(self, message: object) -> None:
        if isinstance(message, MmapLock) and message.mm == MM:
            self._say("lock:w" if message.write else "lock:r")
        elif isinstance(message, (MmapDowngrade, MmapReadTrylock)) and message.mm == MM:
            self._say("lock:r")
        elif isinstance(message, MmapUnlock) and message.mm == MM:
            self._say("unlock")
        elif isinstance(message, SpteSet):
            self._say("spte:w" if permits(message.pte, True) else "spte:r")

    def _record(self, record: r.Record, operation: str) -> None:
        match record:
            case r.NotifierCall(mm="mm0", phase="begin"):
                self._notified(record)
            case r.InvalidateBegin(cache="tlb", tag="mm0"):
                self._ranged("flush", record.start, record.end)
            case r.PteChange(mm="mm0", level=0):
                self._changed(record)
            case r.FrameFreed() if record.frame in self._at:
                self._say(f"free:{self._at.pop(record.frame)}")
            case r.OpEnd():
                self.results[record.op or operation] = record.result
            case r.GuestEnter():
                self.entries[operation] = self.entries.get(operation, 0) + 1
            case _:
                pass

    def _notified(self, record: r.NotifierCall) -> None:
        start, end = record.start, record.end
        if record.callback == "invalidate_range_start" and record.subscriber == "kvm0":
            self._ranged("start", start, end, f"/{EVENTS.get(record.event, record.event)}")
        elif record.callback == "invalidate_range_end" and record.subscriber == "kvm0":
            self._ranged("end", start, end)
        elif record.subscriber == "iommu0" and record.within:
            self._ranged("irend", start, end)
        elif record.subscriber == "iommu0":
            word = "ir" if record.callback == "invalidate_range" else "as"
            self._ranged(word, start, end)

    def _ranged(self, word: str, start: int, end: int, more: str = "") -> None:
        if start == 0 and end >= ULONG_MAX - PAGE_SIZE:
            self._say(f"{word}:all{more}")
            return
        first = max(0, (start - START) >> PAGE_SHIFT)
        last = min(self.said.pages, (end - START + PAGE_SIZE - 1) >> PAGE_SHIFT)
        if first < last:
            self._say(f"{word}:{first}-{last}{more}")

    def _changed(self, record: r.PteChange) -> None:
        page = (record.address - START) >> PAGE_SHIFT
        if not 0 <= page < self.said.pages:
            return
        if is_migration(record.new):
            self._say(f"migset:{page}")
        elif is_migration(record.old) and pte_present(record.new):
            self._say(f"migdone:{page}")
        if names_page(record.new) and pte_present(record.new) and frame_of(record.new):
            self._at[frame_of(record.new)] = page


def played(said: Said) -> Listener:
    """Run it; what was heard."""
    listener = Listener(said)
    drivers = build_all(said.world, SEED)
    exchange = Exchange(Feeder(said.programs, None), None)
    Simulator(drivers, exchange, RandomWalk(SEED), listener.observe).run()
    for driver in drivers.values():
        driver.close()
    listener.seen = [
        folded(words, not said.world.kernel.arch.arch_secondary_flush) for words in listener.seen
    ]
    return listener


def folded(words: Sequence[str], ends_call_ir: bool) -> list[str]:
    """Where ends call ``invalidate_range`` (to v6.5), one without that call is ``endonly``."""
    found: list[str] = []
    for at, word in enumerate(words):
        kind, _, range_ = word.partition(":")
        if kind == "irend":
            continue
        beside = (*words[max(0, at - 1) : at], *words[at + 1 : at + 2])
        if kind == "end" and ends_call_ir and f"irend:{range_}" not in beside:
            kind = "endonly"
        found.append(f"{kind}:{range_}" if range_ else word)
    return found
