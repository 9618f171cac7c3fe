"""Exhaustive search, one execution per trace: source-DPOR with sleep sets.

Source: Abdulla, Aronis, Jonsson, Sagonas, *Optimal Dynamic Partial Order Reduction*, POPL 2014
(algorithm 1; the footprints play the role of its dependency relation).

An event is a delivery.  Two events depend on each other if they are at one node and what their
handlings touched conflicts, if they are of one channel, or if they sent to one declared stream.
An event happens after those that released its message and after earlier events that it depends
on; executions with the same order are one trace.  A choice of the hardware is no event: every way
of it is a branch of its own.

Happens-before is kept as bit masks over the events of the current path, as Python integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mmurace.broker.exchange import Channel
from mmurace.explorer.exhaustive.node_tables import Move, Sent, Ways, other_ways
from mmurace.explorer.exhaustive.world_state import Config, Model

Sleepers = dict[Sent, tuple[Move, ...]]
"""Messages whose delivery here would only repeat a trace -> what it would do, by choice."""


class Event:
    """A delivery on the current path."""

    __slots__ = ("bit", "footprint", "message", "move", "past", "released")

    def __init__(self, bit: int, message: Sent, move: Move) -> None:
        self.bit, self.message, self.move = bit, message, move
        self.footprint = move.footprint
        self.past = bit
        """Mask of the events that happen before this one, and itself."""
        self.released: tuple[Sent, ...] = ()


class Point:
    """A state on the current path with what is to be tried from it."""

    __slots__ = ("config", "message", "moves", "queue", "sleep", "taken", "todo")

    def __init__(self, config: Config, sleep: Sleepers) -> None:
        self.config, self.sleep = config, sleep
        self.todo: dict[Sent, None] = {}
        """The backtrack set, in the order in which it grew; what was tried stays in it."""
        self.taken = 0
        """How many of ``todo`` were begun."""
        self.message: Sent | None = None
        self.queue: list[Ways] = []
        """Ways of the current message's choices that are still to be tried."""
        self.moves: tuple[Move, ...] = ()
        """Of the current message, one for each way tried."""


@dataclass(slots=True)
class Tally:
    """What a search did."""

    executions: int = 0
    """Complete executions: one for each trace, if none was cut."""
    blocked: int = 0
    """Executions that sleep sets cut off because they would repeat a trace."""
    deliveries: int = 0
    races: int = 0


@dataclass(slots=True)
class Path:
    """The current execution."""

    events: list[Event] = field(default_factory=list)
    at_node: dict[str, dict[int, int]] = field(default_factory=dict)
    """Node -> footprint -> mask of the events there that have it."""
    on_channel: dict[Channel, list[Event]] = field(default_factory=dict)
    on_stream: dict[str, list[Event]] = field(default_factory=dict)
    releases: dict[Sent, int] = field(default_factory=dict)
    """Message -> mask of what happens before its delivery because of its sending."""
    finished: dict[str, int] = field(default_factory=dict)
    """Operation -> mask of what happens before whatever comes after it."""

    def append(self, event: Event) -> None:
        """One more delivery."""
        message = event.message
        self.events.append(event)
        masks = self.at_node.setdefault(message.dst, {})
        masks[event.footprint] = masks.get(event.footprint, 0) | event.bit
        self.on_channel.setdefault(message.channel, []).append(event)
        for stream in event.move.streams:
            self.on_stream.setdefault(stream, []).append(event)

    def pop(self) -> None:
        """Take the last one back, with what it released."""
        event = self.events.pop()
        message = event.message
        self.at_node[message.dst][event.footprint] ^= event.bit
        self.on_channel[message.channel].pop()
        for stream in event.move.streams:
            self.on_stream[stream].pop()
        for sent in event.released:
            del self.releases[sent]
        for operation in event.move.done:
            del self.finished[operation]


Visit = Callable[[list[Event], Config], bool]
"""Called with each complete execution; returning True ends the search."""
STOP_EVERY: Final = 256
"""Deliveries between two questions whether to stop."""


