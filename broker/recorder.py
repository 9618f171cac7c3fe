"""What a run leaves behind: the broker's journal, the nodes' journals, the schedule.

A node's journal (``protocol.wire.journal_record``) holds what it answered to each delivery and
nothing else, so two runs with the same deliveries leave the same bytes, on processes or in the
simulator.  The broker's journal holds, in the order in which they happened:

* ``["deliver", n, id, copy, src, dst, kind, causes]``: delivery ``n``; numbers only rise
* ``["fault", rule, kind, after, id, cause]``: what chaos did to a message that ``cause`` released
* ``["free", ids]``: a hold was given up, because its event cannot come
* ``["closed", n, rule]``, ``["opened", n, rule]``: after delivery ``n`` a gate did
* ``["kill", n, node]``: after delivery ``n`` chaos decided that a node dies
* ``["killed", n, node]``: after delivery ``n`` it was gone
* ``["heal", n]``: after delivery ``n`` chaos did nothing more
* ``["low", n]``: nothing delivered from here on was released by a delivery below ``n``
* ``["stop", n, why]``: after delivery ``n`` nothing more was fed
* ``["died", n, node, why]``: after delivery ``n`` this process was found gone
* ``["quiet", n, waiting]``: nothing could move; who still waited for what
* ``["end", outcome]``: the last record of a run that ended in order

On processes the broker's journal is written ahead: a delivery is in the file before its frame is
sent, a handling is in its node's file before its frame is sent.  So whatever is cut short, every
node has handled the first so many of what it was given, and whatever caused a delivery was handled.
In the simulator nodes' journals are written before the broker's, which comes to the same.
"""

from __future__ import annotations

import contextlib
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise, takewhile
from pathlib import Path
from typing import Any, Final

import msgpack

from mmurace.broker.deaths import Killing, KillSource
from mmurace.broker.faults import Chaos, Fault, FaultKind, Gatekeeper
from mmurace.broker.gates import Gates
from mmurace.broker.kills import Kills, RecordedKills
from mmurace.broker.plan import QUIESCENT, Outcome, end_text
from mmurace.broker.programs import Program, awaited, operation_program
from mmurace.broker.schedules import ScheduleEntry
from mmurace.nodes.files import read_sealed, sealed, unwritten
from mmurace.nodes.journal import SUFFIX, Journal, JournalReader, journal_path
from mmurace.nodes.world import World
from mmurace.protocol import codec, wire
from mmurace.protocol.envelope import BROKER, REPLY_MARK, Envelope, Handled
from mmurace.protocol.errors import PeerError, UserError
from mmurace.protocol.limits import JOURNAL_FLUSH_EVERY, JOURNAL_RECORD_BYTES_MAX
from mmurace.protocol.wire import Choices

SCHEDULE_FILE = "schedule"
SCHEDULE_HEADER = "# mmu-notifier-emulator schedule 2: number, copy, message id\n"
_NUMBER: Final = re.compile(r"[0-9]{1,18}")


class BrokerJournal:
    """The broker's journal.  ``flush`` decides when it is on file."""

    def __init__(self, directory: Path, late: bool = False) -> None:
        """``late``: see ``Journal``."""
        self._journal = Journal(journal_path(directory, BROKER), BROKER, late)
        self.flush = self._journal.flush
        self.close = self._journal.close
        self.abandon = self._journal.abandon

    def deliver(self, n: int, e: Envelope) -> None:
        """Delivery ``n``."""
        self._journal.append(
            msgpack.packb(["deliver", n, e.id, e.copy, e.src, e.dst, e.kind, e.causes])
        )

    def note(self, word: str, *values: Any) -> None:
        """Any other record."""
        self._journal.append(codec.pack([word, *values]))

    def end(self, outcome: Outcome) -> None:
        """The last records of a run that ended in order."""
        if outcome.status == QUIESCENT:
            self.note("quiet", outcome.ending.deliveries, outcome.ending.waiting)
        self.note("end", outcome)

    def watch(self, chaos: Chaos | None) -> Chaos | None:
        """The same chaos, with every fault that it applies written down."""
        return None if chaos is None else WatchedChaos(chaos, self)

    def gate(self, n: int, rule: str, closed: bool) -> None:
        """After delivery ``n`` a gate closed or opened."""
        self.note("closed" if closed else "opened", n, rule)

    def death(self, word: str, n: int, node: str) -> None:
        """After delivery ``n`` a death began (``kill``), or a node was gone (``killed``)."""
        self.note(word, n, node)


