"""A world with a GPU, and runs of programs in it: what operations returned, and what was broken."""

from __future__ import annotations

from typing import Any

from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder, Program, Step
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.gpu.part import Gpu
from mmurace.nodes.world import World
from mmurace.oracle.oracle import Oracle
from mmurace.protocol import records as r
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.limits import PAGE_SIZE
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.base import Message
from mmurace.protocol.trace import TraceStep

A = 16 * PAGE_SIZE
MM = "mm0"


def gpu_world(
    driver: str = "dmirror",
    mirrors: tuple[str, ...] = (MM,),
    release: str = "v6.6.5",
    gpus: int = 1,
    set: dict[str, Any] | None = None,  # noqa: A002
) -> World:
    """Two processes, two processors, GPUs whose faults the second of these serves."""
    return World(
        kernel=preset(release, overrides=set, profiles=(driver,)),
        mms=(MM, "mm1"),
        parts=tuple(Gpu(f"gpu{n}", "cpu1", mirrors) for n in range(gpus)),
        frames=48,
    )


class Ran:
    """One run to its end."""

    def __init__(self, of: World, programs: list[Program], seed: int = 0) -> None:
        self.results: dict[str, int] = {}
        self.loaded: dict[str, list[int]] = {}
        """Operation -> the words that it has loaded from data pages, in order."""
        self.sent: list[Message] = []
        self.oracle = Oracle(of)
        simulator = Simulator(
            build_all(of, seed), Exchange(Feeder(programs)), RandomWalk(seed), self._note
        )
        ending = simulator.run(deliveries_max=100_000)
        self.oracle.finish(ending)
        self.complete = ending.complete
        self.rules = {v.rule for v in self.oracle.violations}

    def _note(self, e: Envelope, handled: Handled) -> None:
        self.oracle.step(
            TraceStep(handled.n, e.id, e.src, e.dst, e.kind, e.causes, tuple(handled.records))
        )
        if not e.is_reply and isinstance(e.body, Message):
            self.sent.append(e.body)
        for record in handled.records:
            if isinstance(record, r.OpEnd):
                self.results[record.op] = record.result
            elif isinstance(record, r.Access) and not record.write:
                self.loaded.setdefault("/".join(e.id.split(".")[:1]), []).append(record.value)


def program(node: str, *operations: op.Operation, after: tuple[str, ...] = ()) -> Program:
    """A program of one node; its first operation comes after those named."""
    return Program(node, node, [Step(o, after if n == 0 else ()) for n, o in enumerate(operations)])


def script(*steps: tuple[str, op.Operation]) -> list[Program]:
    """Operations of several nodes, each after the one before: as one thread would do them."""
    programs: dict[str, list[Step]] = {}
    before: tuple[str, ...] = ()
    for node, operation in steps:
        own = programs.setdefault(node, [])
        own.append(Step(operation, before))
        before = (f"{node}/{len(own) - 1}",)
    return [Program(node, node, own) for node, own in programs.items()]
