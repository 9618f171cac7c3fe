"""Chaos rules, and the exchange under any of them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmurace.broker.chaos import ChaosRules, load_rules, parse_rules
from mmurace.broker.chaos_config import FAULTS, GATES, KILL, check_names, message_kinds, presets
from mmurace.broker.faults import Fault, FaultKind
from mmurace.broker.recorder import ReplayedFaults
from mmurace.broker.schedules import RandomWalk, Recorded
from mmurace.protocol.envelope import Envelope
from mmurace.protocol.errors import UserError
from mmurace.protocol.limits import REPEAT_DISTANCE_MAX
from mmurace.protocol.messages.base import Ack
from tests.exchange_toy import Run, deliver, make_run, play

DELAY = {"name": "r", "fault": "delay", "after": {"min": 1, "max": 9}}
HOLD = {"name": "h", "fault": "hold", "until": {"kind": "PtlLock"}}


def rules_of(*rules: dict[str, Any], seed: int = 7) -> ChaosRules:
    """Rules from tables."""
    return ChaosRules(parse_rules({"schema": 1, "rule": list(rules)}, "test"), seed)


def message(
    message_id: str = "p/0.1", kind: str = "PtlLock", src: str = "a0", dst: str = "b0"
) -> Envelope:
    """A message as the exchange sees it."""
    return Envelope(message_id, src, dst, kind, message_id.rpartition(".")[0], "", Ack())


# ---- properties of the exchange under any rules --------------------------------------------

spans = st.tuples(st.integers(1, 60), st.integers(0, 60)).map(
    lambda pair: {"min": pair[0], "max": pair[0] + pair[1]}
)
matches = st.fixed_dictionaries(
    {},
    optional={
        "src": st.sampled_from(["a*", "b0", "broker"]),
        "dst": st.sampled_from(["a0", "b*", ["a1", "b0"]]),
        "kind": st.sampled_from(["*", "*~", "Ptl*", "FlushTlbIpi", ["PtlLock~", "Touch"]]),
        "operation": st.sampled_from(["a0/*", "b0/1"]),
        "op": st.sampled_from(["Touch", "Munmap"]),
        "id": st.sampled_from(["*.0", "a*"]),
    },
)
windows = st.fixed_dictionaries(
    {},
    optional={
        "from_delivery": st.integers(0, 40),
        "until_delivery": st.integers(41, 200),
        "every": st.integers(201, 300),
        "hits_max": st.integers(1, 20),
    },
)


@st.composite
def rule_lists(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Up to four rules of any fault."""
    rules = []
    for index in range(draw(st.integers(0, 4))):
        fault = draw(st.sampled_from(FAULTS))
        when = draw(windows)
        if "until_delivery" not in when:
            when.pop("every", None)
        rule: dict[str, Any] = {
            "name": f"rule{index}", "fault": fault,
            "probability": draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])), "when": when,
        }  # fmt: skip
        rules.append(rule | draw(specifics(fault, when)))
    return rules


@st.composite
def specifics(draw: st.DrawFn, fault: str, when: dict[str, int]) -> dict[str, Any]:
    """What only this kind of fault has."""
    node = st.sampled_from(["a0", "a*", "b*", "*"])
    rule: dict[str, Any] = {}
    if fault in ("slow_node", "pause_node", KILL):
        rule["match"] = {"dst": draw(node)}
    elif fault == "partition":
        rule["between"] = [draw(node), draw(node)]
    else:
        rule["match"] = draw(matches)
    if fault == "hold":
        rule["until"] = draw(matches) | {"count": draw(st.integers(1, 5))}
    elif fault == KILL:
        pass
    elif fault in GATES:
        when.setdefault("until_delivery", when.get("from_delivery", 0) + 30)
    else:
        rule["after"] = draw(spans)
    return rule


seeds = st.integers(0, 1 << 32)
quick = settings(max_examples=60, deadline=None)


def check_over(run: Run) -> None:
    """Nothing is lost, acted on twice, overtaken or left."""
    exchange, log = run.exchange, run.log
    assert exchange.feeder.exhausted
    assert exchange.pending == 0
    assert exchange.requests == {}
    assert set(log.started.values()) <= {1}
    assert log.arrived == {c: [i for i in ids if i in log.gone] for c, ids in log.sent.items()}


