"""A toy world for tests of the exchange: nodes whose behaviour is a hash of what they handle.

They use the real driver, so repetitions meet the real stored replies.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from mmurace.broker.exchange import Exchange
from mmurace.broker.faults import Chaos
from mmurace.broker.programs import Feeder, Program, Step
from mmurace.broker.schedules import RandomWalk, Schedule, ScheduleEntry
from mmurace.nodes.driver import Driver, draw
from mmurace.protocol.envelope import BROKER, REPLY_MARK, Envelope
from mmurace.protocol.messages.base import Ack, Message
from mmurace.protocol.messages.memory import PtlLock
from mmurace.protocol.messages.processor import FlushTlbIpi
from mmurace.protocol.messages.program import OpDone, Touch

NODES = ("a0", "a1", "b0")
STREAMS = ("", "queue0", "queue1")
DEPTH_MAX = 2
DELIVERIES_MAX = 20_000


@dataclass
class Log:
    """What happened, for the assertions."""

    started: Counter[str] = field(default_factory=Counter)
    sent: dict[object, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Channel -> ids in the order in which they were first sent."""
    arrived: dict[object, list[str]] = field(default_factory=lambda: defaultdict(list))
    entries: list[ScheduleEntry] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)


class Toy:
    """Handles everything; how many children a request has is drawn from its id."""

    def __init__(self, driver: Driver, seed: int, log: Log) -> None:
        self.driver, self.seed, self.log = driver, seed, log
        driver.handlers = {Touch: self.work, FlushTlbIpi: self.work, PtlLock: self.leaf}

    def leaf(self, message: Message, envelope: Envelope) -> Message:
        """Answered at once."""
        self.log.started[envelope.id] += 1
        return Ack()

    async def work(self, message: Message, envelope: Envelope) -> Message:
        """Calls some, posts others on streams, and waits for all."""
        self.log.started[envelope.id] += 1
        port, posted = self.driver.port, []
        for child in range(draw(self.seed, envelope.id) % 4):
            number = draw(self.seed, f"{envelope.id}/{child}")
            deep = envelope.id.count(".") < DEPTH_MAX and number & 1
            request = FlushTlbIpi("mm0", 0, 4096) if deep else PtlLock(child)
            dst = NODES[(number >> 8) % len(NODES)]
            if number & 2:
                await port.call(dst, request)
            else:
                posted.append(port.post(dst, request, STREAMS[(number >> 16) % 3]))
        await port.settle(posted)
        return OpDone(0) if "." not in envelope.id else Ack()


@dataclass
class Run:
    """A toy run: the exchange, its nodes and the log."""

    exchange: Exchange
    drivers: dict[str, Driver]
    log: Log


def make_run(seed: int, chaos: Chaos | None, operations: int = 3) -> Run:
    """A toy world with one program on each node."""
    step = Step(Touch("mm0", 0, False))
    feeder = Feeder([Program(name, name, [step] * operations) for name in NODES])
    run = Run(Exchange(feeder, chaos), {name: Driver(name, seed) for name in NODES}, Log())
    for driver in run.drivers.values():
        Toy(driver, seed, run.log)
    return run


def play(
    run: Run, schedule: Schedule | None = None, each: Callable[[Run], None] = lambda _: None
) -> None:
    """Deliver until quiescence, or until the schedule ends, checking the balance at every step."""
    exchange, log = run.exchange, run.log
    schedule = schedule or RandomWalk(1)
    exchange.start()
    note_sent(log, list(exchange.requests.values()))
    while exchange.number < DELIVERIES_MAX:
        assert exchange.counts.balance(exchange.pending) == 0
        if not exchange.heads:
            if exchange.unstick():
                continue
            break
        index = schedule.pick(exchange.heads)
        if index < 0:
            break
        deliver(run, index)
        each(run)
    assert exchange.number < DELIVERIES_MAX, "it never ends"


def deliver(run: Run, index: int) -> None:
    """One delivery."""
    exchange, log = run.exchange, run.log
    envelope = exchange.take(index)
    assert not envelope.blocked
    log.entries.append((exchange.number, envelope.id, envelope.copy))
    if envelope.copy == 0 and envelope.id not in log.gone:
        log.gone.add(envelope.id)
        log.arrived[channel_of(envelope)].append(envelope.id)
    elif envelope.copy and not envelope.id.endswith(REPLY_MARK):
        assert envelope.id in log.gone, "a repetition overtook its original"
    messages = run.drivers[envelope.dst].deliver(exchange.number, envelope).messages
    before = set(exchange.requests)
    exchange.release(exchange.number, messages)
    fed = [e for key, e in exchange.requests.items() if key not in before and e.src == BROKER]
    note_sent(log, [e for e in messages if e.dst != BROKER] + fed)


def note_sent(log: Log, envelopes: list[Envelope]) -> None:
    """Remember the order of each channel."""
    for envelope in envelopes:
        if envelope.id not in log.seen:
            log.seen.add(envelope.id)
            log.sent[channel_of(envelope)].append(envelope.id)


def channel_of(envelope: Envelope) -> object:
    """What first-in-first-out holds for."""
    return envelope.stream or (envelope.path, envelope.dst)
