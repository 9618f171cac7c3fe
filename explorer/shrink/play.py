"""Playing a case: its deliveries where they can be had, and a fixed policy where they cannot.

*Lenient*: of all that is deliverable, whatever comes first in the wished order is next.  What the
order does not name comes only when nothing else can move, first in the thread that moved last
(lazy), or in its thread's turn, on the way to what the order names next there (eager).  *Strict*:
the order to the letter, and ``ReplayDivergence`` where that is impossible.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from mmurace.broker.exchange import Exchange
from mmurace.broker.faults import FaultKind
from mmurace.broker.programs import Feeder
from mmurace.explorer.shrink.case import (
    Case,
    NamedFaults,
    Names,
    Target,
    switches,
    target_of,
    thread_of,
)
from mmurace.explorer.shrink.deaths import Death, NamedDeaths, moved_back
from mmurace.nodes.build import build_all
from mmurace.nodes.driver import Driver
from mmurace.nodes.footprint import Footprint
from mmurace.nodes.plugins import at_fault
from mmurace.oracle.oracle import Oracle
from mmurace.oracle.violation import Violation
from mmurace.protocol.envelope import Envelope, Handled, operation_of
from mmurace.protocol.errors import EmulatorError, ReplayDivergence, UserError
from mmurace.protocol.trace import Ending

SPARE_DELIVERIES: int = 5_000
"""A lenient run may be so much longer than its order; a run that never ends is cut here."""
NAMES_SHOWN_MAX = 4
Hold = tuple[str, str]
"""(early, late): ``early`` may be delivered only after ``late``."""


@dataclass(slots=True)
class Moment:
    """One delivery as it was played."""

    n: int
    name: str
    envelope: Envelope
    handled: Handled
    touched: Footprint


@dataclass(slots=True)
class Played:
    """How a case went."""

    order: tuple[str, ...]
    """What was delivered, up to the violation if the run stops there."""
    choices: dict[str, int]
    """Choices that were asked for and not resting."""
    found: Violation | None
    """The violation that was looked for."""
    violations: list[Violation]
    ending: Ending
    quiescent: bool
    """Nothing more could move (else: it stopped at the violation or at a bound)."""
    moments: list[Moment] = field(default_factory=list)
    deaths: tuple[Death, ...] = ()
    """Those that began."""
    begun: dict[str, int] = field(default_factory=dict)
    """Nodes that began to die -> the delivery after which."""
    gone: dict[str, int] = field(default_factory=dict)
    """Nodes that were dead -> the delivery after which."""

    @property
    def cost(self) -> tuple[int, int]:
        """(deliveries, switches): what a shorter schedule has less of."""
        return len(self.order), switches(self.order)


@dataclass(frozen=True, slots=True)
class How:
    """How to play."""

    target: Target | None = None
    stop: bool = True
    """End at the target's first violation."""
    strict: bool = False
    eager: bool = False
    """What the order does not name moves in its thread's turn, not last."""
    keep: bool = False
    """Keep every delivery with what it touched."""
    hold: Hold | None = None
    seed: int | None = None
    """Draw among what the order does not name, instead of going on with the last thread."""
    deliveries_max: int | None = None


def play(case: Case, how: How | None = None) -> Played:
    """Play a case.  Raises ``ReplayDivergence`` if strict and the order does not fit.

    Where a death waited in vain, leniently, for a delivery that never came, it moves back to one
    that did: on another kernel, or with less in the world, some messages are not sent.
    """
    how = how or How()
    played = Player(case, how).run()
    waited = len(played.deaths) < len(case.deaths) and not (played.found and how.stop)
    if not waited or how.strict:
        return played
    back = moved_back(case.deaths, case.order, set(played.order))
    return played if back == case.deaths else Player(replace(case, deaths=back), how).run()


