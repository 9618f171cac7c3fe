"""Runs that were cut short: judged and replayed to the last delivery that was handled."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import deque
from contextlib import closing
from pathlib import Path

import pytest

from mmurace.broker.chaos import ChaosRules, load_rules
from mmurace.broker.chaos_config import CONFIGS
from mmurace.broker.dispatch import InFlight, dispatcher
from mmurace.broker.exchange import Exchange
from mmurace.broker.follow import Follower
from mmurace.broker.programs import Feeder
from mmurace.broker.recorder import BrokerJournal, broker_records, read_record
from mmurace.broker.schedules import Arrival
from mmurace.explorer.run import schedule_file, session
from mmurace.explorer.run.outcome import Outcome
from mmurace.nodes.build import build_all
from mmurace.nodes.journal import Journal, JournalReader, journal_path
from mmurace.nodes.kernel.variant import preset
from mmurace.protocol import wire
from mmurace.protocol.envelope import BROKER, Envelope, Handled
from mmurace.protocol.errors import PeerError
from mmurace.scenarios.catalogue import find
from mmurace.scenarios.mixed import Mixed
from mmurace.scenarios.spec import RunSpec
from tests.runs import nothing_left_behind
from tests.test_kill import kill, spec_of

__all__ = ["nothing_left_behind"]

ROOT = Path(__file__).parent.parent


def mixed(chaos: str, seed: int, operations: int | None = 40) -> RunSpec:
    """A mixed run under a chaos of the shipped ones."""
    workload = Mixed()
    rules = load_rules(CONFIGS / f"{chaos}.toml") if chaos else None
    world = workload.world(preset("v6.6"))
    return RunSpec("mixed", world, seed, workload, rules, operations_max=operations)


def cut_run(
    directory: Path, spec: RunSpec, seed: int, steps: int, frozen: tuple[str, int] = ("", 0)
) -> None:
    """What processes leave that are killed after so many handlings, in any order, in one process.

    A delivery is on file before it is made, and a handling before anybody hears of it.  ``frozen``:
    a node that handles nothing in so many last steps.
    """
    directory.mkdir()
    spec = spec.save(directory)
    nodes, chance = spec.world.nodes(), random.Random(seed)
    broker = BrokerJournal(directory)
    journals = {name: Journal(journal_path(directory, name), name) for name in nodes}
    chaos = ChaosRules(spec.chaos, spec.seed, spec.world) if spec.chaos else None
    exchange = Exchange(Feeder(spec.programs(), spec.operations_max), broker.watch(chaos))
    in_flight: InFlight = {name: deque() for name in nodes}
    dispatch, drivers = (
        dispatcher(Arrival(), exchange, in_flight, 1 << 62),
        build_all(spec.world, spec.seed),
    )
    given: dict[str, deque[tuple[int, Envelope]]] = {name: deque() for name in nodes}
    told: dict[str, deque[Handled]] = {name: deque() for name in nodes}
    exchange.start()
    while steps and not dispatch.status:
        for n, envelope in dispatch.take():
            broker.deliver(n, envelope)
            given[envelope.dst].append((n, envelope))
        broker.flush()
        busy = [n for n in nodes if given[n] and (n != frozen[0] or steps > frozen[1])]
        heard = [name for name in nodes if told[name]]
        if busy and (not heard or chance.random() < 0.6):
            steps -= 1
            name = chance.choice(busy)
            n, envelope = given[name].popleft()
            handled = drivers[name].deliver(n, envelope)
            record = wire.journal_record(envelope.id, wire.handled_frames(handled))
            journals[name].write(record)
            told[name].append(handled)
        elif not heard:
            break
        else:
            name = chance.choice(heard)
            exchange.release(in_flight[name].popleft(), told[name].popleft().messages)
    broker.abandon()
    for journal in journals.values():
        journal.abandon()


def said(outcome: Outcome) -> tuple[object, ...]:
    """What whoever reads a record must agree on."""
    how = outcome.verdict.how
    rules = [violation.identity() for violation in outcome.violations]
    return rules, how.deliveries, how.operations, how.met, how.statistics, outcome.record


def agree(run: Path, out: Path, on: str = "simulator") -> Outcome:
    """The judge and the replay say the same of a run that was cut short."""
    out.mkdir()
    checked, again = session.check(run), session.replay(run, on, out)  # type: ignore[arg-type]  # the literals of the tests
    assert again.status == "finished", again.detail
    assert said(again) == said(checked)
    assert checked.verdict.outcome == again.verdict.outcome != "held"
    assert again.exit_code in (1, 3)
    return again


# ---- at any moment ---------------------------------------------------------------------------


@pytest.mark.parametrize("chaos", ["", "lossy", "jitter", "kill-device", "kill-vm"])
@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_was_killed_replays_to_its_last_handled_delivery(
    tmp_path: Path, chaos: str, seed: int
) -> None:
    run = tmp_path / "run"
    cut_run(run, mixed(chaos, seed), seed, random.Random(f"{chaos}{seed}").randrange(100, 4000))
    record = read_record(run)
    again = agree(run, tmp_path / "again")
    assert again.ending.deliveries == record.deliveries[-1][0]
    assert again.record.startswith(f"ends after delivery {record.deliveries[-1][0]}")


def test_deliveries_that_were_never_handled_leave_gaps(tmp_path: Path) -> None:
    gaps = unhandled = 0
    for seed in range(12):
        run = tmp_path / f"run{seed}"
        cut_run(run, mixed("lossy", seed, None), seed, 700 + seed)
        record = read_record(run)
        numbers = [n for n, _, _ in record.deliveries]
        assert record.unhandled == record.last - len(numbers)
        gaps += numbers != list(range(1, len(numbers) + 1))
        unhandled += record.unhandled
        told = agree(run, tmp_path / f"again{seed}").record
        more = f", {record.unhandled} more were delivered and never handled"
        assert (more in told) == (record.unhandled > 0)
    assert gaps
    assert unhandled


@pytest.mark.parametrize(("victim", "frozen"), [("device0", "memory"), ("vcpu0", "memory")])
def test_a_death_is_where_it_was_although_deliveries_are_missing(
    tmp_path: Path, victim: str, frozen: str
) -> None:
    begun = killed = moved = 0
    for at in range(90):
        run = tmp_path / f"run{at}"
        cut_run(run, spec_of(at, kill(victim, 500)), at, 496 + 2 * at, (frozen, at))
        record = read_record(run)
        begun, killed = begun + bool(record.begun), killed + bool(record.killed)
        numbers = [n for n, _, _ in record.deliveries]
        assert {n for n, _ in record.begun} <= {0, *numbers}
        deaths = [fields[1] for fields in broker_records(run) if fields[0] == "kill"]
        moved += any(n not in numbers and n < numbers[-1] for n in deaths)
        agree(run, tmp_path / f"again{at}")
    assert 0 < killed <= begun < 90
    assert moved


@pytest.mark.parametrize("seed", [12, 121, 150])
def test_an_operation_that_was_never_fed_uses_up_no_bound(tmp_path: Path, seed: int) -> None:
    """Of these runs the last operation was fed in another order than the deliveries have."""
    run = tmp_path / "run"
    cut_run(run, mixed("", seed, 24), seed, 1000)
    assert agree(run, tmp_path / "again").ending.finished == 24


def test_a_violation_before_the_end_is_replayed_and_cut_down(tmp_path: Path) -> None:
    spec = find("E08").run("v6.2-end-only", 3)
    run, found = tmp_path / "run", 0
    for seed in range(8):
        run = tmp_path / f"run{seed}"
        cut_run(run, spec, seed, 400)
        if agree(run, tmp_path / f"again{seed}").violations:
            found += 1
            loaded = schedule_file.load(run)
            assert loaded.target.rule in {v.rule for v in session.check(run).violations}
    assert found


@pytest.mark.parametrize("torn", [1, 7, 12, 13, 40])
def test_a_record_that_was_cut_short_is_not_there(tmp_path: Path, torn: int) -> None:
    run = tmp_path / "run"
    cut_run(run, mixed("lossy", 1), 1, 500)
    whole = session.check(run)
    for name in (BROKER, "memory", "cpu0"):
        path = journal_path(run, name)
        data = path.read_bytes()
        with closing(JournalReader(path)) as reader:
            while reader.next() is not None:
                pass
            assert reader.tail_bytes() == 0
        extra = Journal(journal_path(tmp_path, f"extra-{name}-{torn}"), f"extra-{name}-{torn}")
        size = journal_path(tmp_path, f"extra-{name}-{torn}").stat().st_size
        extra.write(b"x" * 100)
        extra.close()
        record = journal_path(tmp_path, f"extra-{name}-{torn}").read_bytes()[size:]
        path.write_bytes(data + record[:torn])
    assert said(session.check(run)) == said(whole)
    agree(run, tmp_path / "again")


def test_a_run_that_never_began_is_no_error(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    spec = mixed("", 1).save(run)
    assert agree(run, tmp_path / "a").ending.deliveries == 0
    for name in spec.world.nodes()[:2]:
        Journal(journal_path(run, name), name).close()
    assert agree(run, tmp_path / "b").record == "ends after delivery 0: the run was cut short"
    BrokerJournal(run).close()
    agree(run, tmp_path / "c")


def test_nodes_of_the_simulator_may_have_more_than_its_broker(tmp_path: Path) -> None:
    """Their journals are written first, and it may be killed in between."""
    run = tmp_path / "run"
    cut_run(run, mixed("", 2), 2, 600)
    path = journal_path(run, BROKER)
    path.write_bytes(path.read_bytes()[:-30_000])
    assert read_record(run).unhandled == 0
    agree(run, tmp_path / "again")


# ---- what does not fit is not believed -------------------------------------------------------


def test_a_journal_without_a_record_in_its_middle_is_damaged(tmp_path: Path) -> None:
    run = tmp_path / "run"
    cut_run(run, mixed("", 3), 3, 500)
    path = journal_path(run, "memory")
    with closing(JournalReader(path)) as reader:
        records = list(iter(reader.next, None))
    path.unlink()
    with closing(Journal(path, "memory")) as journal:
        for record in records[:50] + records[51:]:
            journal.write(record)
    out = tmp_path / "again"
    out.mkdir()
    with pytest.raises(PeerError, match=r"memory\.journal"):
        session.check(run)
    with pytest.raises(PeerError, match=r"memory\.journal"):
        session.replay(run, "simulator", out)


# ---- for real --------------------------------------------------------------------------------


def killed(directory: Path, *words: str, until: int) -> None:
    """A launcher of its own that is killed once the broker's journal has so many bytes."""
    command = [sys.executable, str(ROOT / "launch.py"), "stress", "--seed", "7", *words]
    launcher = subprocess.Popen(
        [*command, "--out", str(directory)], cwd=directory.parent, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    path, deadline = journal_path(directory, BROKER), time.monotonic() + 60
    try:
        while not path.exists() or path.stat().st_size < until:
            assert launcher.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline, "waited 60 s for the broker's journal to grow"
    finally:
        launcher.kill()
        launcher.communicate(timeout=60)  # its children hold the pipe: until they are gone


@pytest.mark.processes
def test_kill_9_of_a_launcher_of_processes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    killed(run, "--seconds", "60", "--chaos", "lossy", until=60_000)
    assert agree(run, tmp_path / "a").ending.deliveries > 0
    agree(run, tmp_path / "b", "processes")
    with closing(Follower(run, RunSpec.load(run).world.nodes())) as follower:
        assert follower.outcome is None


def test_kill_9_of_a_launcher_in_the_simulator(tmp_path: Path) -> None:
    run = tmp_path / "run"
    killed(run, "--on", "simulator", "--operations", "1000000", until=200_000)
    assert agree(run, tmp_path / "a").ending.deliveries > 0