@quick
@given(rule_lists(), seeds)
def test_whatever_the_faults_everything_arrives_once_and_in_order(
    rules: list[dict[str, Any]], seed: int
) -> None:
    run = make_run(seed, rules_of(*rules, seed=seed))
    play(run, RandomWalk(seed))
    check_over(run)


@quick
@given(rule_lists(), seeds, st.integers(1, 60))
def test_after_healing_nothing_is_kept_back(
    rules: list[dict[str, Any]], seed: int, when: int
) -> None:
    run = make_run(seed, rules_of(*rules, seed=seed))

    def heal_once(run: Run) -> None:
        if run.exchange.number == when:
            run.exchange.heal()
        if run.exchange.number >= when:
            assert not any(e.blocked for e in run.exchange.heads)
            assert run.exchange.heads or not run.exchange.pending

    play(run, RandomWalk(seed), heal_once)
    check_over(run)


class Noting(ChaosRules):
    """Rules that note which faults made or lost a message, as a recorded run does."""

    noted: dict[tuple[str, int], FaultKind]

    def fault(self, envelope: Envelope) -> Fault | None:
        """The rules' fault, noted."""
        fault = super().fault(envelope)
        if fault is not None and (fault.kind == "duplicate" or envelope.is_reply):
            self.noted[envelope.id, (envelope.causes or (0,))[-1]] = fault.kind
        return fault


@quick
@given(rule_lists(), seeds)
def test_a_recorded_run_replays_without_the_rules(rules: list[dict[str, Any]], seed: int) -> None:
    chaos = Noting(parse_rules({"schema": 1, "rule": rules}, "test"), seed)
    chaos.noted = {}
    run = make_run(seed, chaos)
    play(run, RandomWalk(seed))
    lost: dict[tuple[str, int], FaultKind] = {
        key: kind for key, kind in chaos.noted.items() if kind in ("drop", "duplicate")
    }
    again = make_run(seed, ReplayedFaults(lost))
    play(again, Recorded(run.log.entries))
    assert again.log.entries == run.log.entries
    assert again.log.started == run.log.started


@quick
@given(rule_lists(), seeds)
def test_probability_zero_changes_nothing(rules: list[dict[str, Any]], seed: int) -> None:
    never = [rule | {"probability": 0.0} for rule in rules]
    plain, zero = make_run(seed, None), make_run(seed, rules_of(*never, seed=seed))
    play(plain, RandomWalk(seed))
    play(zero, RandomWalk(seed))
    assert plain.log.entries == zero.log.entries
    assert plain.exchange.counts == zero.exchange.counts


# ---- single faults -------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["drop", "duplicate", "delay"])
def test_faults_are_counted(fault: str) -> None:
    rule = {"name": "r", "fault": fault, "after": {"min": 3, "max": 3}}
    chaos = rules_of(rule)
    run = make_run(3, chaos)
    play(run)
    check_over(run)
    counts, (row,) = run.exchange.counts, chaos.report()["rules"]
    assert row["hits"] == row["matched"] > 0
    assert (counts.dropped > 0) == (fault == "drop")
    assert (counts.duplicated > 0) == (fault == "duplicate")
    assert counts.retransmitted <= counts.dropped


def test_a_delay_is_as_long_as_drawn_unless_nothing_else_can_move() -> None:
    chaos = rules_of(DELAY | {"match": {"id": "a0/0"}, "after": {"min": 4, "max": 4}})
    run = make_run(2, chaos, operations=9)
    run.exchange.start()
    while run.exchange.number < 4:
        assert "a0/0" not in [envelope.id for envelope in run.exchange.heads]
        deliver(run, 0)
    assert "a0/0" in [envelope.id for envelope in run.exchange.heads]


def test_nothing_waits_for_a_delay_when_nothing_else_can_move() -> None:
    run = make_run(2, rules_of(DELAY | {"after": {"min": 500, "max": 500}}), operations=1)
    run.exchange.start()
    assert not run.exchange.heads
    assert run.exchange.unstick()
    assert len(run.exchange.heads) == 1


