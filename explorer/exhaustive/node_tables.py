"""Nodes as tables: what a node does with a message in a state is computed once.

A node's answer depends on its own state alone, so each (state, message, choices) needs to run real
node code only the first time; after that it is a look-up.  States are compared by value
(``frozen``), so different orders that lead to the same state share everything that follows.

Node code runs on a live driver.  Suspended coroutines cannot be copied, so a driver is brought to
a state by delivering again what first led there; nodes without coroutines are copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from mmurace.explorer.exhaustive.deferrable import may_come_later
from mmurace.explorer.exhaustive.state_values import Frozen, clone, freeze_driver
from mmurace.nodes.driver import Driver
from mmurace.nodes.footprint import Footprint, conflict, track
from mmurace.oracle.rules.l6_denials import UNLOCKS
from mmurace.oracle.rules.o_inherited import LOOK, PTL_LOCK
from mmurace.oracle.rules.o_s2_moves import PTL_UNLOCK
from mmurace.oracle.rules.o_s4_deadlines import REVOKING
from mmurace.oracle.state.kinds import kinds
from mmurace.protocol.envelope import BROKER, Envelope, Handled, operation_of, request_id
from mmurace.protocol.messages.base import Message
from mmurace.protocol.pte import usable
from mmurace.protocol.records import (
    Access,
    AccessTrapped,
    Evict,
    FilePageWritten,
    Fill,
    FlushDeferred,
    FrameCopied,
    FrameFreed,
    GuestEnter,
    IntervalClosed,
    IntervalTouched,
    InvalidateDone,
    Invalidation,
    NotifierCall,
    OpEnd,
    PageWritten,
    PermissionFault,
    PteChange,
    Record,
    RequestPosted,
    TagFree,
    Unregistered,
)

LIVE_DRIVERS_MAX: Final = 64
"""Live drivers of one node that are kept in case the search comes back to their states."""

Ways = tuple[int, ...]
"""The way taken at each choice of a handling."""


class Sent:
    """A message, once: equal messages are the same object."""

    __slots__ = ("body", "channel", "dst", "id", "kind", "path", "src", "stream", "uid")

    def __init__(self, uid: int, envelope: Envelope) -> None:
        self.uid, self.id, self.src, self.dst = uid, envelope.id, envelope.src, envelope.dst
        self.kind, self.path, self.stream = envelope.kind, envelope.path, envelope.stream
        self.body = envelope.body
        self.channel = envelope.stream or (envelope.path, envelope.dst)

    def envelope(self, causes: tuple[int, ...] = ()) -> Envelope:
        """As a node gets it."""
        return Envelope(
            self.id, self.src, self.dst, self.kind, self.path, self.stream, self.body, 0, causes
        )


class Move:
    """What a node does with a message in a state."""

    __slots__ = (
        "choices", "done", "footprint", "judged", "only_waits", "outline", "private", "records",
        "sent", "streams", "target",
    )  # fmt: skip

    def __init__(
        self, target: int, footprint: int, private: bool, judged: int, handled: Handled
    ) -> None:
        self.target, self.footprint = target, footprint
        self.sent: tuple[Sent, ...] = ()
        self.done: tuple[str, ...] = ()
        """Operations that it finished."""
        self.streams: tuple[str, ...] = ()
        """Declared streams that it sent to: their order is shared with other nodes."""
        self.records: tuple[Record, ...] = tuple(handled.records)
        self.choices = tuple(handled.choices)
        self.judged = judged
        """Classes of records whose order the oracle compares wherever they are made."""
        self.private = private
        """It touched nothing but the coroutine that it resumed, and nobody saw it."""
        self.outline = 0
        """Its footprint without ids: of whom the operation is that they belong to."""
        self.only_waits = False
        """The request was queued, and might as well have come later (``waits``)."""

    @property
    def ways(self) -> Ways:
        """The way taken at each choice."""
        return tuple(way for _, _, way in self.choices)


CLOSES: Final = 1
"""Ends or begins the use of something that a cache holds."""
DUE: Final = 2
"""A moment by which older copies must be gone."""
REACHES: Final = 4
"""Judged by what the page table says at that moment, or by which operations are over."""
DECIDES: Final = 8
"""Changes what that is."""
REFUSED: Final = 16
"""A fault that is justified until whoever added the right has left its critical section."""
LEAVES: Final = 32
"""Leaves such a section."""
LOOKS: Final = 64
"""The end of an operation that inherits what others have left undone."""
ENDS: Final = 128
"""Leaves something undone, or is the end of an operation, which then leaves nothing."""
TAGGED: Final = 256
"""Installs a translation under a tag that others may have later."""
UNTAGS: Final = 512
"""Takes a tag back: what is installed by then had to be gone."""
CALLED: Final = 1024
"""A callback begins or ends, or a subscription is worked on."""
GONE: Final = 2048
"""The subscription is over."""
JUDGED_BITS: Final = 12
"""So many classes there are."""
_RIVALS: Final = (
    (CLOSES, DUE), (REACHES, DECIDES), (REFUSED, LEAVES), (REFUSED, ENDS), (LOOKS, ENDS),
    (TAGGED, UNTAGS), (CALLED, GONE),
)  # fmt: skip


def judged_by_order(kind: str, operation: str, records: Iterable[Record]) -> int:
    """What the oracle compares the order of this delivery with, wherever both are made.

    Of a message of ``kind`` that belongs to an operation of kind ``operation``.
    """
    found = 0
    if kind == PTL_UNLOCK and operation == "Mremap":
        found = DUE  # of what was moved under the lock
    elif kind == PTL_LOCK and operation in LOOK:
        found = REACHES  # what was changed before, its holder finds changed
    elif kind in UNLOCKS:
        found = LEAVES
    for record in records:
        found |= _ORDERED.get(type(record), 0)
        if isinstance(record, PteChange) and usable(record.new):
            found |= DUE
        elif isinstance(record, Fill) and record.cache in kinds().tags_reused:
            found |= TAGGED
        elif isinstance(record, OpEnd):
            found |= DUE | DECIDES if record.kind in REVOKING else 0
            found |= LOOKS if record.kind in LOOK else 0
    return found


def rival_bits(judged: int) -> int:
    """What must not swap with records of these classes."""
    rivals = 0
    for one, other in _RIVALS:
        rivals |= (other if judged & one else 0) | (one if judged & other else 0)
    return rivals


_ORDERED: Final[Mapping[type[Record], int]] = {
    **dict.fromkeys((Evict, InvalidateDone, RequestPosted, GuestEnter, AccessTrapped), CLOSES),
    **dict.fromkeys(
        (FrameFreed, FrameCopied, PageWritten, FilePageWritten, Invalidation, IntervalClosed), DUE
    ),
    Access: REACHES,
    PermissionFault: REACHES | REFUSED,
    PteChange: DECIDES,
    FlushDeferred: ENDS,
    OpEnd: ENDS,
    TagFree: DUE | UNTAGS,
    NotifierCall: CALLED,
    IntervalTouched: CALLED,
    Unregistered: GONE,
}


def other_ways(move: Move, given: int) -> list[Ways]:
    """The ways not taken at the choices beyond the first ``given``, deepest first."""
    taken = move.ways
    return [
        (*taken[:at], way)
        for at in range(given, len(taken))
        for way in range(1, move.choices[at][1])
    ]


class Footprints:
    """The footprints of one node by number, and which of them conflict."""

    def __init__(self) -> None:
        self.known: list[Footprint] = []
        self._numbers: dict[tuple[object, ...], int] = {}
        self._rivals: list[list[int]] = []
        self._masks: list[int] = []
        """The same as ``_rivals``, as bits."""
        self._compared: list[int] = []
        """How many of ``known`` each was compared with."""

    def number(self, touched: Footprint) -> int:
        """The number of a footprint."""
        accesses = dict.fromkeys(touched)
        lean = [a for a in accesses if a[1] == "write" or (a[0], "write") not in accesses]
        key = tuple(sorted(lean, key=repr))
        found = self._numbers.get(key)
        if found is None:
            found = self._numbers[key] = len(self.known)
            self.known.append(lean)
            self._rivals.append([])
            self._masks.append(0)
            self._compared.append(0)
        return found

    def rivals(self, footprint: int) -> list[int]:
        """Every known footprint that conflicts with this one."""
        rivals, known = self._rivals[footprint], self.known
        compared = self._compared[footprint]
        if compared < len(known):
            mine = known[footprint]
            new = [n for n in range(compared, len(known)) if conflict(mine, known[n])]
            rivals += new
            self._masks[footprint] |= sum(1 << n for n in new)
            self._compared[footprint] = len(known)
        return rivals

    def rival_mask(self, footprint: int) -> int:
        """The same as bits."""
        self.rivals(footprint)
        return self._masks[footprint]

    def conflict(self, left: int, right: int) -> bool:
        """Whether two handlings depend on their order."""
        return right in self.rivals(left)


class Machine:
    """One node: its states by number, and its moves."""

    def __init__(self, make: Callable[[], Driver], tables: Tables) -> None:
        self.make, self.tables = make, tables
        self.moves: dict[tuple[int, int, Ways], Move] = {}
        self._all: dict[tuple[int, Sent], tuple[Move, ...]] = {}
        self.footprints, self.outlines = Footprints(), Footprints()
        self.runs = 0
        """How often node code ran."""
        self.sleepers: list[tuple[str, ...]] = []
        """By state: requests that only somebody else can make go on (locks, parked coroutines)."""
        self.frozen: list[Frozen] = []
        """The states by number."""
        self._numbers: dict[Frozen, int] = {}
        self._origin: list[tuple[int, Sent, Ways]] = []
        self._copies: dict[int, tuple[dict[str, Any], dict[str, tuple[str, str]]]] = {}
        self._live: dict[int, Driver] = {}
        driver = self._new()
        self.copied = not driver.tracked
        self._arrive(driver, (-1, _NOTHING, ()))

    def move(self, state: int, message: Sent, ways: Ways = ()) -> Move:
        """What happens; choices beyond ``ways`` take way 0."""
        key = (state, message.uid, ways)
        found = self.moves.get(key)
        if found is None:
            found = self.moves[key] = self._run(state, message, ways)
            self.moves[state, message.uid, found.ways] = found
        return found

    def moves_of(self, state: int, message: Sent) -> tuple[Move, ...]:
        """What may happen: one move for each way of the choices."""
        found = self._all.get((state, message))
        if found is None:
            moves: list[Move] = []
            todo: list[Ways] = [()]
            while todo:
                ways = todo.pop()
                moves.append(self.move(state, message, ways))
                todo += other_ways(moves[-1], len(ways))
            found = self._all[state, message] = tuple(moves)
        return found

    def __len__(self) -> int:
        return len(self._origin)

    # -- live drivers ------------------------------------------------------------------------

    def _new(self) -> Driver:
        driver = self.make()
        driver.chooser = _first_way
        track(driver)
        return driver

    def _run(self, state: int, message: Sent, ways: Ways) -> Move:
        self.runs += 1
        driver = self._bring(state)
        driver.port.touched = touched = []
        handled = _deliver(driver, message, ways)
        driver.port.touched = None
        target = self._arrive(driver, (state, message, ways))
        touched += _recorded(handled.records)
        operation = self.tables.kind_of(message)
        judged = judged_by_order(message.kind, operation, handled.records)
        private = (
            not judged
            and not handled.records
            and not handled.choices
            and all(key[:1] == ("task",) for key, _ in touched)
        )
        move = Move(target, self.footprints.number(touched), private, judged, handled)
        self._note_sends(move, handled)
        nothing = not (handled.messages or handled.records or handled.choices)
        move.outline = self.outlines.number(_without_ids(touched))
        move.only_waits = nothing and may_come_later(message.body)
        return move

    def _note_sends(self, move: Move, handled: Handled) -> None:
        known, sends = self.tables.message, handled.messages
        move.sent = tuple(known(e) for e in sends if e.dst != BROKER)
        move.done = tuple(request_id(e.id) for e in sends if e.dst == BROKER)
        move.streams = tuple(dict.fromkeys(e.stream for e in sends if e.stream))
        move.private &= not move.streams

    def _arrive(self, driver: Driver, origin: tuple[int, Sent, Ways]) -> int:
        frozen = freeze_driver(driver)
        number = self._numbers.get(frozen)
        if number is None:
            number = self._numbers[frozen] = len(self._origin)
            self._origin.append(origin)
            self.frozen.append(frozen)
            self.sleepers.append(_sleepers(driver))
            if self.copied_now(driver):
                self._copies[number] = (clone(vars(driver.node)), dict(driver.open))
        self._live[number] = driver
        if len(self._live) > LIVE_DRIVERS_MAX:
            del self._live[next(iter(self._live))]
        return number

    def copied_now(self, driver: Driver) -> bool:
        """Whether this state can be copied: no coroutine is suspended."""
        return not (driver.tracked or driver.waiting or driver.parked or driver.settling)

    def _bring(self, state: int) -> Driver:
        """A driver in ``state``, which the caller may move on."""
        driver = self._live.pop(state, None)
        if driver is not None:
            return driver
        if state in self._copies:
            fields, still_open = self._copies[state]
            driver = self._live.pop(next(iter(self._live))) if self._live else self._new()
            vars(driver.node).update(clone(fields))
            driver.open = dict(still_open)
            return driver
        steps = []
        while self._origin[state][0] >= 0:
            state, message, ways = self._origin[state]
            steps.append((message, ways))
        driver = self._new()
        for message, ways in reversed(steps):
            _deliver(driver, message, ways)
        return driver


class Tables:
    """Messages and the machines of a world."""

    def __init__(self, make: Callable[[str], Driver], nodes: tuple[str, ...]) -> None:
        self._messages: dict[tuple[object, ...], Sent] = {}
        self.receivers: dict[str, str | None] = {}
        """Id of a request -> who gets it; None if that depends on the execution."""
        self.operations: Mapping[str, Sent] = {}
        """By name; whoever has the programs says so."""
        self.machines: Mapping[str, Machine] = {
            name: Machine(partial(make, name), self) for name in nodes
        }

    def kind_of(self, message: Sent) -> str:
        """The kind of the operation that a message belongs to."""
        operation = self.operations.get(operation_of(message.id))
        return "" if operation is None else operation.kind

    def message(self, envelope: Envelope) -> Sent:
        """The one object for this message."""
        key = (
            envelope.id, envelope.src, envelope.dst, envelope.kind, envelope.path,
            envelope.stream, envelope.body,
        )  # fmt: skip
        found = self._messages.get(key)
        if found is None:
            found = self._messages[key] = Sent(len(self._messages), envelope)
            known = self.receivers.setdefault(envelope.id, envelope.dst)
            if known != envelope.dst:
                self.receivers[envelope.id] = None
        return found


def _sleepers(driver: Driver) -> tuple[str, ...]:
    """Open requests whose coroutine waits for no reply, or that have none."""
    calling = {task.path for task in (*driver.waiting.values(), *driver.settling)}
    return tuple(request for request in driver.open if request not in calling)


def _first_way(_path: str, _nth: int, _name: str, _ways: int) -> int:
    return 0


def _deliver(driver: Driver, message: Sent, ways: Ways) -> Handled:
    """Deliver with these choices; the driver checks names only where it is given them."""
    if ways:
        taken = iter(ways)
        driver.chooser = lambda _path, _nth, _name, _ways: next(taken, 0)
    handled = driver.deliver(0, message.envelope())
    driver.chooser = _first_way
    # Nothing is repeated here; and a state may be one from before a request that was answered.
    driver.stored.clear()
    return handled


def _without_ids(touched: Footprint) -> Footprint:
    """The same for executions in which messages have other ids."""
    return [
        ((key[0], operation_of(str(key[1]))) if key[:1] in _BY_ID else key, access)
        for key, access in touched
    ]


_BY_ID: Final = (("task",), ("posted",))


def _recorded(records: list[Record]) -> Footprint:
    """What the order of records at a node says beyond what their handlers touched.

    A request may end the use of a latched value (``Cache.dropped_on``).
    """
    touched: Footprint = []
    for record in records:
        if isinstance(record, (Fill, Evict)):
            if record.cache in kinds().latched:
                touched.append((("record", "latched"), "write"))
        elif isinstance(record, RequestPosted):
            touched.append((("record", "latched"), "write"))
        elif isinstance(record, GuestEnter):
            touched.append((("record", "latched"), "read"))
    return touched


_NOTHING: Final = Sent(-1, Envelope("", "", "", "", "", "", Message()))
