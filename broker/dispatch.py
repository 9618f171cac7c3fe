"""Which deliveries may go to the nodes now: as they come, one by one, or as recorded.

A dispatcher takes messages out of the exchange; the router sends them.  ``in_flight`` holds, per
node, the numbers that were delivered and not yet handled, oldest first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from broker import plan
from broker.exchange import Exchange
from broker.schedules import Arrival, Recorded, Schedule, ScheduleEntry
from protocol.envelope import Envelope
from protocol.limits import DELIVERIES_IN_FLIGHT_MAX

InFlight = dict[str, deque[int]]
Deliveries = list[tuple[int, Envelope]]


class Dispatcher(Protocol):
    """Decides what is delivered next."""

    status: str
    """Why nothing more will come; empty while it may."""
    detail: str

    def take(self) -> Deliveries:
        """What to deliver now.  Empty: wait for a node, or it is over (``status``)."""


def dispatcher(
    schedule: Schedule, exchange: Exchange, in_flight: InFlight, last: int
) -> Dispatcher:
    """The dispatcher for a kind of schedule; ``last`` is the highest number to deliver."""
    if isinstance(schedule, Arrival):
        return Pipelined(exchange, in_flight, last)
    if isinstance(schedule, Recorded):
        return Replayed(exchange, in_flight, schedule.entries)
    return Serial(exchange, in_flight, last, schedule)


class Pipelined:
    """Everything deliverable at once; per node in order of release, and never too many."""

    def __init__(self, exchange: Exchange, in_flight: InFlight, last: int) -> None:
        self.exchange, self.in_flight, self.last = exchange, in_flight, last
        self.status = self.detail = ""

    def take(self) -> Deliveries:
        """All heads whose receivers are not saturated."""
        exchange = self.exchange
        taken: Deliveries = []
        while exchange.number < self.last:
            before = len(taken)
            self._sweep(taken)
            if len(taken) > before and exchange.heads:
                continue  # followers of what was taken
            if exchange.heads or taken or any(self.in_flight.values()):
                break
            if not exchange.unstick():
                self.status = plan.QUIESCENT
                break
        if exchange.number >= self.last and not taken and not any(self.in_flight.values()):
            self.status = plan.LIMIT
        return taken

    def _sweep(self, taken: Deliveries) -> None:
        """Take what can be taken, oldest first; from the end, where taking moves nothing."""
        exchange, in_flight = self.exchange, self.in_flight
        heads, take = exchange.heads, exchange.take
        if len(heads) > 1:
            heads.sort(key=_released, reverse=True)
        for index in range(len(heads) - 1, -1, -1):
            if index >= len(heads):
                continue  # a gate has closed: fewer are deliverable now
            queue = in_flight[heads[index].dst]
            if len(queue) < DELIVERIES_IN_FLIGHT_MAX and exchange.number < self.last:
                envelope = take(index)
                queue.append(exchange.number)
                taken.append((exchange.number, envelope))


def _released(envelope: Envelope) -> int:
    return envelope.causes[-1] if envelope.causes else 0


class Serial:
    """One delivery at a time, chosen by a schedule: what the simulator does, on processes."""

    def __init__(
        self, exchange: Exchange, in_flight: InFlight, last: int, schedule: Schedule
    ) -> None:
        self.exchange, self.in_flight, self.last = exchange, in_flight, last
        self.schedule = schedule
        self.status = self.detail = ""

    def take(self) -> Deliveries:
        """The next delivery, once the last one was handled."""
        exchange = self.exchange
        if any(self.in_flight.values()):
            return []
        if exchange.number >= self.last:
            self.status = plan.LIMIT
            return []
        while not exchange.heads:
            if not exchange.unstick():
                self.status = plan.QUIESCENT
                return []
        index = self.schedule.pick(exchange.heads)
        if index < 0:
            self.status = plan.SCHEDULE_END
            return []
        envelope = exchange.take(index)
        self.in_flight[envelope.dst].append(exchange.number)
        return [(exchange.number, envelope)]


class Replayed:
    """The recorded deliveries, in order and with their numbers, without waiting in between.

    The next one goes out as soon as it is deliverable, whatever is still being handled, so nodes
    run in parallel where releases allow.
    """

    def __init__(
        self, exchange: Exchange, in_flight: InFlight, entries: Iterable[ScheduleEntry]
    ) -> None:
        self.exchange, self.in_flight = exchange, in_flight
        self.entries = deque(entries)
        self.status = self.detail = ""

    def take(self) -> Deliveries:
        """As many as are deliverable in a row."""
        taken: Deliveries = []
        while self.entries:
            n, id_, copy = self.entries[0]
            index = self._find(id_, copy)
            if index < 0:
                break
            queue = self.in_flight[self.exchange.heads[index].dst]
            if len(queue) >= DELIVERIES_IN_FLIGHT_MAX:
                break
            queue.append(n)
            taken.append((n, self.exchange.take(index, n)))
            self.entries.popleft()
        if not taken and not any(self.in_flight.values()):
            self._finish()
        return taken

    def _find(self, id_: str, copy: int) -> int:
        for index, envelope in enumerate(self.exchange.heads):
            if envelope.id == id_ and envelope.copy == copy:
                return index
        return -1

    def _finish(self) -> None:
        if self.entries:
            n, id_, copy = self.entries[0]
            self.status = plan.DIVERGED
            self.detail = f"delivery {n}, field id: {id_} (copy {copy}) is not deliverable"
        elif self.exchange.heads:
            self.status = plan.SCHEDULE_END
        else:
            self.status = plan.QUIESCENT
