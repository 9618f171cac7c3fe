"""Tiny nodes for tests of exhaustive search, and the naive enumeration that they are checked by.

``shelf`` holds words (plain handlers, one access per message); ``w0``, ``w1``, ... are workers
whose coroutines read and write them, each a fixed list of accesses per operation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from mmurace.broker.programs import Program, Step
from mmurace.explorer.exhaustive.dpor import Dpor, Event
from mmurace.explorer.exhaustive.node_tables import Move, Sent
from mmurace.explorer.exhaustive.world_state import Config, Model
from mmurace.nodes.driver import Driver, Handler
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.node import Node
from mmurace.nodes.world import World
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.messages.base import Ack, Message
from mmurace.protocol.messages.memory import PteLoad, PteSet, PteValue
from mmurace.protocol.messages.program import OpDone, Touch

WORLD = World(kernel=preset("v6.6.5"))
Accesses = Sequence[tuple[str, int]]
"""``("r", word)``, ``("w", word)``, ``("c", ways)`` for a choice, ``("g", word)`` for a gather."""


class Shelf(Node):
    """Words by number."""

    def __init__(self, name: str, world: World, port: object) -> None:
        super().__init__(name, world, port)  # type: ignore[arg-type]  # a Port
        self.words: dict[int, int] = {}

    def handlers(self) -> Mapping[type[Message], Handler]:
        """Loads and stores."""
        return {PteLoad: self.load, PteSet: self.store}

    def load(self, message: PteLoad, _: Envelope) -> Message:
        """A word."""
        return PteValue(self.words.get(message.index, 0))

    def store(self, message: PteSet, _: Envelope) -> Message:
        """A word."""
        self.words[message.index] = message.pte
        return Ack()


class Worker(Node):
    """Does the accesses of the operation that it is given, and keeps what it read."""

    accesses: Accesses = ()

    def __init__(self, name: str, world: World, port: object) -> None:
        super().__init__(name, world, port)  # type: ignore[arg-type]  # a Port
        self.got: list[int] = []

    def handlers(self) -> Mapping[type[Message], Handler]:
        """Operations."""
        return {Touch: self.touch}

    async def touch(self, message: Touch, _: Envelope) -> OpDone:
        """One list of accesses."""
        for kind, which in self.accesses:
            if kind == "r":
                self.got.append((await self.port.call("shelf", PteLoad(0, which))).pte)
            elif kind == "w":
                await self.port.call("shelf", PteSet(0, which, message.value))
            elif kind == "c":
                self.got.append(self.port.choose("toy", which))
            else:
                pair = [("shelf", PteLoad(0, which)), ("shelf", PteLoad(0, which + 1))]
                self.got += [r.pte for r in await self.port.gather(pair) if isinstance(r, PteValue)]
        return OpDone(0)


def toy(
    *workers: Accesses,
    operations: int = 1,
    after: Mapping[str, str] | None = None,
    alike: bool = False,
) -> Model:
    """A model with one worker and one program for each list of accesses.

    If they are ``alike``, all write the same values.
    """
    names = [f"w{at}" for at in range(len(workers))]

    def make(name: str) -> Driver:
        driver = Driver(name, 0)
        node: Node = Shelf(name, WORLD, driver.port)
        if name != "shelf":
            node = worker = Worker(name, WORLD, driver.port)
            worker.accesses = tuple(workers[names.index(name)])
        driver.node, driver.handlers = node, node.handlers()
        return driver

    waits = {name: tuple(earlier.split()) for name, earlier in (after or {}).items()}
    apart = 0 if alike else 10
    programs = [
        Program(name, name, [
            Step(Touch("mm0", 0, True, apart * at + n + 1), waits.get(f"{name}/{n}", ()))
            for n in range(operations)
        ])
        for at, name in enumerate(names)
    ]  # fmt: skip
    return Model(("shelf", *names), programs, make)


@dataclass
class Found:
    """What a search found."""

    traces: set[frozenset[object]] = field(default_factory=set)
    finals: set[tuple[object, ...]] = field(default_factory=set)
    runs: int = 0


@dataclass(frozen=True)
class Taken:
    """One delivery."""

    message: Sent
    move: Move


def trace_of(model: Model, events: Sequence[Taken | Event]) -> frozenset[object]:
    """What all executions of a trace share: each event with those that it depends on."""
    found = []
    for at, event in enumerate(events):
        footprints = model.tables.machines[event.message.dst].footprints
        before = frozenset(
            other.message.id
            for other in events[:at]
            if other.message.dst == event.message.dst
            and footprints.conflict(other.move.footprint, event.move.footprint)
        )
        found.append((event.message.uid, event.move.ways, before))
    return frozenset(found)


def naive(model: Model) -> Found:
    """Every interleaving, every choice."""
    found = Found()
    todo: list[tuple[Config, tuple[Taken, ...]]] = [(model.first(), ())]
    while todo:
        config, events = todo.pop()
        heads = config.heads()
        if not heads:
            found.runs += 1
            found.finals.add((config.nodes, config.front.done))
            found.traces.add(trace_of(model, events))
        for message in heads:
            for move in all_ways(model, config, message):
                taken = Taken(message, move)
                todo.append((model.step(config, message, move)[0], (*events, taken)))
    return found


def all_ways(model: Model, config: Config, message: Sent) -> list[Move]:
    """Every way of a delivery with at most one choice."""
    first = model.move(config, message)
    others = chain.from_iterable(range(1, ways) for _, ways, _ in first.choices)
    return [first, *(model.move(config, message, (way,)) for way in others)]


def by_dpor(model: Model) -> tuple[Dpor, Found]:
    """One execution of each trace."""
    found = Found()

    def visit(events: list[Event], config: Config) -> bool:
        found.runs += 1
        found.finals.add((config.nodes, config.front.done))
        found.traces.add(trace_of(model, events))
        return False

    search = Dpor(model, visit, lambda _: False)
    assert search.run()
    return search, found