class Player:
    """One run of a case, step by step."""

    def __init__(self, case: Case, how: How) -> None:
        self.case, self.how = case, how
        self.names = Names()
        self.deaths = NamedDeaths(case.deaths, case.spec.world)
        faults = NamedFaults(self.names, case.faults, self.deaths)
        self.exchange = Exchange(Feeder(case.programs), faults)
        self.drivers = build_all(case.spec.world, case.spec.seed)
        self.oracle = Oracle(case.spec.world, case.spec.sometimes)
        self.kinds = case.kinds()
        self.rank = {name: at for at, name in enumerate(case.order)}
        self._turns = _turns(case.order) if how.eager else {}
        self.order: list[str] = []
        self.choices: dict[str, int] = {}
        self.moments: list[Moment] = []
        self.found: Violation | None = None
        self.gone: dict[str, int] = {}
        self.observer: Callable[[Envelope, Handled], object] | None = None
        """Sees every delivery, as an observer of the simulator does."""
        self.mourner: Callable[[str], object] | None = None
        """Told of every node that is gone, before the next delivery."""
        self._random = None if how.seed is None else random.Random(how.seed)
        self._held = how.hold is not None
        for driver in self.drivers.values():
            driver.chooser = self._choose

    @at_fault()
    def run(self) -> Played:
        """Until the target is found, the (strict) order ends, or nothing can move."""
        self.exchange.start()
        spare = len(self.case.order) + SPARE_DELIVERIES
        last = self.how.deliveries_max or spare
        quiescent = False
        while self.exchange.number < last and not (self.found and self.how.stop):
            self._reap()
            if not self.exchange.heads:
                if self.exchange.unstick():
                    continue
                quiescent = True
                break
            index = self._pick(self.exchange.heads)
            if index < 0:
                break
            self.step(index)
        return self._result(quiescent)

    def _reap(self) -> None:
        """Let begin and end the deaths that are due."""
        for node in self.exchange.reap():
            self.gone[node] = self.exchange.number
            self.oracle.lost(node)
            if self.mourner is not None:
                self.mourner(node)

    def step(self, index: int) -> tuple[Envelope, Handled]:
        """Deliver ``heads[index]`` and judge what that did."""
        exchange = self.exchange
        envelope = exchange.take(index, self._number())
        name = self.names.of(envelope)
        self.order.append(name)
        self.deaths.delivered(name)
        if self._turns:
            self._advance(name)
        handled = self._deliver(self.drivers[envelope.dst], envelope, name)
        self.names.see(handled.messages)
        exchange.release(exchange.number, handled.messages)
        if self.observer is not None:
            self.observer(envelope, handled)
        self._judge(self.oracle.observe(envelope, handled))
        if self._held and self.how.hold is not None and name == self.how.hold[1]:
            self._held = False
        return envelope, handled

    def _number(self) -> int | None:
        """The number of the delivery that was picked; None: the next one."""
        return None

    def _deliver(self, driver: Driver, envelope: Envelope, name: str) -> Handled:
        if not self.how.keep:
            return driver.deliver(self.exchange.number, envelope)
        touched: Footprint = []
        driver.port.touched = touched
        handled = driver.deliver(self.exchange.number, envelope)
        driver.port.touched = None
        self.moments.append(Moment(handled.n, name, envelope, handled, touched))
        return handled

    def _judge(self, violations: Sequence[Violation]) -> None:
        target = self.how.target
        if target is None or self.found is not None:
            return
        for violation in violations:
            if target_of(violation, self.case.spec.world, self.kinds) == target:
                self.found = violation
                return

    def _choose(self, path: str, nth: int, name: str, ways: int) -> int:
        """The way of the case, or the last one: by convention the hardware does nothing there."""
        identity = self.names.choice(path, nth, name)
        way = self.case.choices.get(identity, ways - 1)
        if way >= ways:
            way = ways - 1
        if way != ways - 1:
            self.choices[identity] = way
        return way

    def _result(self, quiescent: bool) -> Played:
        ending = self.exchange.ending()
        self._judge(self.oracle.finish(ending, quiescent))
        return Played(
            tuple(self.order), self.choices, self.found, list(self.oracle.violations), ending,
            quiescent, self.moments,
            tuple(death for death in self.case.deaths if death.node in self.deaths.begun),
            self.deaths.begun, self.gone,
        )  # fmt: skip

    # -- who is next -------------------------------------------------------------------------

    def _pick(self, heads: list[Envelope]) -> int:
        return self._strictly(heads) if self.how.strict else self._leniently(heads)

    def _strictly(self, heads: list[Envelope]) -> int:
        position = len(self.order)
        if position == len(self.case.order):
            return -1
        wanted = self.case.order[position]
        for index, envelope in enumerate(heads):
            if self.names.of(envelope) == wanted:
                return index
        raise divergence(position + 1, wanted, sorted(self.names.of(e) for e in heads))

    def _leniently(self, heads: list[Envelope]) -> int:
        rank, of = self.rank, self.names.of
        held = self.how.hold[0] if self._held and self.how.hold else ""
        best, best_rank = -1, len(rank)
        for index, envelope in enumerate(heads):
            name = of(envelope)
            at = rank.get(name)
            if at is None and self._turns:
                at = self._turn(name)
            if at is not None and at < best_rank and name != held:
                best, best_rank = index, at
        return best if best >= 0 else self._unnamed(heads, held)

    def _turn(self, name: str) -> int | None:
        """The rank of what the order names next in this message's thread."""
        turns = self._turns.get(thread_of(name))
        return turns[0] if turns else None

    def _advance(self, name: str) -> None:
        """A thread has come to ``name``: what the order names before that is its past."""
        at = self.rank.get(name)
        turns = self._turns.get(thread_of(name))
        while at is not None and turns and turns[0] <= at:
            turns.popleft()

    def _unnamed(self, heads: list[Envelope], held: str) -> int:
        """Nothing that the order names can move: a draw, or the thread that moved last."""
        free = [i for i, e in enumerate(heads) if self.names.of(e) != held]
        if not free:
            return 0  # what is held is all there is, so the order asked for cannot be had
        if self._random is not None:
            ordered = sorted(free, key=lambda i: heads[i].id)
            return ordered[int(self._random.random() * len(ordered))]
        current = operation_of(self.order[-1]) if self.order else ""
        return min(free, key=lambda i: _patience(heads[i], current))