class WatchedChaos:
    """A ``Chaos`` that writes down what another one does."""

    def __init__(self, chaos: Chaos, journal: BrokerJournal) -> None:
        self.chaos, self._journal = chaos, journal
        self.delivered, self.hold, self.heal = chaos.delivered, chaos.hold, chaos.heal
        self.gates: Gatekeeper = getattr(chaos, "gates", None) or Gates((), 0)
        if isinstance(self.gates, Gates):
            self.gates.note = journal.gate
        self.kills: KillSource = chaos.kills if isinstance(chaos, Killing) else Kills((), 0, None)
        self.kills.note = journal.death

    def fault(self, envelope: Envelope) -> Fault | None:
        """The other's fault, written down."""
        fault = self.chaos.fault(envelope)
        if fault is not None:
            self._journal.note(
                "fault", fault.rule, fault.kind, fault.after, envelope.id, _cause(envelope)
            )
        return fault

    def give_up(self) -> Sequence[Envelope]:
        """The other's, written down."""
        freed = self.chaos.give_up()
        if freed:
            self._journal.note("free", [envelope.id for envelope in freed])
        return freed


class Recorder:
    """Writes the files of a run in the simulator, as the processes would have written them.

    Give ``watch(chaos)`` to the exchange and ``observe`` to the simulator; ``close`` at the end.
    """

    def __init__(self, directory: Path, nodes: Iterable[str]) -> None:
        self.directory = directory
        self.broker = BrokerJournal(directory)
        self._nodes = {name: Journal(journal_path(directory, name), name) for name in nodes}
        self._unwritten = 0
        self.watch = self.broker.watch

    def observe(self, envelope: Envelope, handled: Handled) -> None:
        """Record one delivery and what its handling did."""
        self.broker.deliver(handled.n, envelope)
        record = wire.journal_record(envelope.id, wire.handled_frames(handled))
        self._nodes[envelope.dst].append(record)
        self._unwritten += 1
        if self._unwritten == JOURNAL_FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Put everything so far on file, so that it can be followed and outlives this process.

        Nodes first: whatever the broker's journal has was handled.  Raises ``OSError`` with the
        path, and then the record ends where the last ``flush`` ended.
        """
        self._unwritten = 0
        try:
            for journal in self._nodes.values():
                journal.flush()
            self.broker.flush()
        except OSError:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Close all files without writing what is not on file yet."""
        self.broker.abandon()
        for journal in self._nodes.values():
            journal.abandon()

    def stopped(self, n: int, why: str) -> None:
        """After delivery ``n`` nothing more is fed."""
        self.broker.note("stop", n, why)

    def close(self, outcome: Outcome | None = None) -> str:
        """Write the end, if it came to one, and the schedule; close all files.

        Returns what ``write_schedule`` does.  Raises ``OSError`` as ``flush`` does.
        """
        if outcome is not None:
            self.broker.end(outcome)
        self.flush()
        self.abandon()
        return write_schedule(self.directory)


# ---- reading -------------------------------------------------------------------------------


@dataclass(slots=True)
class Record:
    """A recorded run, as far as running it again needs it."""

    deliveries: list[ScheduleEntry] = field(default_factory=list)
    """What was delivered and handled."""
    faults: ReplayedFaults = field(default_factory=lambda: ReplayedFaults({}))
    """Give this to the exchange as its chaos: the same copies come to be, nothing is delayed."""
    choices: dict[int, Choices] = field(default_factory=dict)
    """What hardware chose, by delivery."""
    operations: dict[str, int] = field(default_factory=dict)
    """Operations delivered, by program."""
    stopped: bool = False
    """Feeding was stopped before the programs had run to their ends."""
    begun: list[tuple[int, str]] = field(default_factory=list)
    """Deaths that chaos decided: (delivery that was handled, or 0, node)."""
    killed: list[tuple[int, str]] = field(default_factory=list)
    """Nodes that were gone: the same."""
    outcome: Outcome | None = None
    """None: the run did not end in order."""
    unhandled: int = 0
    """Deliveries on file that their nodes have not handled: the run was cut short."""
    last: int = 0
    """The last delivery on file, handled or not."""
    changed: int = 0
    """The delivery from which on the order is another one than the journal's; 0: it is that one."""

    @property
    def cut(self) -> bool:
        """Whether the run was cut short, so that the record ends before it did."""
        return self.outcome is None or not self.outcome.sound

    def chaos(self, world: World) -> ReplayedFaults:
        """The faults for another run in ``world``, with the deaths."""
        self.faults.kills = RecordedKills(self.begun, self.killed, world)
        return self.faults

    def programs(self, programs: Iterable[Program]) -> tuple[Program, ...]:
        """The programs, cut where feeding them ended.

        If the run did not come to its end, every program may have had one operation more, which
        was fed and never delivered.
        """
        complete = self.outcome is not None and self.outcome.ending.complete
        more = 1 if self.cut or not (complete or self.stopped) else 0
        counts = self.operations
        return tuple(
            replace(p, steps=FirstSteps(p, counts.get(p.name, 0) + more), awaits=awaited((p,)))
            for p in programs
        )

    def operations_max(self, given: int | None) -> int | None:
        """The bound of the recorded run for its replay.

        Operations that were fed and not delivered are unknown if it was cut short, and one that
        was not fed then must not use up the bound; the programs are cut all the same.
        """
        return None if self.cut else given

    def end_text(self) -> str:
        """Where the record ends and why; empty if the run came to its end."""
        if not self.cut:
            return ""
        last = self.deliveries[-1][0] if self.deliveries else 0
        return end_text(last, self.unhandled, self.outcome)


