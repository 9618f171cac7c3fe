"""Every message between "sent" and "delivered": channels, faults, numbers, the balance.

A broker puts what a handling sent in with ``release`` and takes what it delivers out with
``take``; everything between (order of channels, what chaos holds back, what is repeated) is
here, once, for the router and the simulator.

Time is counted in deliveries.  A delayed message becomes deliverable again after so many more of
them; nothing here reads a clock.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Set
from typing import Final

import msgspec

from mmurace.broker.counts import Counts
from mmurace.broker.deaths import Deaths, Killing, peer_gone
from mmurace.broker.faults import Chaos, Fault, Gated, Gatekeeper, Sparing
from mmurace.broker.programs import Feeder
from mmurace.protocol.envelope import BROKER, REPLY_MARK, Envelope, request_id
from mmurace.protocol.trace import Ending

Channel = tuple[str, str] | str
_NONE: Final[Set[str]] = frozenset()


class Exchange:
    """Messages that were sent and not yet delivered."""

    def __init__(self, feeder: Feeder, chaos: Chaos | None = None, recorded: bool = False) -> None:
        """``recorded``: a record says the order, and ``chaos`` says exactly what was lost.

        Between processes a stream that many feed has the order in which their sends reached the
        broker, which is not that of the deliveries that caused them; only the record knows it.
        """
        self._recorded = recorded
        self._plain = chaos is None and not recorded
        self.feeder, self.chaos = feeder, chaos
        self._gates: Gatekeeper | None = None
        self._spared = _NONE
        self.deaths: Deaths | None = None
        """Who is dying and dead, if anybody can die."""
        if chaos is not None:
            self._ask(chaos)
        self._open = self._gates is None and self.deaths is None
        """The first of a channel is deliverable unless a fault of its own keeps it back."""
        self._gated: list[Envelope] = []
        """Firsts of their channels that a closed gate stops."""
        self.number = 0
        """The number of the last delivery."""
        self.heads: list[Envelope] = []
        """Deliverable now; each is the first of its channel."""
        self.counts = Counts()
        self._followers: dict[Channel, deque[Envelope] | None] = {}
        self._blocked: dict[Channel, Envelope] = {}
        """Firsts of their channels that chaos keeps back."""
        self._later: list[tuple[int, int, Envelope]] = []
        self._order = 0
        self.requests: dict[str, Envelope] = {}
        """Requests without a delivered reply, by id: who waits for what, and what to repeat."""
        self._lost: set[str] = set()
        """Replies that were dropped once and not delivered since: the next one gets through."""
        self._doubled: dict[tuple[str, tuple[int, ...]], int] = {}
        """Messages to repeat once they are delivered, and how many deliveries after that.

        By id and causes: a reply may be sent twice, and whether the first has been delivered when
        the second comes depends on the speed of nodes, which a record does not have."""

    def _ask(self, chaos: Chaos) -> None:
        """What it may do beyond faults of single messages."""
        if isinstance(chaos, Gated):
            self._gates = chaos.gates or None
        if isinstance(chaos, Sparing) and not self._recorded:
            self._spared = chaos.spared
        if isinstance(chaos, Killing) and chaos.kills.world is not None:
            self.deaths = Deaths(chaos.kills, chaos.kills.world, self.feeder)

    def start(self) -> None:
        """Make the first operations pending."""
        if self._gates is not None:
            self._gates.moved(0)
        for envelope in self.feeder.start():
            self._submit(envelope)

    # -- in ------------------------------------------------------------------------------

    def release(self, n: int, messages: list[Envelope]) -> None:
        """The handling of delivery ``n`` sent these."""
        if not self._plain:
            self._release_under_chaos(n, messages)
            return
        # Nothing is lost, repeated or kept back: explorations live here.
        causes, heads, channels = (n,), self.heads, self._followers
        for envelope in messages:
            envelope.causes = causes
            if envelope.id[-1] == REPLY_MARK:
                if envelope.dst != BROKER:
                    heads.append(envelope)  # the only one of its channel
                else:
                    self._consume(envelope, n)
            else:
                self.requests[envelope.id] = envelope
                channel: Channel = envelope.stream or (envelope.path, envelope.dst)
                if channel in channels:
                    self._follow(channel, envelope)
                else:
                    channels[channel] = None
                    heads.append(envelope)
        self.counts.sent += len(messages)

    def _release_under_chaos(self, n: int, messages: list[Envelope]) -> None:
        """The same where messages may be lost, repeated or kept back, or a record says so."""
        causes, deaths = (n,), self.deaths
        for envelope in messages:
            envelope.causes = causes
            if deaths is not None:
                deaths.sent(envelope)
            if envelope.dst == BROKER:
                self.counts.sent += 1
                self._consume(envelope, n)
                if deaths is not None:
                    deaths.finished(request_id(envelope.id))
            else:
                self._submit(envelope)

    def _consume(self, reply: Envelope, n: int) -> None:
        """An operation was finished by the handling of delivery ``n``."""
        self.counts.consumed += 1
        request = request_id(reply.id)
        self.requests.pop(request, None)
        for fed in self.feeder.done(request, n):
            self._submit(fed)

    def _submit(self, envelope: Envelope) -> None:
        self.counts.sent += 1
        if self._recorded and envelope.stream:
            own = f"{envelope.stream} of {envelope.path}"  # as before apart from what is on none
            envelope = msgspec.structs.replace(envelope, stream=own)
        request = envelope.id[-1] != REPLY_MARK
        if request:
            self.requests[envelope.id] = envelope
        if self.chaos is None:
            if not request:  # nothing is repeated, so it is the only one of its channel
                self.heads.append(envelope)
                return
        elif envelope.kind not in self._spared:
            lost = not self._recorded and envelope.id in self._lost
            fault = None if lost else self.chaos.fault(envelope)
            if fault is not None and not self._apply(envelope, fault):
                return
        self._enqueue(envelope)

    def _apply(self, envelope: Envelope, fault: Fault) -> bool:
        """Do what the fault says; False if the message itself is gone."""
        if fault.kind == "duplicate":
            # Made when the original is delivered: a copy is outside all order, so if it went
            # first, what it carries would have overtaken its own channel.
            self._doubled[envelope.id, envelope.causes] = fault.after
            return True
        if fault.kind == "drop":
            self.counts.dropped += 1
            if envelope.id.endswith(REPLY_MARK):
                if fault.missed:
                    self._lose_reply(envelope, fault.after)
                return False
            # A lost request keeps its place: what follows on its channel may not overtake it.
            self.counts.retransmitted += 1
        if fault.kind == "hold" and self.chaos is not None:
            envelope.blocked = True
            self.chaos.hold(envelope, fault.rule)
        else:
            self._delay(envelope, fault.after)
        return True

    def _lose_reply(self, reply: Envelope, after: int) -> None:
        """The asker repeats its request, and the receiver then repeats its stored reply."""
        request = self.requests.get(request_id(reply.id))
        if request is None:
            return  # another copy of this reply was delivered: nobody misses this one
        self._lost.add(reply.id)
        self.counts.retransmitted += 1
        self._repeat(request, after)

    def _repeat(self, envelope: Envelope, after: int) -> None:
        """Queue another copy, on a channel of its own: repetitions are outside all order."""
        number = envelope.copy + 1
        copy = msgspec.structs.replace(
            envelope, copy=number, path=f"{envelope.id}#{number}", stream="", blocked=False
        )
        self._delay(copy, after)
        self._enqueue(copy)

    def _delay(self, envelope: Envelope, after: int) -> None:
        if after <= 0:
            return
        envelope.blocked = True
        self._order += 1
        heapq.heappush(self._later, (self.number + after, self._order, envelope))

    def _enqueue(self, envelope: Envelope) -> None:
        channel: Channel = envelope.stream or (envelope.path, envelope.dst)
        if channel not in self._followers:
            self._followers[channel] = None
            if self._open and not envelope.blocked:
                self.heads.append(envelope)
            else:
                self._lead(channel, envelope)
        else:
            self._follow(channel, envelope)

    def _follow(self, channel: Channel, envelope: Envelope) -> None:
        """It comes after all that are on their way on its channel."""
        followers = self._followers[channel]
        if followers is None:
            self._followers[channel] = deque((envelope,))
        else:
            followers.append(envelope)

    # -- out -----------------------------------------------------------------------------

    def take(self, index: int, number: int | None = None) -> Envelope:
        """Deliver ``heads[index]``: it gets the next number (or, on replay, ``number``)."""
        heads = self.heads
        envelope = heads[index]
        last = heads.pop()
        if last is not envelope:
            heads[index] = last
        self.number = self.number + 1 if number is None else number
        self.counts.delivered += 1
        chaos = self.chaos
        if envelope.id[-1] == REPLY_MARK:
            if chaos is None:  # the only one of its channel, which is named for the request
                self.requests.pop(envelope.path, None)
                return envelope
            self.requests.pop(envelope.id[:-1], None)
        channel: Channel = envelope.stream or (envelope.path, envelope.dst)
        followers = self._followers.pop(channel)
        if followers:
            self._followers[channel] = followers
            self._lead(channel, followers.popleft())
        if chaos is not None:
            if self.deaths is not None:
                self.deaths.delivered(envelope)
            if self._later and self._later[0][0] <= self.number:
                self._release_due()
            if envelope.copy == 0 and (self._lost or self._doubled):
                self._arrived(envelope)
            for freed in chaos.delivered(envelope):
                self._unblock(freed)
            if self._gates is not None and self._gates.moved(self.number):
                self._sort_by_gates(self._gates)
        return envelope

    def _arrived(self, envelope: Envelope) -> None:
        """An original was delivered: it is lost no more, and its duplicate may follow."""
        self._lost.discard(envelope.id)
        after = self._doubled.pop((envelope.id, envelope.causes), None)
        if after is not None:
            self.counts.duplicated += 1
            self._repeat(envelope, after)

    def _lead(self, channel: Channel, envelope: Envelope) -> None:
        """``envelope`` is now the first of its channel."""
        if self.deaths is not None and self.deaths.stops(envelope):
            self._cannot_arrive(envelope)
            self._advance(channel)
        elif envelope.blocked:
            self._blocked[channel] = envelope
        elif self._gates is None:
            self.heads.append(envelope)
        else:
            self._offer(envelope)

    def _offer(self, envelope: Envelope) -> None:
        """It may be delivered, as far as its channel and its own faults go."""
        if self._gates is not None and self._gates.shut(envelope):
            self._gated.append(envelope)
        else:
            self.heads.append(envelope)

    def _sort_by_gates(self, gates: Gatekeeper) -> None:
        """Gates have closed or opened: what is deliverable now."""
        before, self._gated = self._gated, []
        opened: list[Envelope] = []
        for envelope in before:
            (self._gated if gates.shut(envelope, again=True) else opened).append(envelope)
        stopped = [envelope for envelope in self.heads if gates.shut(envelope)]
        if stopped:
            gone = set(map(id, stopped))
            self.heads[:] = [envelope for envelope in self.heads if id(envelope) not in gone]
        self._gated += stopped
        self.heads += opened

    def _release_due(self) -> None:
        while self._later and self._later[0][0] <= self.number:
            self._unblock(heapq.heappop(self._later)[2])

    def _unblock(self, envelope: Envelope) -> None:
        envelope.blocked = False
        channel: Channel = envelope.stream or (envelope.path, envelope.dst)
        if self._blocked.get(channel) is envelope:
            del self._blocked[channel]
            self._lead(channel, envelope)

    # -- deaths --------------------------------------------------------------------------

    def reap(self, idle: Callable[[str], bool] = lambda _: True) -> list[str]:
        """Let begin and end the deaths that are due after the last delivery: who is gone.

        ``idle``: whether a node has handled everything that was delivered to it; in one process
        each has.
        """
        deaths = self.deaths
        if deaths is None:
            return []
        for fed in deaths.begin(self.number):
            self._submit(fed)
        gone = deaths.go(self.number, idle)
        for node in gone:
            if node != deaths.ended_by:
                self._bury(node, deaths)
        return gone

    def _bury(self, node: str, deaths: Deaths) -> None:
        """Settle everything that concerns a node which is gone."""
        for fed in self.feeder.lost(node):
            self._submit(fed)
        for request in list(self.requests.values()):
            if request.src == node or (request.src == BROKER and request.dst == node):
                del self.requests[request.id]
        for request in deaths.unanswered(node):
            self._answer_for_the_dead(request)
        for kept in (self.heads, self._gated):
            stopped = [envelope for envelope in kept if deaths.stops(envelope)]
            kept[:] = [envelope for envelope in kept if not deaths.stops(envelope)]
            for envelope in stopped:
                self._cannot_arrive(envelope)
                self._advance(channel_of(envelope))
        for channel, envelope in list(self._blocked.items()):
            if deaths.stops(envelope):
                del self._blocked[channel]
                self._lead(channel, envelope)

    def _advance(self, channel: Channel) -> None:
        """The first of a channel is gone: the next one, if there is any."""
        followers = self._followers.pop(channel)
        if followers:
            self._followers[channel] = followers
            self._lead(channel, followers.popleft())

    def _cannot_arrive(self, envelope: Envelope) -> None:
        """A message to a dead node, or lost with a device: whoever waits for a reply gets one."""
        self.counts.undeliverable += 1
        self._doubled.pop((envelope.id, envelope.causes), None)
        # A duplicate came after its original, which is answered; other copies make up for a loss.
        if not envelope.is_reply and (envelope.copy == 0 or envelope.id + REPLY_MARK in self._lost):
            self._answer_for_the_dead(envelope)

    def _answer_for_the_dead(self, request: Envelope) -> None:
        """The broker answers a request, unless who asked does not wait any more."""
        if request.src in (BROKER, request.dst) or request.id not in self.requests:
            return
        self._lost.discard(request.id + REPLY_MARK)
        self.counts.sent += 1
        self._enqueue(peer_gone(request))

    def low_water(self) -> int:
        """No message to come has a cause below this, but for ends of operations.

        What is pending, and requests that may have to be repeated, name their causes; an
        operation that is fed later names ends of others, which may lie anywhere.
        """
        open_ = (*self._all_pending(), *self.requests.values())
        return min((min(e.causes) for e in open_ if _binds(e)), default=self.number)

    @property
    def pending(self) -> int:
        """How many messages were sent and not yet delivered, counted where they are."""
        return sum(1 for _ in self._all_pending())

    def ending(self) -> Ending:
        """How things stand now."""
        waiting = tuple((e.id, e.kind, e.src, e.dst) for e in self.requests.values())
        complete = self.feeder.exhausted and not self.heads
        return Ending(self.number, self.feeder.finished, complete, waiting)

    def _all_pending(self) -> Iterator[Envelope]:
        yield from self.heads
        yield from self._gated
        yield from self._blocked.values()
        for followers in self._followers.values():
            yield from followers or ()

    def unstick(self) -> bool:
        """All nodes are idle and nothing is deliverable: bring the next thing forward.

        First whatever is only delayed or stopped by a gate, whichever is due first, then a hold
        whose event can no longer come.  False means quiescence: nothing can ever move again.
        """
        gates = self._gates
        due = self._later[0][0] if self._later else None
        if gates is not None and self._gated and (due is None or gates.opens() <= due):
            gates.cut_short(self.number)
            self._sort_by_gates(gates)
            return True
        if self._later:
            self._unblock(heapq.heappop(self._later)[2])
            return True
        if self.chaos is not None:
            freed = self.chaos.give_up()
            for envelope in freed:
                self._unblock(envelope)
            return bool(freed)
        return False

    def heal(self) -> None:
        """The chaos phase is over: everything kept back moves again, in its channel's order."""
        if self._gates is not None:
            self._gates.heal(self.number)
            self._sort_by_gates(self._gates)
        if self.deaths is not None:
            self.deaths.kills.heal()
        while self._later:
            self._unblock(heapq.heappop(self._later)[2])
        self._doubled = dict.fromkeys(self._doubled, 0)
        if self.chaos is not None:
            for envelope in self.chaos.heal():
                self._unblock(envelope)


def _binds(envelope: Envelope) -> bool:
    """Whether what it is caused by must be remembered because of it; ends of operations are."""
    return envelope.src != BROKER or (envelope.copy > 0 and bool(envelope.causes))


def channel_of(envelope: Envelope) -> Channel:
    """What first-in-first-out holds for."""
    return envelope.stream or (envelope.path, envelope.dst)
