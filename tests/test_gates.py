"""Pauses, partitions, slow nodes and overtaking on both brokers: one record, one trace."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmurace.broker.chaos import ChaosConfig, ChaosRules, parse_rules
from mmurace.broker.recorder import broker_records
from mmurace.broker.schedules import RandomWalk
from mmurace.explorer.run import session
from mmurace.explorer.run.outcome import Outcome
from mmurace.nodes.kernel.variant import preset
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.errors import UserError
from mmurace.report.terminal import summary
from mmurace.scenarios.runs import mixed_run
from tests.exchange_toy import make_run, play
from tests.runs import nothing_left_behind as nothing_left_behind
from tests.test_chaos import check_over, message, rules_of

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


SPLIT = {
    "name": "s", "fault": "partition", "between": ["a0", "a1"],
    "when": {"from_delivery": 10, "until_delivery": 30},
}  # fmt: skip
PAUSE = {
    "name": "p", "fault": "pause_node", "match": {"dst": "b*"},
    "when": {"from_delivery": 10, "until_delivery": 16},
}  # fmt: skip


# ---- one fault at a time --------------------------------------------------------------------


class Seen(ChaosRules):
    """Rules that note every delivery: (number, from, to)."""

    taken: list[tuple[int, str, str]]

    def delivered(self, envelope: Envelope) -> Sequence[Envelope]:
        """The rules', noted."""
        self.taken.append((self.deliveries + 1, envelope.src, envelope.dst))
        return super().delivered(envelope)


def seen(operations: int, *tables: dict[str, Any]) -> Seen:
    """The rules after a whole run, which came to its end in order."""
    chaos = Seen(parse_rules({"schema": 1, "rule": list(tables)}, "test"), 7)
    chaos.taken = []
    run = make_run(4, chaos, operations)
    play(run, RandomWalk(4))
    check_over(run)
    assert not chaos.unmatched()
    return chaos


def test_nothing_is_delivered_to_a_paused_node_whenever_it_was_sent() -> None:
    chaos = seen(9, PAUSE)
    taken = chaos.taken
    (row,) = chaos.report()["rules"]
    assert (row["hits"], row["gave_up"]) == (1, 0)
    assert row["matched"] > 0
    assert "b0" not in [dst for number, _, dst in taken if 10 < number <= 16]
    assert "b0" in [dst for number, _, dst in taken if number <= 10]
    assert "b0" in [dst for number, _, dst in taken if 16 < number <= 60]


def test_nothing_passes_a_partition_either_way_and_then_it_heals() -> None:
    taken = seen(9, SPLIT).taken
    cut = [{src, dst} for number, src, dst in taken if 10 < number <= 30]
    assert {"a0", "a1"} not in cut
    assert {"a0"} in cut or {"a1"} in cut  # nobody is cut off from itself
    assert {"a0", "a1"} in [{src, dst} for number, src, dst in taken if number > 30]


def test_windows_come_again_and_each_is_drawn() -> None:
    again = PAUSE | {"when": {"from_delivery": 5, "until_delivery": 8, "every": 20}}
    chaos = seen(20, again)
    taken = chaos.taken
    for number, _, dst in taken:
        assert dst != "b0" or not 5 <= (number - 1) % 20 < 8 or chaos.gates.gates[0].cut_short
    (row,) = chaos.report()["rules"]
    assert row["hits"] == sum(number % 20 == 5 for number, _, _ in taken)
    some = seen(20, again | {"probability": 0.5})
    assert 0 < some.report()["rules"][0]["hits"] < row["hits"]


def test_a_gate_opens_early_when_nothing_else_can_move() -> None:
    chaos = rules_of(PAUSE | {"match": {"dst": "*"}, "when": {"until_delivery": 1000}})
    run = make_run(1, chaos)
    play(run)
    check_over(run)
    (row,) = chaos.report()["rules"]
    assert (row["hits"], row["gave_up"]) == (1, 1)


def test_every_delivery_to_a_slow_node_comes_later() -> None:
    chaos = rules_of({"name": "r", "fault": "slow_node", "match": {"dst": "a0"},
                      "after": {"min": 4, "max": 4}})  # fmt: skip
    for src in ("b0", "a1"):
        fault = chaos.fault(message(src=src, dst="a0"))
        assert (fault and fault.kind, fault and fault.after) == ("delay", 4)
        assert chaos.fault(message(src="a0", dst=src)) is None


def test_a_reordered_message_is_overtaken_by_so_many_on_other_channels() -> None:
    chaos = rules_of({"name": "r", "fault": "reorder", "match": {"id": "p/0.1"},
                      "after": {"min": 2, "max": 2}})  # fmt: skip
    late = message()
    fault = chaos.fault(late)
    assert fault is not None
    chaos.hold(late, fault.rule)
    assert list(chaos.delivered(message("q/0.0"))) == []
    assert list(chaos.delivered(message("q/0.1", dst="a1"))) == []  # to another node
    assert list(chaos.delivered(message("p/0.0"))) == []  # on the same channel
    assert list(chaos.delivered(message("q/0.2"))) == [late]


def test_reordered_messages_stay_behind_each_other_where_fifo_holds() -> None:
    rule = {"name": "r", "fault": "reorder", "probability": 0.5, "after": {"min": 1, "max": 9}}
    chaos = rules_of(rule)
    run = make_run(3, chaos, operations=6)
    play(run)
    check_over(run)
    (row,) = chaos.report()["rules"]
    assert row["matched"] > row["hits"] > row["gave_up"] >= 0
    assert not chaos.given_up


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"when": {}}, "rule[0].when.until_delivery: is missing"),
        ({"between": None}, "rule[0].between: is missing"),
        ({"match": {"dst": "a0"}}, "rule[0].match: a partition is about nodes"),
        ({"until": {"kind": "PtlLock"}}, "rule[0].until: a partition has no event"),
        ({"after": {"min": 1, "max": 2}}, "rule[0].after: a partition has no delay"),
    ],
)
def test_a_partition_needs_two_parts_and_an_end(change: dict[str, Any], place: str) -> None:
    rule = {key: value for key, value in (SPLIT | change).items() if value is not None}
    with pytest.raises(UserError) as caught:
        parse_rules({"schema": 1, "rule": [rule]}, "chaos.toml")
    assert place in str(caught.value)


# ---- whole worlds ---------------------------------------------------------------------------


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
    spec = mixed_run(preset("v6.6.5"), 9, chaos=rules(), operations_max=150).save(run)
    outcome = session.simulate(spec, run)
    check(outcome, run)
    pause = next(row for row in outcome.chaos["rules"] if row["name"] == "pause")
    said = f"pause: pause_node, closed {pause['hits']} times, stopped {pause['matched']}"
    assert said in " ".join(summary(outcome).split())
    replayed = session.replay(run, "simulator", again)
    assert (replayed.status, replayed.detail) == ("finished", "")
    assert gate_notes(again) == []


@pytest.mark.processes
def test_processes_do_it_and_the_simulator_replays_it(tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    run.mkdir()
    again.mkdir()
    spec = mixed_run(preset("v6.6.5"), 9, chaos=rules(), operations_max=100).save(run)
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