class FirstSteps:
    """The first so many steps of a program, over and over."""

    def __init__(self, program: Program, count: int) -> None:
        self.program, self.count = program, count

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.program.steps), self.count)


class ReplayedFaults:
    """The faults of a recorded run that changed what there was to deliver, without their delays.

    A duplicate must exist again and a lost reply must be lost again; a delay, a hold and a lost
    request only chose an order, and the record has that.
    """

    def __init__(self, kinds: dict[tuple[str, int], FaultKind]) -> None:
        self.kinds = kinds
        self.unmissed: set[tuple[str, int]] = set()
        """Replies that were lost when another copy of them had been delivered already."""
        self.kills: KillSource = Kills((), 0, None)

    def fault(self, envelope: Envelope) -> Fault | None:
        """The recorded fault of this very message."""
        key = (envelope.id, _cause(envelope))
        kind = self.kinds.get(key)
        return None if kind is None else Fault(kind, 0, "recorded", key not in self.unmissed)

    def delivered(self, envelope: Envelope) -> Sequence[Envelope]:  # noqa: ARG002 - see Chaos
        """Nothing is ever held."""
        return ()

    def hold(self, envelope: Envelope, rule: str) -> None:
        """Never called: no fault here is a hold."""

    def give_up(self) -> Sequence[Envelope]:
        """Nothing is ever held."""
        return ()

    def heal(self) -> Sequence[Envelope]:
        """Nothing is ever held."""
        return ()


def _cause(envelope: Envelope) -> int:
    """Which release it was: a handling sends an id at most once, but a reply may be sent again."""
    return envelope.causes[-1] if envelope.causes else 0


def broker_records(directory: Path) -> Iterator[list[Any]]:
    """Every whole record of the broker's journal.  Raises ``UserError``."""
    reader = JournalReader(journal_path(directory, BROKER))
    try:
        while (record := reader.next()) is not None:
            yield codec.unpack(record, JOURNAL_RECORD_BYTES_MAX)
    finally:
        reader.close()


def last_number(directory: Path) -> int:
    """The last delivery on file; 0 if there is none."""
    last = 0
    with contextlib.suppress(UserError):
        for word, *fields in broker_records(directory):
            if word == "deliver":
                last = fields[0]
    return last


def read_record(source: Path) -> Record:
    """What it takes to run a recorded run again, up to the last delivery that was handled.

    ``source`` is a run's directory, or the file ``schedule`` in one: then the order is what that
    file says.  Raises ``UserError``; ``PeerError`` for journals that do not fit each other.
    """
    directory = source if source.is_dir() else source.parent
    record, given = _read_broker(directory)
    unhandled = _read_nodes(directory, record, given)
    record.unhandled = len(unhandled)
    record.deliveries = [entry for entry in record.deliveries if entry[0] not in unhandled]
    numbers = [entry[0] for entry in record.deliveries]
    record.begun = _at_handled(record.begun, numbers)
    record.killed = _at_handled(record.killed, numbers)
    if source != directory:
        _reorder(record, read_schedule(source))
    return record


def _read_broker(directory: Path) -> tuple[Record, dict[str, list[ScheduleEntry]]]:
    """What the broker's journal has, and what each node was given."""
    record = Record()
    kinds = record.faults.kinds
    answered: set[str] = set()
    given: dict[str, list[ScheduleEntry]] = {}
    for word, *fields in broker_records(directory):
        if word == "deliver":
            n, id_, copy, src, dst = fields[:5]
            record.deliveries.append((n, id_, copy))
            given.setdefault(dst, []).append(record.deliveries[-1])
            record.last = n
            if id_.endswith(REPLY_MARK):
                answered.add(id_)
            if src == BROKER and copy == 0:
                program = operation_program(id_)
                record.operations[program] = record.operations.get(program, 0) + 1
        elif word == "fault":
            _rule, kind, _after, id_, cause = fields
            if kind == "duplicate" or (kind == "drop" and id_.endswith(REPLY_MARK)):
                kinds[id_, cause] = kind
            if id_ in answered:
                record.faults.unmissed.add((id_, cause))
        elif word in ("kill", "killed"):
            (record.begun if word == "kill" else record.killed).append((fields[0], fields[1]))
        elif word == "stop":
            record.stopped = True
        elif word == "end":
            record.outcome = codec.convert(fields[0], Outcome)
    return record, given


