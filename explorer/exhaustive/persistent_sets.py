"""What may still happen because of a message, and which deliveries need not wait for the others.

A *future* of a pending message is everything that its delivery and all that comes of it may touch.
Where the next step of some messages conflicts with nobody else's future, every order in which
others go first is equivalent to one in which they do: it is enough to deliver these.  (A persistent
set: Godefroid, *Partial-Order Methods for the Verification of Concurrent Systems*, LNCS 1032.)

Futures are learned while searching and only grow.  A search that ends with the futures with which
it began has used complete ones: the first delivery that they did not foresee would have been met,
because all before it was reordered rightly.  One that learned something begins again.

Continuations belong to whoever waits for them.  A reply continues the request's own side; a lock
that is granted or a coroutine that is woken by somebody else goes on from its own *sleeper*, not
from the message that woke it.

Where a search goes on from one of two states that are the same but for names (``symmetry``), it
learns only what the messages of that one do.  ``alike`` gives it to those of the other; therefore
footprints are kept without ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Final

from mmurace.explorer.exhaustive.node_tables import JUDGED_BITS, Move, Sent, rival_bits
from mmurace.explorer.exhaustive.world_state import Front, Model
from mmurace.nodes.footprint import Footprint
from mmurace.protocol.envelope import REPLY_MARK

Vertex = Sent | str
"""A message, or the id of a request whose handling only somebody else can continue."""
Names = Mapping[str, str]
"""New names of nodes and programs; what is not in it keeps its own."""
_Step = tuple[int, int, int, bool]
STREAM_BITS: Final = JUDGED_BITS
"""Where the bits of declared streams begin, after the classes of records."""


class Futures:
    """Futures of every message met so far, as bit masks of footprints by node.

    The last place of a future is not a node: it has the classes of records that the oracle
    compares, and the declared streams that were sent to.
    """

    def __init__(self, model: Model) -> None:
        self.machines, self.feed, self.index = model.machines, model.feed, model.index
        self.grown = 0
        """How often something was learned."""
        self._future: dict[Vertex, list[int]] = {}
        self._before: dict[Vertex, dict[tuple[Vertex, int], None]] = {}
        """What it is part of the future of, and how that names things."""
        self._names: list[Names] = [{}]
        self._renamed_bits: dict[tuple[int, int, int], int] = {}
        self._streams: dict[str, int] = {}
        self._learned: set[Move] = set()
        self._steps: dict[tuple[int, Sent], _Step] = {}
        """By state of the receiver; this and the next are good until something is learned."""
        self._fronts: dict[Front, list[list[int]]] = {}

    # -- learning ------------------------------------------------------------------------------

    def learn(self, at: int, message: Sent, move: Move) -> None:
        """Take in one move of node ``at``."""
        if move in self._learned:
            return
        self._learned.add(move)
        machine = self.machines[at]
        self._touch(message, at, 1 << move.outline)
        self._touch(message, -1, move.judged | self.streams(move))
        for request in machine.sleepers[move.target]:
            if _continues(message, request):
                self._follow(message, request)
        for sent in move.sent:
            owner = sent.id[:-1] if sent.id[-1] == REPLY_MARK else sent.path
            self._goes_on(message, owner, sent)
        for operation in move.done:
            for fed in self.feed.after_all(operation):
                self._goes_on(message, operation, fed)

    def _goes_on(self, message: Sent, owner: str, sent: Sent) -> None:
        """``sent`` continues ``owner``: from this delivery, or from where it slept."""
        if _continues(message, owner):
            self._follow(message, sent)
        else:
            self._follow(owner, sent)

    def _follow(self, first: Vertex, then: Vertex) -> None:
        self._part(first, then, 0)

    def alike(self, vertex: Vertex, other: Vertex, names: Names) -> None:
        """What comes of ``other`` may come of ``vertex``, with these names."""
        if not names and vertex == other:
            return
        if names not in self._names:
            self._names.append(names)
        self._part(vertex, other, self._names.index(names))

    def _part(self, first: Vertex, then: Vertex, way: int) -> None:
        before = self._before.setdefault(then, {})
        if (first, way) not in before:
            before[first, way] = None
            self._grow(first, self._renamed(self.of(then), way))

    def _touch(self, vertex: Vertex, at: int, bits: int) -> None:
        if bits & ~self.of(vertex)[at]:
            more = [0] * (len(self.machines) + 1)
            more[at] = bits
            self._grow(vertex, more)

    def _grow(self, vertex: Vertex, more: Sequence[int]) -> None:
        """Add to a future and to all that it is part of."""
        todo: list[tuple[Vertex, Sequence[int]]] = [(vertex, more)]
        while todo:
            vertex, more = todo.pop()
            future = self.of(vertex)
            larger = [old | new for old, new in zip(future, more, strict=True)]
            if larger != future:
                self.grown += 1
                self._steps.clear()
                self._fronts.clear()
                future[:] = larger
                for before, way in self._before.get(vertex, ()):
                    todo.append((before, self._renamed(larger, way)))

    def _renamed(self, future: Sequence[int], way: int) -> Sequence[int]:
        """A future with other names for nodes and operations."""
        if way == 0:
            return future
        found = [0] * len(future)
        for node, at in self.index.items():
            found[self.index[self._names[way].get(node, node)]] = self._bits(future[at], at, way)
        key = future[-1], -1, way
        if key not in self._renamed_bits:
            self._renamed_bits[key] = self.renamed_streams(future[-1], self._names[way])
        found[-1] = self._renamed_bits[key]
        return found

    def renamed_streams(self, bits: int, names: Names) -> int:
        """Classes of records, and streams with the names that their nodes have then."""
        found = bits & ((1 << STREAM_BITS) - 1)
        for stream, number in list(self._streams.items()):
            if bits >> (STREAM_BITS + number) & 1:
                found |= self.stream(rename(stream, names))
        return found

    def _bits(self, bits: int, at: int, way: int) -> int:
        """Footprints at node ``at``, as they are at the node that has its name."""
        key = bits, at, way
        found = self._renamed_bits.get(key)
        if found is None:
            names = self._names[way]
            node = list(self.index)[at]
            mine = self.machines[at].outlines
            theirs = self.machines[self.index[names.get(node, node)]].outlines
            found = 0
            for number in range(bits.bit_length()):
                if bits >> number & 1:
                    found |= 1 << theirs.number(_renamed(mine.known[number], names))
            self._renamed_bits[key] = found
        return found

    def of(self, vertex: Vertex) -> list[int]:
        """The future of a message or sleeper, as far as it is known."""
        found = self._future.get(vertex)
        if found is None:
            found = self._future[vertex] = [0] * (len(self.machines) + 1)
        return found

    def streams(self, move: Move) -> int:
        """The declared streams that a move sends to, as bits."""
        return reduce(or_, map(self.stream, move.streams), 0)

    def stream(self, stream: str) -> int:
        """The bit of a declared stream."""
        return 1 << (STREAM_BITS + self._streams.setdefault(stream, len(self._streams)))

    # -- use -----------------------------------------------------------------------------------

    def enough(self, nodes: tuple[int, ...], front: Front) -> list[Sent]:
        """Heads of which it is enough to deliver one next: as few as can be found."""
        heads = front.heads
        steps = [self._step(nodes, head) for head in heads]
        futures = self._pending(front)
        asleep = self._asleep(nodes)
        best = ready = _ready(front, steps)
        for first in ready:
            chosen = _closed(first, steps, futures, asleep, len(best))
            if chosen is not None and all(at in ready for at in chosen):
                best = chosen
                if len(best) == 1:
                    break
        return [heads[at] for at in best]

    def ready(self, nodes: tuple[int, ...], front: Front) -> list[Sent]:
        """Heads that do more than wait; all, if none does."""
        return [
            front.heads[at] for at in _ready(front, [self._step(nodes, h) for h in front.heads])
        ]

    def _pending(self, front: Front) -> list[list[int]]:
        """The future of each channel."""
        if front not in self._fronts:
            queues = front.queues.values()
            self._fronts[front] = [_either([self.of(m) for m in queue]) for queue in queues]
        return self._fronts[front]

    def _asleep(self, nodes: tuple[int, ...]) -> list[list[int]]:
        """The futures of all that sleep."""
        return [
            self.of(request)
            for machine, state in zip(self.machines, nodes, strict=True)
            for request in machine.sleepers[state]
        ]

    def _step(self, nodes: tuple[int, ...], message: Sent) -> _Step:
        """Where a message goes, what must not swap with its delivery: there, and anywhere.

        And whether it would only be queued.
        """
        at = self.index[message.dst]
        found = self._steps.get((nodes[at], message))
        if found is None:
            machine = self.machines[at]
            there = anywhere = 0
            waits = False
            for move in machine.moves_of(nodes[at], message):
                self.learn(at, message, move)
                there |= machine.outlines.rival_mask(move.outline)
                anywhere |= rival_bits(move.judged) | self.streams(move)
                waits = move.only_waits
            found = self._steps[nodes[at], message] = at, there, anywhere, waits
        return found


def _renamed(touched: Footprint, names: Names) -> Footprint:
    return [(tuple(_word(word, names) for word in key), access) for key, access in touched]


def _word(word: str | int, names: Names) -> str | int:
    return word if isinstance(word, int) else rename(word, names)


def rename(word: str, names: Names) -> str:
    """A node, one of its streams, or an operation with its new name."""
    program, slash, index = word.rpartition("/")
    if slash or word in names:
        return f"{names.get(program, program)}/{index}" if slash else names[word]
    node, dot, stream = word.partition(".")
    return names.get(node, node) + dot + stream


def _ready(front: Front, steps: Sequence[_Step]) -> list[int]:
    """Places of heads whose delivery does more than queue a request, or that hold others up."""
    heads, queues = front.heads, front.queues
    ready = [
        at for at, head in enumerate(heads) if not steps[at][-1] or len(queues[head.channel]) > 1
    ]
    return ready or list(range(len(heads)))


def _closed(
    first: int,
    steps: Sequence[_Step],
    futures: Sequence[list[int]],
    asleep: Sequence[list[int]],
    fewer_than: int,
) -> list[int] | None:
    """The smallest set with ``first`` whose steps conflict with no other future, if small enough.

    What sleeps cannot be put into the set: nobody can deliver it.
    """
    chosen = [first]
    for mine in chosen:
        at, there, anywhere, _ = steps[mine]
        for future in asleep:
            if future[at] & there or future[-1] & anywhere:
                return None
        for other, future in enumerate(futures):
            if (future[at] & there or future[-1] & anywhere) and other not in chosen:
                chosen.append(other)
                if len(chosen) >= fewer_than:
                    return None
    return chosen


def _either(futures: Sequence[list[int]]) -> list[int]:
    """What may happen in any of them."""
    if len(futures) == 1:
        return futures[0]
    return [reduce(or_, masks) for masks in zip(*futures, strict=True)]


def _continues(message: Sent, request: str) -> bool:
    """Whether a delivery is a step of the coroutine that handles ``request``, or its begin."""
    if message.id == request:
        return True
    return message.id[-1] == REPLY_MARK and message.id.rpartition(".")[0] == request