def test_a_duplicate_does_not_overtake_its_delayed_channel() -> None:
    late = DELAY | {"match": {"kind": "FlushTlbIpi"}, "after": {"min": 50, "max": 50}}
    twice = {"name": "d", "fault": "duplicate", "match": {"kind": "PtlLock"}}
    for seed in range(20):
        run = make_run(seed, rules_of(late, twice | {"after": {"min": 1, "max": 1}}))
        play(run, RandomWalk(seed))
        check_over(run)


def test_a_lost_reply_that_nobody_waits_for_any_more_is_not_repeated() -> None:
    double = {"name": "d", "fault": "duplicate", "match": {"kind": "PtlLock"}}
    lose = {"name": "l", "fault": "drop", "match": {"kind": "PtlLock~"}}
    run = make_run(1, rules_of(double | {"after": {"min": 1, "max": 1}},
                               lose | {"after": {"min": 5, "max": 5}}))  # fmt: skip
    play(run)
    check_over(run)
    assert run.exchange.counts.dropped > run.exchange.counts.retransmitted > 0


def test_a_hold_ends_with_its_event_and_not_before() -> None:
    chaos = rules_of(HOLD | {"match": {"dst": "b0"}, "until": {"kind": "FlushTlbIpi", "count": 2}})
    held = message()
    fault = chaos.fault(held)
    assert fault is not None
    assert fault.kind == "hold"
    chaos.hold(held, fault.rule)
    event = message("q/0.0", "FlushTlbIpi")
    assert list(chaos.delivered(event)) == []
    assert list(chaos.delivered(message("q/0.1", "PtlUnlock"))) == []
    assert list(chaos.delivered(msgspec.structs.replace(event, copy=1))) == []
    assert list(chaos.delivered(event)) == [held]
    assert list(chaos.delivered(event)) == []


@pytest.mark.parametrize("ever", [False, True])
@pytest.mark.parametrize("before", range(4))
def test_an_event_before_the_hold_counts_if_the_rule_says_so(before: int, ever: bool) -> None:
    """A node that is slow sends what is to be held after the event, which then comes no more."""
    until = {"kind": "FlushTlbIpi", "count": 2, "ever": ever}
    chaos = rules_of(HOLD | {"match": {"dst": "b0"}, "until": until})
    event, held = message("q/0.0", "FlushTlbIpi"), message()
    for _ in range(before):
        assert list(chaos.delivered(event)) == []
    awaited = 2 - before if ever else 2
    fault = chaos.fault(held)
    assert (fault is not None) == (awaited > 0)
    if fault is not None:
        chaos.hold(held, fault.rule)
        freed = [list(chaos.delivered(event)) for _ in range(awaited)]
        assert freed == [[]] * (awaited - 1) + [[held]]
    assert chaos.report()["rules"][0]["hits"] == 1


def test_a_hold_whose_event_cannot_come_is_let_go_and_reported() -> None:
    chaos = rules_of(HOLD | {"match": {"kind": "PtlLock"}, "until": {"kind": "Munmap"}})
    run = make_run(1, chaos)
    play(run)
    check_over(run)
    (row,) = chaos.report()["rules"]
    assert row["gave_up"] == row["hits"] > 0
    assert chaos.given_up[0][0] == "h"


def test_a_rule_that_matched_nothing_is_reported() -> None:
    chaos = rules_of(DELAY | {"match": {"kind": "Munmap"}})
    play(make_run(1, chaos))
    assert chaos.unmatched() == ["r"]
    assert chaos.report()["unmatched"] == ["r"]


def test_draws_depend_on_the_rule_and_the_message_alone() -> None:
    some = DELAY | {"probability": 0.5}
    other = DELAY | {"name": "other", "match": {"src": "nobody"}}
    ids = [f"p/{i}.0" for i in range(200)]
    alone, beside = rules_of(some), rules_of(other, some)
    first = {i: alone.fault(message(i)) for i in ids}
    second = {i: beside.fault(message(i)) for i in reversed(ids)}
    assert first == second
    assert 60 < sum(fault is not None for fault in first.values()) < 140
    assert first != {i: rules_of(some, seed=8).fault(message(i)) for i in ids}


