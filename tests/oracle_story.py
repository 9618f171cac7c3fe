"""Hand-made traces: operations as tokens that go from node to node, one delivery at a time.

Each delivery of an operation is caused by its previous one, so the order of a story is exactly
what it says and nothing more; ``shuffled`` gives another linearisation of the same trace.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.part import Slot, Vm
from mmurace.nodes.world import World
from mmurace.oracle.oracle import Oracle
from mmurace.oracle.sometimes import Condition
from mmurace.oracle.verdict import Verdict
from mmurace.oracle.violation import Violation
from mmurace.protocol import pte as ptes
from mmurace.protocol import records as r
from mmurace.protocol.trace import Ending, TraceStep

PAGE = 0x10000
"""The host virtual address that the stories are about."""
OTHER = 0x11000
APIC_GPA = 0xFE000
RW = ptes.PRESENT | ptes.WRITE | ptes.ACCESSED
RO = ptes.PRESENT | ptes.ACCESSED

WORLD = World(
    kernel=preset("v6.6.5"),
    parts=(
        Unit("iommu0", ("dev0",), ("mm0",), "cpu1"),
        Vm("kvm0", ("vcpu0", "vcpu1"), "mm0", (Slot(0, 8, PAGE),)),
    ),
)


def entry(frame: int, flags: int = RW) -> int:
    """A page-table entry."""
    return ptes.make(frame, flags)


def change(old: int, new: int, address: int = PAGE) -> r.PteChange:
    """A change of a leaf."""
    return r.PteChange("mm0", address, 0, 2, address >> 12 & 7, old, new)


def dropped(cache: str, fill: str, tag: str = "mm0") -> tuple[r.Record, r.Record]:
    """An invalidation of one entry, complete at once."""
    span = (PAGE, PAGE + 4096, (fill,))
    return r.InvalidateBegin(cache, tag, *span), r.InvalidateDone(cache, tag, *span)


class Story:
    """Builds a trace."""

    def __init__(self) -> None:
        self.steps: list[TraceStep] = []
        self._at: dict[str, tuple[str, int, int]] = {}
        """Operation -> (node where it is, its last delivery, deliveries so far)."""

    def go(self, op: str, dst: str, *records: r.Record, kind: str = "Ack") -> str:
        """The operation goes to ``dst`` and this is recorded there; the message's id."""
        src, last, count = self._at.get(op, ("broker", 0, 0))
        n = len(self.steps) + 1
        message = f"{op}.{count}" if count else op
        causes = (last,) if last else ()
        self.steps.append(TraceStep(n, message, src, dst, kind, causes, records))
        self._at[op] = (dst, n, count + 1)
        return message

    def call(self, op: str, dst: str, *records: r.Record) -> str:
        """There and back; the id of the message that went there."""
        home = self._at[op][0]
        message = self.go(op, dst, *records)
        self.go(op, home)
        return message

    def begin(self, op: str, node: str, kind: str, start: int = PAGE, pages: int = 1) -> None:
        """The operation begins at its initiator."""
        tag = "kvm0" if kind.startswith("Guest") else "mm0"
        end = start + pages * 4096
        self.go(op, node, r.OpBegin(kind, tag, start, end), kind=kind)

    def end(self, op: str, node: str, kind: str) -> None:
        """The operation returns; it is, or comes, home."""
        self.go(op, node, r.OpEnd(kind, 0))

    # -- whole operations --------------------------------------------------------------------

    def map(self, op: str, pte: int, address: int = PAGE) -> None:
        """A first touch by cpu1."""
        self.begin(op, "cpu1", "Touch", address)
        self.call(op, "memory", change(0, pte, address))
        self.go(op, "memory", kind="MmapUnlock")
        self.go(op, "cpu1")
        self.end(op, "cpu1", "Touch")

    def dma(self, op: str, pte: int, fill: str, write: bool = True) -> None:
        """A DMA that fills the IOTLB and goes through it."""
        self.begin(op, "dev0", "Dma")
        self.go(op, "iommu0")
        read = self.call(op, "memory", r.PteRead("mm0", PAGE, pte))
        self.steps[-1] = self._with(r.Fill("iotlb", "mm0", PAGE, pte, fill, read))
        self.use(op, "iommu0", fill, ptes.frame_of(pte), write)
        self.end(op, "dev0", "Dma")

    def use(self, op: str, node: str, fill: str, frame: int, write: bool = True) -> None:
        """An access through a fill, from ``node`` where the operation is, and its answer."""
        _, _, count = self._at[op]
        self.steps[-1] = self._with(r.Use(fill, f"{op}.{count}"))
        self.go(op, "memory", r.Access(frame, 0, write, 7))
        self.go(op, node)

    def _with(self, record: r.Record) -> TraceStep:
        """The last step with one more record."""
        s = self.steps[-1]
        return TraceStep(s.n, s.id, s.src, s.dst, s.kind, s.causes, (*s.records, record))

    def also(self, record: r.Record) -> None:
        """The last delivery recorded this too."""
        self.steps[-1] = self._with(record)


COMPLETE = Ending(0, 0, True, ())
AT_REST = ("Q1", "Q2")
"""Rules about a run that has come to rest."""


def play(
    steps: Sequence[TraceStep], conditions: Sequence[Condition] = (), ending: Ending = COMPLETE
) -> Oracle:
    """An oracle that has read it all."""
    oracle = Oracle(WORLD, conditions)
    for step in steps:
        oracle.step(step)
    oracle.finish(ending)
    return oracle


def broken(story: Story) -> list[tuple[str, str, str]]:
    """(rule, agent, cache) of what the story breaks; it may stop anywhere, so its end is no end."""
    found = play(story.steps).violations
    return [(v.rule, v.agent, v.cache) for v in found if v.rule not in AT_REST]


def judged(steps: Sequence[TraceStep], conditions: Sequence[Condition] = ()) -> Verdict:
    """The verdict on a trace."""
    return play(steps, conditions).verdict(COMPLETE)


def identities(violations: Sequence[Violation]) -> list[tuple[str, ...]]:
    """What must not depend on the linearisation."""
    return sorted(violation.identity() for violation in violations)


def shuffled(steps: Sequence[TraceStep], seed: int) -> list[TraceStep]:
    """Another linear extension of the same partial order, with new numbers."""
    rng = random.Random(seed)
    lines: dict[str, list[TraceStep]] = {}
    for step in steps:
        lines.setdefault(step.dst, []).append(step)
    queues = [iter(line) for line in lines.values()]
    heads = [next(queue) for queue in queues]
    number: dict[int, int] = {}
    result: list[TraceStep] = []
    while heads:
        free = [i for i, head in enumerate(heads) if all(c in number for c in head.causes)]
        at = rng.choice(free)
        s = heads[at]
        n = number[s.n] = len(result) + 1
        causes = tuple(number[c] for c in s.causes)
        result.append(TraceStep(n, s.id, s.src, s.dst, s.kind, causes, s.records))
        following = next(queues[at], None)
        if following is None:
            del heads[at], queues[at]
        else:
            heads[at] = following
    return result