def _turns(order: Sequence[str]) -> dict[str, deque[int]]:
    """The ranks that an order gives each thread, ascending."""
    turns: dict[str, deque[int]] = {}
    for at, name in enumerate(order):
        turns.setdefault(thread_of(name), deque()).append(at)
    return turns


def _patience(envelope: Envelope, current: str) -> tuple[bool, int, str, int]:
    """Smaller: sooner."""
    cause = envelope.causes[-1] if envelope.causes else 0
    return operation_of(envelope.id) != current, cause, envelope.id, envelope.copy


def divergence(number: int, wanted: str, deliverable: list[str]) -> ReplayDivergence:
    """The error that says where a schedule no longer fits: node, delivery and field."""
    more = ", ..." if len(deliverable) > NAMES_SHOWN_MAX else ""
    there = ", ".join(deliverable[:NAMES_SHOWN_MAX]) + more
    return ReplayDivergence(
        receiver_of(wanted), number, "id", f"{wanted} is not deliverable; there is {there}"
    )


def receiver_of(name: str) -> str:
    """The node that a named request goes to; for a reply, the one it comes from."""
    tail = name.rpartition(".")[2]
    return tail.rpartition("@")[2].rstrip("~").partition(":")[0] if "@" in tail else "its node"


def attempt(case: Case, how: How) -> Played | None:
    """Play a candidate; None if it is not a run at all or lacks the target."""
    try:
        played = play(case, how)
    except (EmulatorError, UserError):
        return None
    return played if played.found is not None else None


def as_played(case: Case, played: Played) -> Case:
    """The case with nothing that its run did not come to."""
    return replace(
        case, order=played.order, choices=played.choices, faults=faults_of(case, played),
        deaths=played.deaths,
    )  # fmt: skip


def faults_of(case: Case, played: Played) -> dict[tuple[str, int], FaultKind]:
    """The faults of a case whose messages were sent at all in a run."""
    there = {name.partition("#")[0].rstrip("~") for name in played.order}
    return {key: kind for key, kind in case.faults.items() if key[0].rstrip("~") in there}
