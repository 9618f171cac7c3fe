"""Counts of references: what commutes whatever else is in flight, and what does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mmurace.broker.programs import Program, Step
from mmurace.explorer.exhaustive.oracle_table import OracleTable
from mmurace.explorer.exhaustive.stateful import Broken, Stateful
from mmurace.explorer.exhaustive.stateful import Step as StepTaken
from mmurace.explorer.exhaustive.world_state import Config, Model
from mmurace.nodes.build import build
from mmurace.nodes.driver import Driver, Handler
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.node import Node
from mmurace.nodes.world import MEMORY, World
from mmurace.oracle.oracle import Oracle
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.messages.base import Message, Request
from mmurace.protocol.messages.memory import FrameAlloc, FrameRead, PageGet, PagePut
from mmurace.protocol.messages.program import OpDone, Touch
from mmurace.protocol.records import FrameFreed

WORLD: Final = World(kernel=preset("v6.6.5"), levels=1, frames=3)
FRAME: Final = 2
"""The only frame that is free at first."""
GONE: Final = FrameFreed(FRAME)
Calls = Sequence[Request[Any]]


class Caller(Node):
    """Asks memory for one thing after the other: a list for each operation."""

    calls: Sequence[Calls] = ()

    def handlers(self) -> Mapping[type[Message], Handler]:
        """Operations; the address says which list."""
        return {Touch: self.touch}

    async def touch(self, message: Touch, _: Envelope) -> OpDone:
        """One list."""
        for call in self.calls[message.address]:
            await self.port.call(MEMORY, call)
        return OpDone(0)


def counts(*callers: Sequence[Calls]) -> Model:
    """Memory, and callers whose operations come after the first one of the first of them."""
    names = [f"c{at}" for at in range(len(callers))]

    def make(name: str) -> Driver:
        if name == MEMORY:
            return build(name, WORLD, 0)
        driver = Driver(name, 0)
        driver.node = node = Caller(name, WORLD, driver.port)
        driver.handlers = node.handlers()
        node.calls = callers[names.index(name)]
        return driver

    programs = [
        Program(name, name, [
            Step(Touch("mm0", at, True), () if name == "c0" else ("c0/0",))
            for at in range(len(callers[names.index(name)]))
        ])
        for name in names
    ]  # fmt: skip
    return Model((MEMORY, *names), programs, make)


def frees(model: Model) -> set[bool]:
    """Whether the frame is freed: what a reduced search finds possible."""
    found = set()

    def visit(steps: list[StepTaken], _: Config, _broken: Broken) -> bool:
        freed = [record for step in steps for record in step.move.records if record == GONE]
        found.add(bool(freed))
        return False

    search = Stateful(model, OracleTable(lambda: Oracle(WORLD)), visit, lambda _: False, True)
    assert search.run()
    return found


def test_who_drops_all_references_late_may_still_be_the_first() -> None:
    """No count gets low where the others take theirs before, as they do in most orders."""
    alone = [FrameRead(0, 0)] * 30
    model = counts(
        [[FrameAlloc("anon"), PageGet(FRAME), PageGet(FRAME)], [*alone, *[PagePut(FRAME)] * 3]],
        [[PageGet(FRAME)]],
        [[PageGet(FRAME)]],
    )
    assert frees(model) == {True, False}