def is_blank(directory: Path) -> bool:
    """Whether a run in there was ended before its first delivery, its broker's journal included."""
    if journal_path(directory, BROKER).exists():
        return False
    for path in directory.glob("*" + SUFFIX):
        with contextlib.closing(JournalReader(path)) as reader:
            if reader.next() is not None:
                return False
    return True


def _read_nodes(directory: Path, record: Record, given: dict[str, list[ScheduleEntry]]) -> set[int]:
    """Add the choices of all nodes; the numbers of deliveries that were never handled."""
    unhandled: set[int] = set()
    dead = {node for _, node in record.killed}
    for node, entries in given.items():
        path = journal_path(directory, node)
        count = 0
        if path.exists() or not record.cut:
            count = _read_node(path, entries, record)
        rest = [n for n, _, _ in entries[count:]]
        if rest and not record.cut and node not in dead:
            raise PeerError(f"delivery {rest[0]} is not in {path.name}")
        unhandled.update(rest)
    return unhandled


def _read_node(path: Path, entries: list[ScheduleEntry], record: Record) -> int:
    """Add the choices of one node; how many of its deliveries it has handled."""
    count = 0
    with contextlib.closing(JournalReader(path)) as reader:
        while (data := reader.next()) is not None:
            n, id_, choices = wire.read_journal_choices(data)
            if count == len(entries):
                if n > record.last and record.cut:  # nodes' journals are written first
                    break
                raise PeerError(f"delivery {n} in {path.name} was never delivered")
            if (n, id_) != entries[count][:2]:
                raise PeerError(f"delivery {entries[count][0]} is not next in {path.name}")
            if choices:
                record.choices[n] = choices
            count += 1
    return count


def _at_handled(deaths: list[tuple[int, str]], numbers: list[int]) -> list[tuple[int, str]]:
    """The same deaths after the last handled delivery each: nothing else can tell them apart."""
    before = [bisect_right(numbers, n) for n, _ in deaths]
    return [
        (numbers[at - 1] if at else 0, node) for at, (_, node) in zip(before, deaths, strict=True)
    ]


def _reorder(record: Record, entries: list[ScheduleEntry]) -> None:
    """Deliver in another order; what was chosen in a delivery goes with the message."""
    if entries == record.deliveries:
        return
    chosen = {(i, c): record.choices[n] for n, i, c in record.deliveries if n in record.choices}
    pairs = zip(entries, record.deliveries, strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    rest = entries[same:] or record.deliveries[same:]
    record.changed = rest[0][0]
    record.choices = {n: chosen[i, c] for n, i, c in entries if (i, c) in chosen}
    record.deliveries = entries


def write_schedule(directory: Path) -> str:
    """Write ``schedule`` from the broker's journal: one line per delivery.

    Returns why it could not be written; empty if it was.  Nothing is lost then: the journal has
    it all.
    """
    lines = (
        f"{fields[0]} {fields[2]} {fields[1]}\n"
        for word, *fields in broker_records(directory)
        if word == "deliver"
    )
    text = "".join((SCHEDULE_HEADER, *lines))
    return unwritten(directory / SCHEDULE_FILE, sealed(text))


def read_schedule(source: Path) -> list[ScheduleEntry]:
    """The deliveries of a run's directory, or of a schedule file.  Raises ``UserError``."""
    path = source / SCHEDULE_FILE if source.is_dir() else source
    if source.is_dir() and not path.exists():  # a run that was cut short
        return read_record(source).deliveries
    expected = SCHEDULE_HEADER.strip()
    lines = read_sealed(path, "a schedule").splitlines(keepends=True)
    first = 1 if lines and lines[0] == "\n" else 0  # its seal
    if lines[first : first + 1] != [SCHEDULE_HEADER]:
        raise UserError(f"{path}:{first + 1}", "not a schedule of this version", expected)
    first += 1
    entries = [_entry(path, at, line) for at, line in enumerate(lines[first:], first + 1)]
    for number, (one, other) in enumerate(pairwise(entries), first + 2):
        if one[0] >= other[0]:
            raise UserError(
                f"{path}:{number}", f"{other[0]} comes after {one[0]}", "rising numbers"
            )
    return entries


def _entry(path: Path, number: int, line: str) -> ScheduleEntry:
    n, copy, id_ = (*line.rstrip("\n").split(" ", 2), "", "")[:3]
    if not (_NUMBER.fullmatch(n) and _NUMBER.fullmatch(copy) and id_ and int(n)):
        raise UserError(f"{path}:{number}", "not a delivery", "number, copy, message id")
    return int(n), id_, int(copy)
