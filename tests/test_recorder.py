"""Journals: what is written is read back, whatever the file went through."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmurace.broker.chaos import ChaosRules
from mmurace.broker.chaos_config import parse_rules
from mmurace.broker.dispatch import InFlight, dispatcher
from mmurace.broker.exchange import Exchange
from mmurace.broker.follow import Follower, compare_runs
from mmurace.broker.plan import QUIESCENT, Outcome
from mmurace.broker.programs import Feeder
from mmurace.broker.recorder import (
    Recorder,
    ReplayedFaults,
    broker_records,
    read_record,
    read_schedule,
)
from mmurace.broker.schedules import Arrival, RandomWalk, Recorded, Schedule
from mmurace.broker.simulator import Simulator
from mmurace.nodes.journal import Journal, JournalReader, journal_path
from mmurace.nodes.packing import read_world
from mmurace.protocol import codec, wire
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.errors import PeerError, UserError
from mmurace.protocol.limits import JOURNAL_FLUSH_EVERY
from mmurace.protocol.messages.base import Ack
from mmurace.protocol.messages.memory import PteLoad
from mmurace.protocol.records import OpEnd
from mmurace.protocol.trace import Ending
from tests import toy

LOSSY = {
    "schema": 1,
    "rule": [
        {"name": "lose", "fault": "drop", "probability": 0.1, "after": {"min": 1, "max": 20}},
        {"name": "twice", "fault": "duplicate", "probability": 0.1, "after": {"min": 1, "max": 9}},
        {"name": "late", "fault": "delay", "probability": 0.1, "after": {"min": 1, "max": 50}},
    ],
}

HEAVY = {
    "schema": 1,
    "rule": [
        {"name": "lose", "fault": "drop", "probability": 0.3, "after": {"min": 1, "max": 60}},
        {"name": "twice", "fault": "duplicate", "probability": 0.4, "after": {"min": 1, "max": 60}},
    ],
}


def chaos(seed: int = 3) -> ChaosRules:
    """Rules that lose, repeat and delay."""
    return ChaosRules(parse_rules(LOSSY, "test"), seed)


def simulate(
    directory: Path,
    schedule: Schedule,
    rules: ChaosRules | None = None,
    count: int = 5,
    each: int = 1,
    replay: Path | None = None,
) -> Ending:
    """A recorded run of toy programs in the simulator; ``replay`` has what to run again."""
    directory.mkdir(exist_ok=True)
    recorder = Recorder(directory, toy.NODES)
    programs = toy.programs(count, each=each)
    exchange = Exchange(Feeder(programs), recorder.watch(rules))
    if replay is not None:
        record = read_record(replay)
        exchange = Exchange(Feeder(record.programs(programs)), record.faults, recorded=True)
    world = read_world(toy.world())
    drivers = {name: toy.build(name, world, 1) for name in toy.NODES}
    ending = Simulator(drivers, exchange, schedule, recorder.observe).run()
    recorder.close(Outcome(QUIESCENT, ending, exchange.counts.as_dict()))
    assert exchange.counts.balance(exchange.pending) == 0
    return ending


def pipelined(directory: Path, seed: int, rules: ChaosRules, schedule: Schedule) -> Ending:
    """A recorded run as processes make it, in this process: handlings come back in any order."""
    directory.mkdir()
    recorder = Recorder(directory, toy.NODES)
    recorded = isinstance(schedule, Recorded)
    exchange = Exchange(Feeder(toy.programs(12, each=2)), recorder.watch(rules), recorded)
    in_flight: InFlight = {name: deque() for name in toy.NODES}
    world = read_world(toy.world())
    drivers = {name: toy.build(name, world, 1) for name in toy.NODES}
    handled: dict[str, deque[Handled]] = {name: deque() for name in toy.NODES}
    dispatch, chance = dispatcher(schedule, exchange, in_flight, 1 << 62), random.Random(seed)
    exchange.start()
    while not dispatch.status:
        for n, envelope in dispatch.take():
            handled[envelope.dst].append(drivers[envelope.dst].deliver(n, envelope))
            recorder.observe(envelope, handled[envelope.dst][-1])
        back = [name for name in toy.NODES if handled[name]]
        if back:
            name = chance.choice(back)
            exchange.release(in_flight[name].popleft(), handled[name].popleft().messages)
    assert dispatch.status == QUIESCENT, dispatch.detail
    ending = exchange.ending()
    recorder.close(Outcome(QUIESCENT, ending, exchange.counts.as_dict()))
    assert exchange.counts.balance(exchange.pending) == 0
    return ending


# ---- files ---------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=300), max_size=20), st.data())
def test_a_journal_is_readable_to_its_last_whole_record(
    tmp_path_factory: pytest.TempPathFactory, records: list[bytes], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "node.journal"
    journal = Journal(path, "node")
    sizes = [path.stat().st_size]
    for record in records:
        journal.write(record)
        sizes.append(path.stat().st_size)
    journal.close()
    cut = data.draw(st.integers(sizes[0], sizes[-1]))
    path.write_bytes(path.read_bytes()[:cut])
    reader = JournalReader(path)
    whole = sum(1 for size in sizes[1:] if size <= cut)
    assert [reader.next() for _ in range(whole)] == records[:whole]
    assert reader.next() is None
    assert reader.tail_bytes() == cut - sizes[whole]
    reader.close()


def test_a_growing_journal_is_followed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.journal", "a")
    reader = JournalReader(tmp_path / "a.journal")
    assert reader.next() is None
    journal.append(b"one")
    assert reader.next() is None
    journal.flush()
    journal.write(b"two")
    assert [reader.next(), reader.next(), reader.next()] == [b"one", b"two", None]
    journal.close()
    reader.close()


def test_a_length_that_cannot_be_right_is_named(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.journal", "a")
    journal.write(b"one")
    journal.close()
    size = (tmp_path / "a.journal").stat().st_size
    with (tmp_path / "a.journal").open("ab") as file:
        file.write(b"\xff" * 100)
    reader = JournalReader(tmp_path / "a.journal")
    assert reader.next() == b"one"
    with pytest.raises(UserError, match=rf"a\.journal: record 2 at byte {size}: its length"):
        reader.next()
    reader.close()


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (codec.pack(["something else", 1, "a"]), "not a journal"),
        (codec.pack(["mmu-notifier-emulator journal", 99, "a"]), "version 99"),
        (b"\xc1", "not a journal"),
        (codec.pack(7), "not a journal"),
    ],
)
def test_a_foreign_file_is_refused_by_name(tmp_path: Path, header: bytes, says: str) -> None:
    path = tmp_path / "a.journal"
    path.write_bytes(len(header).to_bytes(4, "big") + header)
    reader = JournalReader(path)
    with pytest.raises(UserError, match=says) as caught:
        reader.next()
    assert str(path) in str(caught.value)
    reader.close()


def test_a_second_run_does_not_write_over_the_first(tmp_path: Path) -> None:
    Journal(tmp_path / "a.journal", "a").close()
    with pytest.raises(UserError, match="recorded here already"):
        Journal(tmp_path / "a.journal", "a")


# ---- frames --------------------------------------------------------------------------------


def test_a_handling_survives_its_journal() -> None:
    message = Envelope("p/0.1", "a", "b", "PteLoad", "p/0", "s", PteLoad(3, 4))
    handled = Handled(9, [message], [("evict", 2, 1)], [OpEnd("Touch", 0)])
    record = wire.journal_record("p/0", wire.handled_frames(handled))
    assert wire.journal_record_number(record) == 9
    back = wire.read_journal_record(record)
    assert (back.n, back.id, back.choices, back.records) == (
        9,
        "p/0",
        [("evict", 2, 1)],
        [OpEnd("Touch", 0)],
    )
    assert back.decoded() == [(["p/0.1", "b", "PteLoad", "p/0", "s"], PteLoad(3, 4))]


def test_a_delivery_survives_the_wire() -> None:
    sent = Envelope("p/0.1", "a", "b", "PteLoad", "p/0", "s", PteLoad(3, 4), copy=2)
    fields = wire.header(wire.deliver_header(9, sent, [("evict", 2, 1)]))
    assert fields[0] == 9
    assert wire.read_deliver(fields, "b", wire.body_bytes(sent)) == (sent, [("evict", 2, 1)])


@given(st.binary(max_size=60))
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    for read in (wire.read_journal_record, wire.journal_record_number, wire.header):
        try:
            read(data)
        except PeerError:
            pass


# ---- runs ----------------------------------------------------------------------------------


def test_the_follower_gives_what_the_simulator_did(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, toy.NODES)
    seen: list[tuple[int, str, str, int]] = []
    world = read_world(toy.world())
    follower = Follower(tmp_path, toy.NODES)
    steps = []

    def observe(envelope: Envelope, handled: Handled) -> None:
        recorder.observe(envelope, handled)
        seen.append((handled.n, envelope.id, envelope.dst, len(handled.records)))
        if handled.n % 7 == 0:
            recorder.flush()
            steps.extend(follower.poll(5))

    drivers = {name: toy.build(name, world, 1) for name in toy.NODES}
    exchange = Exchange(Feeder(toy.programs(5)))
    ending = Simulator(drivers, exchange, RandomWalk(1), observe).run()
    outcome = Outcome(QUIESCENT, ending, exchange.counts.as_dict())
    recorder.close(outcome)
    while more := follower.poll(5):
        steps += more
    assert [(s.n, s.id, s.dst, len(s.records)) for s in steps] == seen
    assert follower.outcome == outcome
    assert all(cause < step.n for step in steps for cause in step.causes)
    follower.close()


def test_equal_deliveries_leave_equal_bytes(tmp_path: Path) -> None:
    simulate(tmp_path / "a", RandomWalk(1))
    simulate(tmp_path / "b", RandomWalk(1))
    simulate(tmp_path / "c", RandomWalk(2))
    assert compare_runs(tmp_path / "a", tmp_path / "b") is None
    different = compare_runs(tmp_path / "a", tmp_path / "c")
    assert different is not None
    assert different[0] in toy.NODES
    (tmp_path / "b" / "cpu1.journal").unlink()
    assert compare_runs(tmp_path / "a", tmp_path / "b") == ("cpu1", 0, "journal")


@pytest.mark.parametrize("seed", range(8))
def test_a_run_under_loss_repeats_from_its_record(tmp_path: Path, seed: int) -> None:
    first = simulate(tmp_path / "a", RandomWalk(seed), chaos(seed))
    entries = read_schedule(tmp_path / "a")
    assert any(copy for _, _, copy in entries)
    again = simulate(tmp_path / "b", Recorded(entries), replay=tmp_path / "a")
    assert compare_runs(tmp_path / "a", tmp_path / "b") is None
    assert (again.deliveries, again.finished, again.complete) == (
        first.deliveries, first.finished, first.complete,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_what_came_back_in_any_order_repeats_one_by_one(tmp_path: Path, seed: int) -> None:
    rules = ChaosRules(parse_rules(HEAVY, "test"), seed)
    first = pipelined(tmp_path / "a", seed, rules, Arrival())
    record = read_record(tmp_path / "a")
    again = simulate(
        tmp_path / "b", Recorded(record.deliveries), count=12, each=2, replay=tmp_path / "a"
    )
    assert again == first
    assert compare_runs(tmp_path / "a", tmp_path / "b") is None
    faults: Any = record.faults
    third = pipelined(tmp_path / "c", seed + 1, faults, Recorded(record.deliveries))
    assert third == first
    assert compare_runs(tmp_path / "a", tmp_path / "c") is None


def test_the_schedule_file_says_what_the_journal_says(tmp_path: Path) -> None:
    simulate(tmp_path, RandomWalk(1), chaos())
    listed = read_schedule(tmp_path)
    assert listed == read_schedule(tmp_path / "schedule") == read_record(tmp_path).deliveries
    (tmp_path / "schedule").unlink()
    assert read_schedule(tmp_path) == listed


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (lambda text: "nonsense\n" + text, "schedule:1"),
        (lambda text: text + "1 x cpu0/0\n", "schedule:"),
        (lambda text: text + "1\n", "schedule:"),
    ],
)
def test_a_bad_schedule_is_refused_with_its_line(
    tmp_path: Path, damage: Callable[[str], str], where: str
) -> None:
    simulate(tmp_path, RandomWalk(1))
    path = tmp_path / "schedule"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=where):
        read_schedule(tmp_path)


def test_a_run_whose_process_is_gone_lacks_its_last_deliveries_only(tmp_path: Path) -> None:
    """Nobody closes the files, as after kill -9."""
    recorder = Recorder(tmp_path, toy.NODES)
    world = read_world(toy.world())
    drivers = {name: toy.build(name, world, 1) for name in toy.NODES}
    exchange = Exchange(Feeder(toy.programs(10_000)))
    made = 5 * JOURNAL_FLUSH_EVERY - 1
    assert (
        Simulator(drivers, exchange, RandomWalk(3), recorder.observe).run(made).deliveries == made
    )
    with closing(Follower(tmp_path, toy.NODES)) as follower:
        numbers = [step.n for step in follower.rest()]
    assert numbers == list(range(1, 4 * JOURNAL_FLUSH_EVERY + 1))


def test_a_damaged_run_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    ending = simulate(tmp_path, RandomWalk(1))
    path = journal_path(tmp_path, "cpu1")
    path.write_bytes(path.read_bytes()[:-20])
    follower = Follower(tmp_path, toy.NODES)
    steps = follower.poll()
    assert 0 < len(steps) < ending.deliveries
    steps += follower.rest()
    assert len(steps) + len(follower.skipped) == ending.deliveries
    assert len(follower.skipped) == 1
    follower.close()


def test_what_chaos_did_is_in_the_journal(tmp_path: Path) -> None:
    rules = chaos()
    simulate(tmp_path, RandomWalk(1), rules)
    faults = [record for record in broker_records(tmp_path) if record[0] == "fault"]
    hits = {rule["name"]: rule["hits"] for rule in rules.report()["rules"]}
    assert {name: sum(f[1] == name for f in faults) for name in hits} == hits


def test_a_missing_run_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"broker\.journal"):
        read_schedule(tmp_path)


def test_a_record_says_the_order_of_a_stream_that_many_feed() -> None:
    def command(sender: str) -> Envelope:
        request = f"{sender}/0.0"
        return Envelope(request, sender, "iommu0", "IotlbInvalidate", f"{sender}/0", "q", Ack())

    for recorded in (False, True):
        exchange = Exchange(Feeder(()), recorded=recorded)
        exchange.release(1, [command("cpu0"), command("cpu1")])
        assert [e.src for e in exchange.heads] == (["cpu0", "cpu1"] if recorded else ["cpu0"])


def test_a_reply_that_nobody_missed_is_not_sent_again_on_replay() -> None:
    for missed in (False, True):
        faults = ReplayedFaults({("cpu0/0.0~", 2): "drop"})
        if not missed:
            faults.unmissed.add(("cpu0/0.0~", 2))
        exchange = Exchange(Feeder(()), faults, recorded=True)
        exchange.release(
            1, [Envelope("cpu0/0.0", "cpu0", "memory", "PtlLock", "cpu0/0", "", Ack())]
        )
        exchange.take(0)
        reply = Envelope("cpu0/0.0~", "memory", "cpu0", "PtlLock~", "cpu0/0.0", "", Ack())
        exchange.release(2, [reply])
        assert [(e.id, e.copy) for e in exchange.heads] == ([("cpu0/0.0", 1)] if missed else [])
        assert exchange.counts.balance(exchange.pending) == 0
