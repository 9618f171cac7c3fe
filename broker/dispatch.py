"""Which deliveries may go to the nodes now: as they come, one by one, or as recorded.

A dispatcher takes messages out of the exchange; the router sends them.  ``in_flight`` holds, per
node, the numbers that were delivered and not yet handled, oldest first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

from mmurace.broker import plan
from mmurace.broker.exchange import Exchange
from mmurace.broker.schedules import Arrival, Recorded, Schedule, ScheduleEntry
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.limits import DELIVERIES_IN_FLIGHT_MAX

InFlight = dict[str, deque[int]]
Deliveries = list[tuple[int, Envelope]]


class Reaper:
    """Lets nodes die at boundaries between deliveries; what all dispatchers share."""

    def __init__(self, exchange: Exchange, in_flight: InFlight) -> None:
        self.exchange, self.in_flight = exchange, in_flight
        self.status = self.detail = ""
        self.gone: list[str] = []
        """Nodes that have died since somebody last took them from here."""

    def reap(self) -> bool:
        """Let die who is to die by now; False: nothing may be delivered before that is done."""
        deaths = self.exchange.deaths
        if deaths is None:
            return True
        self.gone += self.exchange.reap(self._idle)
        if deaths.ended_by:
            self.status = plan.KILLED
            self.detail = killed_text(deaths.ended_by, self.exchange.number)
        return not self.status and not deaths.leaving

    def _idle(self, node: str) -> bool:
        return not self.in_flight[node]


def killed_text(node: str, number: int) -> str:
    """Why a run has ended that chaos ended."""
    return f"chaos killed {node} after delivery {number}"


class Dispatcher(Protocol):
    """Decides what is delivered next."""

    status: str
    """Why nothing more will come; empty while it may."""
    detail: str
    gone: list[str]
    """Nodes that have died; who tells of them empties it."""

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


class Pipelined(Reaper):
    """Everything deliverable at once; per node in order of release, and never too many."""

    def __init__(self, exchange: Exchange, in_flight: InFlight, last: int) -> None:
        super().__init__(exchange, in_flight)
        self.last = last

    def take(self) -> Deliveries:
        """All heads whose receivers are not saturated."""
        exchange = self.exchange
        taken: Deliveries = []
        leaving = () if self.reap() or exchange.deaths is None else exchange.deaths.leaving
        while exchange.number < self.last and not self.status:
            before = len(taken)
            self._sweep(taken, leaving)
            if len(taken) > before and exchange.heads:
                continue  # followers of what was taken
            if exchange.heads or taken or any(self.in_flight.values()):
                break
            if not exchange.unstick():
                self.status = plan.QUIESCENT
                break
        over = exchange.number >= self.last and not self.status
        if over and not taken and not any(self.in_flight.values()):
            self.status = plan.LIMIT
        return taken

    def _sweep(self, taken: Deliveries, leaving: Sequence[str]) -> None:
        """Take what can be taken, oldest first; from the end, where taking moves nothing.

        Who is ``leaving`` is given nothing more.
        """
        exchange, in_flight = self.exchange, self.in_flight
        heads, take = exchange.heads, exchange.take
        if len(heads) > 1:
            heads.sort(key=_released, reverse=True)
        for index in range(len(heads) - 1, -1, -1):
            if index >= len(heads):
                continue  # a gate has closed: fewer are deliverable now
            if leaving and heads[index].dst in leaving:
                continue
            queue = in_flight[heads[index].dst]
            if len(queue) < DELIVERIES_IN_FLIGHT_MAX and exchange.number < self.last:
                envelope = take(index)
                queue.append(exchange.number)
                taken.append((exchange.number, envelope))


def _released(envelope: Envelope) -> int:
    return envelope.causes[-1] if envelope.causes else 0


class Serial(Reaper):
    """One delivery at a time, chosen by a schedule: what the simulator does, on processes."""

    def __init__(
        self, exchange: Exchange, in_flight: InFlight, last: int, schedule: Schedule
    ) -> None:
        super().__init__(exchange, in_flight)
        self.last, self.schedule = last, schedule

    def take(self) -> Deliveries:
        """The next delivery, once the last one was handled."""
        exchange = self.exchange
        if any(self.in_flight.values()) or not self.reap():
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


class Replayed(Reaper):
    """The recorded deliveries, in order and with their numbers, without waiting in between.

    The next one goes out as soon as it is deliverable, whatever is still being handled, so nodes
    run in parallel where releases allow.
    """

    def __init__(
        self, exchange: Exchange, in_flight: InFlight, entries: Iterable[ScheduleEntry]
    ) -> None:
        super().__init__(exchange, in_flight)
        self.entries = deque(entries)

    def take(self) -> Deliveries:
        """As many as are deliverable in a row."""
        taken: Deliveries = []
        while self.reap() and self.entries:
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
        if not taken and not any(self.in_flight.values()) and not self.status:
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
