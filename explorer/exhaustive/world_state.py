"""The state of a whole run as a value: nodes, pending messages, finished operations.

It obeys the same rules as the broker's exchange without faults: first-in-first-out per channel,
each operation fed when the one before it and all that it comes after are done.  Nothing else
decides what is deliverable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from mmurace.broker.exchange import Channel
from mmurace.broker.programs import Program
from mmurace.explorer.exhaustive.node_tables import Move, Sent, Tables, Ways
from mmurace.nodes.build import build
from mmurace.nodes.driver import Driver
from mmurace.nodes.world import World
from mmurace.protocol.envelope import BROKER, Envelope
from mmurace.protocol.errors import UserError
from mmurace.scenarios.spec import RunSpec

OPERATIONS_MAX: Final = 10_000
"""Operations of one program; an exhaustive search is for programs that end much sooner."""

Queue = tuple[Sent, ...]


class Front:
    """What is pending and which operations are done; equal ones are the same object."""

    __slots__ = ("done", "following", "heads", "queues")

    def __init__(self, queues: Mapping[Channel, Queue], done: frozenset[str]) -> None:
        self.queues, self.done = queues, done
        """Pending messages by channel, oldest first, no queue empty; finished operations."""
        self.heads = tuple(queue[0] for queue in queues.values())
        """Deliverable messages."""
        self.following: dict[tuple[Sent, Move], tuple[Front, tuple[Sent, ...]]] = {}
        """By delivery: what comes then, and the messages that it released."""


@dataclass(frozen=True, slots=True)
class Config:
    """One state.  Values are never changed, so states share what they have in common."""

    nodes: tuple[int, ...]
    """State number of each node, in the order of ``Model.nodes``."""
    front: Front

    def heads(self) -> tuple[Sent, ...]:
        """Deliverable messages."""
        return self.front.heads


class Feed:
    """Which operation comes after which."""

    def __init__(self, programs: Iterable[Program], message: Callable[[Envelope], Sent]) -> None:
        self.after: dict[str, tuple[str, ...]] = {}
        self.operations: dict[str, Sent] = {}
        self._next: dict[str, list[str]] = {}
        for program in programs:
            self._add(program, message)

    def _add(self, program: Program, message: Callable[[Envelope], Sent]) -> None:
        steps = list(islice(program.steps, OPERATIONS_MAX + 1))
        if len(steps) > OPERATIONS_MAX:
            raise UserError(
                "exhaustive", f"program {program.name} does not end", "programs that end"
            )
        for index, step in enumerate(steps):
            name = f"{program.name}/{index}"
            previous = (f"{program.name}/{index - 1}",) if index else ()
            self.after[name] = (*previous, *step.after)
            body = step.operation
            self.operations[name] = message(
                Envelope(name, BROKER, program.node, type(body).__name__, program.name, "", body)
            )
            for operation in dict.fromkeys(self.after[name]):
                self._next.setdefault(operation, []).append(name)

    def first(self) -> list[Sent]:
        """What is pending at the start."""
        return [self.operations[name] for name, after in self.after.items() if not after]

    def after_all(self, operation: str) -> list[Sent]:
        """What comes after ``operation``, whatever else it comes after."""
        return [self.operations[name] for name in self._next.get(operation, ())]

    def fed(self, operation: str, done: frozenset[str]) -> list[Sent]:
        """What becomes pending when ``operation``, now in ``done``, is finished."""
        waiting = self._next.get(operation, ())
        return [self.operations[n] for n in waiting if done.issuperset(self.after[n])]


class Model:
    """A run as a transition system: its first state and the steps from any state."""

    def __init__(
        self,
        nodes: tuple[str, ...],
        programs: Iterable[Program],
        make: Callable[[str], Driver],
    ) -> None:
        self.nodes = nodes
        self.index = {name: at for at, name in enumerate(nodes)}
        self.tables = Tables(make, nodes)
        self.machines = [self.tables.machines[name] for name in nodes]
        self.feed = Feed(programs, self.tables.message)
        self.tables.operations = self.feed.operations
        self._fronts: dict[tuple[frozenset[Queue], frozenset[str]], Front] = {}

    def first(self) -> Config:
        """The state before the first delivery."""
        front = self._front(_queued({}, self.feed.first()), frozenset())
        return Config((0,) * len(self.nodes), front)

    def move(self, config: Config, message: Sent, ways: Ways = ()) -> Move:
        """What the receiver does with a deliverable message."""
        at = self.index[message.dst]
        return self.machines[at].move(config.nodes[at], message, ways)

    def step(self, config: Config, message: Sent, move: Move) -> tuple[Config, tuple[Sent, ...]]:
        """The state after delivering ``message``, and what was sent or fed by that."""
        at = self.index[message.dst]
        nodes = config.nodes
        front, released = self.pass_on(config.front, message, move)
        return Config((*nodes[:at], move.target, *nodes[at + 1 :]), front), released

    def pass_on(self, front: Front, message: Sent, move: Move) -> tuple[Front, tuple[Sent, ...]]:
        """What is pending after delivering ``message``, and what was sent or fed by that."""
        found = front.following.get((message, move))
        if found is None:
            found = front.following[message, move] = self._pass_on(front, message, move)
        return found

    def _pass_on(self, front: Front, message: Sent, move: Move) -> tuple[Front, tuple[Sent, ...]]:
        released, done = list(move.sent), front.done
        for operation in move.done:
            done |= {operation}
            released += self.feed.fed(operation, done)
        queues = dict(front.queues)
        rest = queues[message.channel][1:]
        if rest:
            queues[message.channel] = rest
        else:
            del queues[message.channel]
        return self._front(_queued(queues, released), done), tuple(released)

    def _front(self, queues: Mapping[Channel, Queue], done: frozenset[str]) -> Front:
        key = (frozenset(queues.values()), done)
        found = self._fronts.get(key)
        if found is None:
            found = self._fronts[key] = Front(queues, done)
        return found

    def complete(self, config: Config) -> bool:
        """Whether every operation is done."""
        return len(config.front.done) == len(self.feed.operations)


def _queued(queues: dict[Channel, Queue], sent: Iterable[Sent]) -> dict[Channel, Queue]:
    for message in sent:
        queues[message.channel] = (*queues.get(message.channel, ()), message)
    return queues


def model_of(spec: RunSpec) -> Model:
    """The transition system of a run.  Its chaos is left out: no message is lost or repeated.

    Raises ``UserError`` for programs that do not end and for runs whose feeding is cut short,
    because which operations are fed would then depend on the order of others.
    """
    if spec.operations_max is not None:
        raise UserError("operations_max", "cuts programs short", "programs that are fed whole")
    world: World = spec.world
    return Model(world.nodes(), spec.programs(), lambda name: build(name, world, spec.seed))
