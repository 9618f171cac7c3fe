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
sent, a handling is in its node's file before its frame is sent.  So whatever is cut short, the
files agree up to the first delivery that its node has not handled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import msgpack
import msgspec

from mmurace.broker.deaths import Killing, KillSource
from mmurace.broker.faults import Chaos, Fault, FaultKind, Gatekeeper
from mmurace.broker.gates import Gates
from mmurace.broker.kills import Kills, RecordedKills
from mmurace.broker.plan import QUIESCENT, Outcome
from mmurace.broker.programs import Program, awaited, operation_program
from mmurace.broker.schedules import ScheduleEntry
from mmurace.nodes.journal import Journal, JournalReader, journal_path
from mmurace.nodes.world import World
from mmurace.protocol import codec, wire
from mmurace.protocol.envelope import BROKER, REPLY_MARK, Envelope, Handled
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import JOURNAL_FLUSH_EVERY, JOURNAL_RECORD_BYTES_MAX
from mmurace.protocol.wire import Choices

SCHEDULE_FILE = "schedule"
SCHEDULE_HEADER = "# mmu-notifier-emulator schedule 1: number, copy, message id\n"


class BrokerJournal:
    """The broker's journal.  ``flush`` decides when it is on file."""

    def __init__(self, directory: Path) -> None:
        self._journal = Journal(journal_path(directory, BROKER), BROKER)
        self.flush = self._journal.flush
        self.close = self._journal.close

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
        """Put everything so far on file, so that it can be followed and outlives this process."""
        self._unwritten = 0
        self.broker.flush()
        for journal in self._nodes.values():
            journal.flush()

    def stopped(self, n: int, why: str) -> None:
        """After delivery ``n`` nothing more is fed."""
        self.broker.note("stop", n, why)

    def close(self, outcome: Outcome | None = None) -> None:
        """Write the end, if it came to one, and the schedule; close all files."""
        if outcome is not None:
            self.broker.end(outcome)
        self.broker.close()
        for journal in self._nodes.values():
            journal.close()
        write_schedule(self.directory)


# ---- reading -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery as the broker's journal has it."""

    n: int
    id: str
    copy: int
    src: str
    dst: str
    kind: str
    causes: tuple[int, ...]


@dataclass(slots=True)
class Record:
    """A recorded run, as far as running it again needs it."""

    deliveries: list[ScheduleEntry] = field(default_factory=list)
    faults: ReplayedFaults = field(default_factory=lambda: ReplayedFaults({}))
    """Give this to the exchange as its chaos: the same copies come to be, nothing is delayed."""
    operations: dict[str, int] = field(default_factory=dict)
    """Operations delivered, by program."""
    stopped: bool = False
    """Feeding was stopped before the programs had run to their ends."""
    begun: list[tuple[int, str]] = field(default_factory=list)
    """Deaths that chaos decided: (delivery, node)."""
    killed: list[tuple[int, str]] = field(default_factory=list)
    """Nodes that were gone: (delivery, node)."""
    outcome: Outcome | None = None
    """None: the run did not end in order."""

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
        more = 0 if complete or self.stopped else 1
        counts = self.operations
        return tuple(
            replace(p, steps=FirstSteps(p, counts.get(p.name, 0) + more), awaits=awaited((p,)))
            for p in programs
        )


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


def read_record(directory: Path) -> Record:
    """What it takes to run a recorded run again.  Raises ``UserError``."""
    record = Record()
    kinds = record.faults.kinds
    answered: set[str] = set()
    for word, *fields in broker_records(directory):
        if word == "deliver":
            n, id_, copy, src = fields[:4]
            record.deliveries.append((n, id_, copy))
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
            record.outcome = msgspec.convert(fields[0], Outcome)
    return record


def read_choices(directory: Path, nodes: Iterable[str]) -> dict[int, Choices]:
    """What hardware chose in a recorded run, by delivery.  Raises ``UserError``."""
    choices: dict[int, Choices] = {}
    for name in nodes:
        with contextlib.closing(JournalReader(journal_path(directory, name))) as reader:
            while (data := reader.next()) is not None:
                record = wire.read_journal_record(data)
                if record.choices:
                    choices[record.n] = record.choices
    return choices


def write_schedule(directory: Path) -> None:
    """Write ``schedule`` from the broker's journal: one line per delivery."""
    with (directory / SCHEDULE_FILE).open("w", encoding="utf-8") as file:
        file.write(SCHEDULE_HEADER)
        file.writelines(
            f"{fields[0]} {fields[2]} {fields[1]}\n"
            for word, *fields in broker_records(directory)
            if word == "deliver"
        )


def read_schedule(source: Path) -> list[ScheduleEntry]:
    """The deliveries of a run's directory, or of a schedule file.  Raises ``UserError``."""
    path = source / SCHEDULE_FILE if source.is_dir() else source
    if source.is_dir() and not path.exists():  # a run that was cut short
        return read_record(source).deliveries
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, ValueError) as error:
        raise UserError(str(path), f"cannot read: {error}", "a schedule") from None
    if header != SCHEDULE_HEADER:
        raise UserError(f"{path}:1", "not a schedule of this version", SCHEDULE_HEADER.strip())
    return [_entry(path, number, line) for number, line in enumerate(lines, start=2)]


def _entry(path: Path, number: int, line: str) -> ScheduleEntry:
    try:
        n, copy, id_ = line.rstrip("\n").split(" ", 2)
        return int(n), id_, int(copy)
    except ValueError:
        raise UserError(f"{path}:{number}", "not a delivery", "number, copy, message id") from None