def test_copies_are_exempt_and_the_first_rule_that_hits_wins() -> None:
    chaos = rules_of(DELAY, HOLD)
    fault = chaos.fault(message())
    assert fault is not None
    assert (fault.kind, fault.rule) == ("delay", "r")
    assert chaos.fault(msgspec.structs.replace(message(), copy=1)) is None


def test_when_bounds_deliveries_and_hits() -> None:
    chaos = rules_of(DELAY | {"when": {"from_delivery": 1, "until_delivery": 3, "hits_max": 1}})
    assert chaos.fault(message()) is None
    chaos.delivered(message())
    assert chaos.fault(message()) is not None
    assert chaos.fault(message()) is None


def test_an_operation_is_known_by_its_kind() -> None:
    chaos = rules_of(DELAY | {"match": {"op": "Munmap", "kind": "PtlLock"}})
    assert chaos.fault(message("cpu0/3", "Munmap", "broker", "cpu0")) is None
    assert chaos.fault(message("cpu0/3.1.0", "PtlLock")) is not None
    assert chaos.fault(message("cpu0/2.1.0", "PtlLock")) is None
    assert chaos.fault(message("cpu1/3.1.0", "PtlLock")) is None


def test_rules_can_be_copied_in_the_middle_of_a_run() -> None:
    chaos = rules_of(HOLD | {"match": {"src": "a[01]"}, "until": {"kind": "PtlLock"}})
    held = message()
    fault = chaos.fault(held)
    assert fault is not None
    chaos.hold(held, fault.rule)
    chaos.gates.moved(1)
    copied = pickle.loads(pickle.dumps(chaos))
    assert [e.id for e in copied.delivered(message("q/1.0"))] == [held.id]
    assert [e.id for e in chaos.delivered(message("q/1.0"))] == [held.id]


# ---- configurations ------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads_says_what_for_and_survives_run_toml(name: str) -> None:
    config = load_rules(name)
    assert config.about.endswith(".")
    assert parse_rules(msgspec.to_builtins(config), "run.toml") == config
    run = make_run(5, ChaosRules(config, 5))
    play(run, RandomWalk(5))
    check_over(run)


