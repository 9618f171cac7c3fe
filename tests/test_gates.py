"""Pauses, partitions, slow nodes and overtaking on both brokers: one record, one trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.chaos import ChaosConfig, parse_rules
from broker.recorder import broker_records
from explorer import session
from explorer.outcome import Outcome
from nodes.kernel.variant import preset
from scenarios.runs import mixed_run
from tests.runs import nothing_left_behind as nothing_left_behind

ALL = {
    "schema": 1,
    "rule": [
        {"name": "pause", "fault": "pause_node", "match": {"dst": "iommu*"},
         "when": {"from_delivery": 50, "until_delivery": 90, "every": 200}},
        {"name": "split", "fault": "partition", "between": ["cpu*", "kvm*"],
         "when": {"from_delivery": 150, "until_delivery": 190, "every": 200}},
        {"name": "slow", "fault": "slow_node", "match": {"dst": "memory"}, "probability": 0.2,
         "after": {"min": 1, "max": 9}},
        {"name": "overtaken", "fault": "reorder", "probability": 0.2,
         "after": {"min": 1, "max": 3}},
        {"name": "loss", "fault": "drop", "probability": 0.05, "after": {"min": 1, "max": 40}},
        {"name": "twice", "fault": "duplicate", "probability": 0.05,
         "after": {"min": 1, "max": 40}},
    ],
}  # fmt: skip


def rules() -> ChaosConfig:
    """All of them."""
    return parse_rules(ALL, "test")


def gate_notes(directory: Path) -> list[tuple[str, int, str]]:
    """(what, after which delivery, rule) of every gate that moved."""
    return [
        (record[0], record[1], record[2])
        for record in broker_records(directory)
        if record[0] in ("closed", "opened")
    ]


def check(outcome: Outcome, directory: Path) -> None:
    """It came to its end, every rule was at work, and gates were written down in turn."""
    assert outcome.status == "finished"
    assert outcome.ending.complete
    assert not outcome.violations
    rows = {row["name"]: row for row in outcome.chaos["rules"]}
    assert all(row["hits"] for row in rows.values()), rows
    notes = gate_notes(directory)
    for rule in ("pause", "split"):
        own = [what for what, _, name in notes if name == rule]
        assert own[::2].count("closed") == rows[rule]["hits"] == len(own[::2])
        assert set(own[1::2]) <= {"opened"}
    assert [number for _, number, _ in notes] == sorted(number for _, number, _ in notes)


def test_the_simulator_replays_it(tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    run.mkdir()
    again.mkdir()
    spec = mixed_run(preset("v6.6"), 9, chaos=rules(), operations_max=150).save(run)
    check(session.simulate(spec, run), run)
    replayed = session.replay(run, "simulator", again)
    assert (replayed.status, replayed.detail) == ("finished", "")
    assert gate_notes(again) == []


@pytest.mark.processes
def test_processes_do_it_and_the_simulator_replays_it(tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    run.mkdir()
    again.mkdir()
    spec = mixed_run(preset("v6.6"), 9, chaos=rules(), operations_max=100).save(run)
    outcome = session.run_on_processes(spec, run)
    check(outcome, run)
    assert balanced_counts(outcome)
    replayed = session.replay(run, "simulator", again)
    assert (replayed.status, replayed.detail) == ("finished", "")
    assert replayed.ending.deliveries == outcome.ending.deliveries


def balanced_counts(outcome: Outcome) -> bool:
    """Whether every message is accounted for."""
    counts = dict(outcome.counts)
    came = counts.pop("sent") + counts.pop("duplicated") + counts.pop("retransmitted")
    return came == sum(counts.values())