class Dpor:
    """The search over one model."""

    def __init__(self, model: Model, visit: Visit, stop: Callable[[Tally], bool]) -> None:
        self.model, self.visit, self.stop = model, visit, stop
        self.tally = Tally()
        self.path = Path()
        self.points: list[Point] = []

    def run(self) -> bool:
        """Search until ``visit`` or ``stop`` says so; True if everything was tried."""
        first = self.model.first()
        self.path.releases = dict.fromkeys(first.heads(), 0)
        over = self._enter(first, {})
        points, tally = self.points, self.tally
        while points and not over:
            if tally.deliveries % STOP_EVERY == 0 and self.stop(tally):
                return False
            ways = self._next(points[-1])
            if ways is not None:
                over = self._deliver(points[-1], ways)
                continue
            points.pop()
            if points:
                self.path.pop()
        return not over

    # -- what is next -------------------------------------------------------------------------

    def _next(self, point: Point) -> Ways | None:
        """The next ways of the current message, or the first of the next; None: all tried."""
        if point.queue:
            return point.queue.pop()
        if point.message is not None:
            point.sleep[point.message] = point.moves
            point.message = None
        for message in list(point.todo)[point.taken :]:
            point.taken += 1
            if message not in point.sleep:
                point.message, point.moves = message, ()
                return ()
        return None

    def _enter(self, config: Config, sleep: Sleepers) -> bool:
        """Arrive in a state; True if the search is over."""
        point = Point(config, sleep)
        self.points.append(point)
        heads = config.heads()
        if not heads:
            self.tally.executions += 1
            return self.visit(self.path.events, config)
        awake = [message for message in heads if message not in sleep]
        if awake:
            point.todo[self._first(config, awake)] = None
        else:
            self.tally.blocked += 1
        return False

    def _first(self, config: Config, awake: list[Sent]) -> Sent:
        """Something that depends on nothing if there is, else the newest: threads run on."""
        for message in awake:
            if self.model.move(config, message).private:
                return message
        return max(awake, key=self._sent_at)

    def _sent_at(self, message: Sent) -> int:
        """How far the execution was when it was sent; the mask of its past is that long."""
        return self.path.releases[message].bit_length()

    # -- one event ----------------------------------------------------------------------------

    def _deliver(self, point: Point, ways: Ways) -> bool:
        message, model = point.message, self.model
        assert message is not None
        move = model.move(point.config, message, ways)
        point.moves += (move,)
        point.queue += other_ways(move, len(ways))
        event = self._event(message, move)
        self.tally.deliveries += 1
        config, event.released = model.step(point.config, message, move)
        self._release(event)
        return self._enter(config, self._still_asleep(point, event))

    def _event(self, message: Sent, move: Move) -> Event:
        """Append the event to the path, and ask for the reversal of every race that it ends."""
        event = Event(1 << len(self.path.events), message, move)
        before = self._dependent(event)
        known = self.path.releases[message]
        channel = self.path.on_channel.get(message.channel)
        if channel:
            known |= channel[-1].past
        # Only the latest of those that depend on one another race with this one.
        while before := before & ~known:
            other = self.path.events[before.bit_length() - 1]
            self._reverse(other, event)
            known |= other.past
        event.past |= known
        self.path.append(event)
        return event

    def _dependent(self, event: Event) -> int:
        """Mask of earlier events that it depends on by what was touched, or by a stream."""
        if event.move.private:
            return 0
        node, mask = event.message.dst, 0
        masks = self.path.at_node.get(node, {})
        for footprint in self.model.tables.machines[node].footprints.rivals(event.footprint):
            mask |= masks.get(footprint, 0)
        for stream in event.move.streams:
            for other in self.path.on_stream.get(stream, ()):
                mask |= other.bit
        return mask

    def _release(self, event: Event) -> None:
        """What it sent happens after it; what it fed, after all that it comes after."""
        path, after = self.path, self.model.feed.after
        for operation in event.move.done:
            path.finished[operation] = event.past
        for sent in event.released:
            past = event.past
            for operation in after.get(sent.id, ()):
                past |= path.finished[operation]
            path.releases[sent] = past

    # -- races --------------------------------------------------------------------------------

    def _reverse(self, first: Event, event: Event) -> None:
        """Make sure that the state before ``first`` tries something that leads to the reversal.

        Of what does not happen after ``first``, and then ``event``, one that can go first must be
        in the backtrack set.  What ``event`` touches may be different when it comes sooner, so it
        counts as one that can go first only if nothing of that is at its node.
        """
        self.tally.races += 1
        at = first.bit.bit_length() - 1
        todo = self.points[at].todo
        seen, alone = 0, True
        initials = []
        for other in self.path.events[at + 1 :]:
            if not other.past & first.bit:
                if not other.past & seen:
                    initials.append(other.message)
                seen |= other.bit
                alone &= other.message.dst != event.message.dst
        if alone and not self.path.releases[event.message] & seen:
            initials.append(event.message)
        if not any(message in todo for message in initials):
            todo[initials[0]] = None

    def _still_asleep(self, point: Point, event: Event) -> Sleepers:
        return {
            sleeper: moves
            for sleeper, moves in point.sleep.items()
            if not any(self._depend(sleeper, move, event) for move in moves)
        }

    def _depend(self, message: Sent, move: Move, event: Event) -> bool:
        node = message.dst
        if node == event.message.dst:
            footprints = self.model.tables.machines[node].footprints
            if footprints.conflict(move.footprint, event.footprint):
                return True
        return any(stream in event.move.streams for stream in move.streams)