def test_presets_are_the_files_in_configs() -> None:
    assert presets() == [
        "calm", "jitter", "kill-device", "kill-vm", "late-acks", "lossy", "pause-secondary",
        "shuffle",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "place", "says"),
    [
        ({"match": {"knd": "PtlLock"}}, "rule[1].match.knd", "'kind'"),
        ({"match": {"kind": "PtlLok"}}, "rule[1].match.kind", "'PtlLock'"),
        ({"match": {"kind": "Nothing*"}}, "rule[1].match.kind", "no message kind"),
        ({"match": {"op": "PtlLock"}}, "rule[1].match.op", "no message kind"),
        ({"match": {"src": 3}}, "rule[1].match.src", "got `int`"),
        ({"match": {"src": []}}, "rule[1].match.src", "matches nothing"),
        ({"match": 3}, "rule[1].match", "a table"),
        ({"fault": "sleep"}, "rule[1].fault", "one of delay, drop, duplicate, reorder, hold"),
        ({"fault": "slow_node"}, "rule[1].match", "match = { dst = ... }"),
        ({"fault": "slow_node", "match": {"kind": "PtlLock"}}, "rule[1].match", "about a node"),
        ({"fault": "pause_node", "match": {"dst": "a"}}, "rule[1].after", "when = { ... }"),
        ({"between": ["a", "b"]}, "rule[1].between", "a delay has no two parts"),
        ({"between": ["a", "b", "c"]}, "rule[1].between", "length"),
        ({"when": {"every": 9}}, "rule[1].when.every", "repeats no window"),
        ({"when": {"until_delivery": 9, "every": 9}}, "rule[1].when.every", "more than the window"),
        ({"fault": "hodl"}, "rule[1].fault", "'hold'"),
        ({"probability": 1.5}, "rule[1].probability", "0.0 to 1.0"),
        ({"probability": float("nan")}, "rule[1].probability", "0.0 to 1.0"),
        ({"after": {"min": 0, "max": 5}}, "rule[1].after", "1 <= min"),
        ({"after": {"min": 1, "max": REPEAT_DISTANCE_MAX + 1}}, "rule[1].after", "<= max <="),
        ({"after": {"min": 1}}, "rule[1].after", "`max`"),
        ({"until": {"kind": "PtlLock"}}, "rule[1].until", "has no event"),
        ({"when": {"hits_max": 0}}, "rule[1].when.hits_max", "1 or more"),
        ({"when": {"from_delivery": 5, "until_delivery": 5}}, "when.until_delivery", "more than"),
        ({"name": "first"}, "rule[1].name", "used twice"),
        ({"name": ""}, "rule[1].name", "is empty"),
        ({"colour": 1}, "rule[1].colour", "unknown key"),
    ],
)
def test_what_is_wrong_is_refused_by_name(rule: dict[str, Any], place: str, says: str) -> None:
    table = {"schema": 1, "rule": [DELAY | {"name": "first"}, DELAY | rule]}
    with pytest.raises(UserError) as caught:
        parse_rules(table, "chaos.toml")
    assert caught.value.where.startswith("chaos.toml: ")
    assert place in caught.value.where
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"until": None}, "rule[0].until"),
        ({"after": {"min": 1, "max": 2}}, "rule[0].after"),
        ({"until": {"kind": "PtlLock", "count": 0}}, "rule[0].until.count"),
        ({"until": {"kind": "PtlLok"}}, "rule[0].until.kind"),
    ],
)
def test_a_hold_needs_an_event(change: dict[str, Any], place: str) -> None:
    rule = {key: value for key, value in (HOLD | change).items() if value is not None}
    with pytest.raises(UserError, match=r"chaos\.toml") as caught:
        parse_rules({"schema": 1, "rule": [rule]}, "chaos.toml")
    assert place in caught.value.where


@pytest.mark.parametrize("text", ["schema = 2\n", "schema = 1\nrules = []\n", "schema =\n", "\xff"])
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "chaos.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"chaos\.toml"):
        load_rules(file)


def test_a_missing_file_or_preset_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_rules(tmp_path / "none.toml")
    with pytest.raises(UserError, match="jitter"):
        load_rules("jiter")


def test_names_that_a_run_does_not_have_are_refused() -> None:
    def check(match: dict[str, Any]) -> None:
        config = parse_rules({"schema": 1, "rule": [DELAY | {"match": match}]}, "f")
        check_names(config, ["cpu0", "memory"], ["cpu0"], "f")

    parts = {"name": "p", "fault": "partition", "between": ["cpu0", "gpu0"]}
    parted = parse_rules({"schema": 1, "rule": [parts | {"when": {"until_delivery": 9}}]}, "f")
    with pytest.raises(UserError, match=r"f: rule\[0\]\.between\[1\]: this run has no node 'gpu0'"):
        check_names(parted, ["cpu0", "memory"], ["cpu0"], "f")
    check({"src": ["broker", "cpu*"], "dst": "memory", "program": "cpu0", "operation": "cpu0/*"})
    for match in ({"src": "cpu1"}, {"dst": "broker"}, {"program": "x"}, {"operation": "x/1"}):
        with pytest.raises(UserError, match=r"f: rule\[0\]\.match"):
            check(match)


def test_a_place_inside_another_file_is_one_key_path() -> None:
    with pytest.raises(UserError, match=r"^race\.toml: chaos\.rule\[0\]\.match\.knd: unknown key"):
        parse_rules({"schema": 1, "rule": [DELAY | {"match": {"knd": 1}}]}, "race.toml: chaos")


def test_message_kinds_are_requests_and_their_replies() -> None:
    kinds = message_kinds()
    assert {"PtlLock", "PtlLock~", "Munmap", "Munmap~"} <= kinds
    assert not {"Ack", "Message", "Request", "Operation"} & kinds
