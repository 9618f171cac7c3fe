"""The simulator: the same nodes as the router's, inside one process, one delivery at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mmurace.broker.exchange import Exchange
from mmurace.broker.schedules import Recorded, Schedule
from mmurace.nodes.driver import Driver
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.trace import Ending
from mmurace.protocol.wire import Choices

Observer = Callable[[Envelope, Handled], object]
"""Sees every delivery with its outcome, in order; if it returns True the feeding ends."""


class Simulator:
    """Runs a world under a schedule until quiescence, or until the schedule ends."""

    def __init__(
        self,
        drivers: Mapping[str, Driver],
        exchange: Exchange,
        schedule: Schedule,
        observer: Observer | None = None,
        choices: Mapping[int, Choices] | None = None,
        mourner: Callable[[str], object] | None = None,
    ) -> None:
        self.drivers, self.exchange, self.schedule = drivers, exchange, schedule
        self.observer = observer
        self.choices = choices or {}
        """Choices that the handling of a delivery must take, by its number."""
        self.mourner = mourner
        """Told of every node that is gone, before the next delivery."""

    def run(self, deliveries_max: int | None = None) -> Ending:
        """Deliver until nothing can move; ``deliveries_max`` bounds a run that never ends."""
        exchange, drivers, observer = self.exchange, self.drivers, self.observer
        heads, pick = exchange.heads, self.schedule.pick
        take, release, choices = exchange.take, exchange.release, self.choices
        exchange.start()
        last = deliveries_max or 1 << 62
        mortal = exchange.deaths is not None
        recorded = self.schedule if isinstance(self.schedule, Recorded) else None
        while exchange.number < last:
            if mortal and self._reap():
                break
            if not heads:
                if exchange.unstick():
                    continue
                break
            index = pick(heads)
            if index < 0:
                break
            envelope = take(index) if recorded is None else take(index, recorded.number)
            n = exchange.number
            given = choices.get(n) if choices else None
            handled = drivers[envelope.dst].deliver(n, envelope, given)
            release(n, handled.messages)
            if observer is not None and observer(envelope, handled) is True:
                exchange.feeder.stop()
        return exchange.ending()

    def _reap(self) -> bool:
        """Let die who is to die by now; whether the run ends with that."""
        for node in self.exchange.reap():
            if self.mourner is not None:
                self.mourner(node)
        return self.exchange.deaths is not None and self.exchange.deaths.ended_by != ""
