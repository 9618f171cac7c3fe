"""What an exploration has seen: distinct traces, and what the runs went through.

Two schedules that differ only in the order of independent deliveries are one Mazurkiewicz trace.
Deliveries depend on each other if they are to one node and what their handlers really touched
overlaps, one of them writing.  The signature of a run is the sum, over its deliveries, of a hash
of (message, choices, the deliveries before it that it depends on): equal for equal traces, in
whatever order the deliveries came.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Final

from mmurace.explorer.sample.statistics import unseen_mass
from mmurace.nodes.footprint import Footprint
from mmurace.oracle.state.statistics import Statistics
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.messages.base import ObjectKey

_TASK: Final = "task"
"""Label of a key that stands for a resumed coroutine, which may touch anything in its node."""
_READ: Final = "read"
_MASK: Final = (1 << 64) - 1


class _Object:
    """The accesses to one object so far: the last write, and the reads since, as hashes."""

    __slots__ = ("below", "reads", "write")

    def __init__(self) -> None:
        self.write = self.reads = 0
        self.below: dict[str | int, _Object] = {}
        """Its parts, by the next word of their keys."""

    def before(self, writes: bool) -> int:
        """A hash of the accesses to it and to its parts that an access to all of it depends on."""
        mine = self.write + self.reads if writes else self.write
        if self.below:
            mine += sum([part.before(writes) for part in self.below.values()])
        return mine

    def write_all(self, event: int) -> None:
        """A write of all of it: what came before its parts came before this."""
        self.write, self.reads = event, 0
        if self.below:
            self.below.clear()


class Signature:
    """The signature of one run.  ``footprint`` must be what each driver writes into."""

    def __init__(self, footprint: Footprint) -> None:
        self._footprint = footprint
        self._nodes: dict[str, _Object] = {}
        self._sum = 0

    def observe(self, envelope: Envelope, handled: Handled) -> None:
        """One more delivery; clears the footprint for the next."""
        node = self._nodes.get(envelope.dst)
        if node is None:
            node = self._nodes[envelope.dst] = _Object()
        touched = self._footprint
        what: Hashable = envelope.id
        if envelope.copy or handled.choices:
            what = (envelope.id, envelope.copy, *handled.choices)
        first = touched[0][0] if touched else ()
        if not first or any(key[0] == _TASK for key, _ in touched):
            event = hash((what, node.before(True)))
            node.write_all(event)
        else:
            event = self._in_parts(node, what)
        touched.clear()
        self._sum = (self._sum + event) & _MASK

    def _in_parts(self, node: _Object, what: Hashable) -> int:
        found = [(_find(node, key, how != _READ), how != _READ) for key, how in self._footprint]
        event = hash((what, *[above + part.before(writes) for (part, above), writes in found]))
        for (part, _), writes in found:
            if writes:
                part.write_all(event)
            else:
                part.reads += event
        return event

    @property
    def value(self) -> int:
        """The signature; equal only within one process, as the hashes of strings are."""
        return self._sum


def _find(node: _Object, key: ObjectKey, writes: bool) -> tuple[_Object, int]:
    """The object of a key, and a hash of the accesses to all that it is a part of."""
    found, above = node, 0
    for word in key:
        above += found.write + found.reads if writes else found.write
        part = found.below.get(word)
        if part is None:
            part = found.below[word] = _Object()
        found = part
    return found, above


class Coverage:
    """Counts over all runs of an exploration."""

    def __init__(self) -> None:
        self._seen: dict[int, bool] = {}
        """Signature -> whether it was seen more than once."""
        self._once = 0
        self.signed = 0
        """Runs that were signed."""
        self.points: dict[str, int] = {}
        """Runs that passed a point: coverage points, retries, caches invalidated."""

    def add(self, signature: int | None, statistics: Statistics) -> None:
        """One more run; ``signature`` is None if it was not signed."""
        if signature is not None:
            self._sign(signature)
        for point in points_of(statistics):
            self.points[point] = self.points.get(point, 0) + 1

    def _sign(self, signature: int) -> None:
        self.signed += 1
        again = self._seen.get(signature)
        if again is None:
            self._seen[signature] = False
            self._once += 1
        elif not again:
            self._seen[signature] = True
            self._once -= 1

    @property
    def distinct(self) -> int:
        """How many different traces there were among those that were signed."""
        return len(self._seen)

    @property
    def unseen(self) -> float:
        """The probability that the next run is a trace which was not seen yet (Good-Turing)."""
        return unseen_mass(self._once, self.signed)


def points_of(statistics: Statistics) -> Iterable[str]:
    """What one run went through, in words."""
    yield from statistics.covered
    yield from (f"retry: {why}" for why in statistics.retries)
    yield from (f"{cache} entries invalidated" for cache in statistics.invalidated)
    if statistics.walks_discarded:
        yield "walk discarded"
    if statistics.frames_reused:
        yield "frame reused"
    if statistics.accesses_not_trapped:
        yield "access not trapped"
