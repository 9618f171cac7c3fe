"""Exploration: strategies, signatures, statistics, and races found without their recipes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mmurace import launch
from mmurace.broker.schedules import RandomWalk, Schedule
from mmurace.explorer.explain.found import FILE
from mmurace.explorer.run.schedule_file import read_case
from mmurace.explorer.run.session import replay
from mmurace.explorer.sample.coverage import Coverage, Signature
from mmurace.explorer.sample.explore import (
    SIGN_EVERY,
    Exploration,
    Options,
    explore,
    record,
    run_schedule,
)
from mmurace.explorer.sample.policies import CALIBRATION_RUNS, CYCLES, Policies
from mmurace.explorer.sample.statistics import (
    at_most,
    median,
    missed_by,
    pct_bound,
    unseen_mass,
    wilson,
)
from mmurace.explorer.sample.strategies import (
    CountedWalk,
    Paces,
    Pct,
    Pos,
    Stall,
    Surw,
    interesting,
    races,
)
from mmurace.explorer.shrink.play import How, play
from mmurace.nodes.footprint import Footprint
from mmurace.oracle.state.statistics import Statistics
from mmurace.protocol.envelope import Envelope, Handled
from mmurace.protocol.errors import UserError
from mmurace.protocol.messages.base import Ack, Message
from mmurace.protocol.messages.memory import FrameRead, FrameWrite, PteLoad, PtlLock
from mmurace.report.exploration import exploration_dict, facts, result_dict
from mmurace.scenarios.catalogue import find
from mmurace.scenarios.spec import RunSpec
from tests.worlds import run_small, small_world

ROOT = Path(__file__).parents[1]
BAD = (("E01", "v5.7"), ("E08", "v6.2-end-only"))
GOOD = (("E01", "v6.6"), ("E08", "v6.2"))
SCHEDULES = 250
"""Enough that a race which one schedule in fifty shows is missed once in 150 explorations."""


def bare(race: str, kernel: str, seed: int) -> RunSpec:
    """A race without its recipe."""
    return replace(find(race).run(kernel, seed), chaos=None)


def message(
    name: str, body: Message, dst: str = "memory", causes: tuple[int, ...] = ()
) -> Envelope:
    """A message on its way."""
    return Envelope(name, "cpu0", dst, type(body).__name__, name, "", body, causes=causes)


# ---- strategies --------------------------------------------------------------------------------


def strategies(seed: int) -> list[Schedule]:
    surw = Surw(seed, {"cpu0": 40, "cpu1": 20})
    return [CountedWalk(seed), Pos(seed), Pct(seed, 3, 200), surw, Paces(seed), Stall(seed)]


ALL = range(len(strategies(0)))


@pytest.mark.parametrize("which", ALL)
def test_a_strategy_runs_to_the_end_and_its_seed_determines_it(which: int) -> None:
    def trace(seed: int) -> list[str]:
        seen: list[str] = []
        schedule = strategies(seed)[which]
        ending, _ = run_small(small_world(), 1, lambda e, _: seen.append(e.id), schedule)
        assert ending.complete
        return seen

    assert trace(5) == trace(5) != trace(6)


def test_pct_keeps_a_chain_together() -> None:
    pct = Pct(3, 1, 100)
    first, second = message("a/0", Ack()), message("b/0", Ack())
    chosen = pct.pick(heads := [first, second])
    heads[chosen] = message("next", Ack(), causes=(1,))
    assert pct.pick(heads) == chosen, "the reply belongs to the higher chain"
    assert pct.chains == 2


@pytest.mark.parametrize("seed", range(10))
def test_pct_drops_a_chain_at_a_change_point(seed: int) -> None:
    pct = Pct(seed, 2, 1)  # the only step that can be drawn is the first
    heads = [message("a/0", Ack()), message("b/0", Ack())]
    dropped = heads[1 - pct.pick(heads)]
    heads = [dropped, message("c/0", Ack())]
    assert pct.pick(heads) == 1, "even a new chain comes before the one that was dropped"


@pytest.mark.parametrize("seed", range(10))
def test_who_stands_still_goes_on_when_nobody_else_can(seed: int) -> None:
    stall = Stall(seed)
    picks = [
        stall.pick([message(f"{name}/{turn}", Ack()) for name in ("a", "b")])
        for turn in range(400)  # it happens at one choice in 32 at least
    ]
    assert len(set(picks[300:])) == 1, "one of the two stands still"
    still = "ba"[picks[-1]]
    assert stall.pick([message(f"{still}/400", Ack())]) == 0


@pytest.mark.parametrize("which", ALL)
def test_no_strategy_takes_a_message_for_another_that_can_never_arrive(which: int) -> None:
    def picks(keep: bool) -> list[int]:
        """Thirty choices among four new messages each, whatever becomes of the other three.

        If nobody keeps those, new ones take their place in storage.
        """
        schedule, chosen, kept = strategies(7)[which], list[int](), list[Envelope]()
        for turn in range(30):
            heads = [message(f"main/{turn}.{at}", FrameRead(3, at)) for at in range(4)]
            chosen.append(schedule.pick(heads))
            kept += heads if keep else ()
        return chosen

    assert picks(keep=True) == picks(keep=False)


def test_what_races() -> None:
    read, write = FrameRead(3, 1), FrameWrite(3, 1, 7)
    assert races(message("a", read), message("b", write))
    assert not races(message("a", read), message("b", read))
    assert not races(message("a", write), message("b", FrameWrite(3, 2, 7)))
    assert races(message("a~", Ack()), message("b", read)), "a reply resumes a coroutine"
    assert interesting(message("a", PtlLock(2)))
    assert interesting(message("a", PteLoad(2, 0)))
    assert not interesting(message("a", write))


def test_the_portfolio_is_made_of_what_it_says() -> None:
    cycle = CYCLES["portfolio"]
    shares = {name[:3]: 0 for name in cycle}
    for name in cycle:
        shares[name[:3]] += 1
    assert shares == {"sta": 5, "pos": 4, "pct": 2, "ran": 1}
    policies = Policies("surw", 1)
    assert [policies.policy(at) for at in (0, CALIBRATION_RUNS - 1, CALIBRATION_RUNS)] == [
        "random", "random", "surw",
    ]  # fmt: skip
    with pytest.raises(UserError, match="portfolio"):
        Policies("lucky", 1)


# ---- signatures and statistics -----------------------------------------------------------------


Step = tuple[str, str, Footprint]
"""A delivery: its id, its node, what it touches."""


def signature(*steps: Step) -> int:
    """Of the deliveries, in this order."""
    footprint: Footprint = []
    made = Signature(footprint)
    for n, (name, dst, touched) in enumerate(steps, start=1):
        footprint += touched
        made.observe(message(name, Ack(), dst), Handled(n))
    return made.value


def test_a_signature_is_that_of_the_trace() -> None:
    scan: Step = ("scan", "memory", [(("word", 7), "read")])
    one: Step = ("one", "memory", [(("word", 7, 1), "write")])
    two: Step = ("two", "memory", [(("word", 7, 2), "write")])
    look: Step = ("look", "memory", [(("word", 7, 2), "read")])
    away: Step = ("away", "cpu0", [((), "write")])
    assert signature(one, two, away) == signature(away, two, one)
    assert signature(one, look, scan) == signature(one, scan, look) == signature(look, one, scan)
    assert signature(one, scan) != signature(scan, one), (
        "a part is written before the whole is read"
    )
    assert signature(two, look) != signature(look, two)
    whole: Step = ("whole", "memory", [((), "write")])
    assert signature(one, whole, two) != signature(whole, one, two)
    assert signature(one, whole, two) != signature(one, two, whole)


def test_swapping_neighbours_that_are_independent_keeps_the_signature() -> None:
    """The same run under another order of deliveries to different nodes."""
    spec = bare("E08", "v6.2", 1)
    once, again = (run_schedule(spec, RandomWalk(4)).signature for _ in range(2))
    other = run_schedule(spec, RandomWalk(5)).signature
    assert once == again != other


def test_coverage_counts_traces() -> None:
    coverage = Coverage()
    for trace in (1, 2, 2, 3, 3, 3):
        coverage.add(trace, Statistics(covered={"nested": 1}))
    assert coverage.distinct == 3
    assert coverage.unseen == pytest.approx(1 / 6)
    assert coverage.points == {"nested": 6}


def test_statistics() -> None:
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert at_most(300) == pytest.approx(0.01)
    assert at_most(0) == unseen_mass(0, 0) == 1.0
    assert pct_bound(4, 100, 3) == pytest.approx(1 / 40_000)
    assert missed_by(0.01, 300) == pytest.approx(0.99**300)
    assert missed_by(1.0, 1) == 0.0
    assert median([3, 1, 2, 9]) == 2


# ---- explorations ------------------------------------------------------------------------------


@pytest.mark.parametrize(("race", "kernel"), BAD)
def test_a_race_is_found_without_its_recipe(race: str, kernel: str, tmp_path: Path) -> None:
    found = explore(bare(race, kernel, 1), Options(schedules=SCHEDULES, stop_on=""))
    assert found.exit_code == 1
    assert found.expected >= SCHEDULES // 100
    assert wilson(found.expected, found.schedules)[0] >= 0.001
    assert found.bounds() == []
    first, again = tmp_path / "first", tmp_path / "again"
    first.mkdir()
    again.mkdir()
    outcome = record(found, first)
    replayed = replay(first, "simulator", again)
    assert replayed.status == "finished", replayed.detail
    assert [v.identity() for v in replayed.violations] == [v.identity() for v in outcome.violations]


def test_what_is_on_a_stream_may_overtake_what_is_not_in_the_replay_as_well(
    tmp_path: Path,
) -> None:
    """A broadcast TLBI and a command to the same unit, sent by one coroutine."""
    found = explore(bare("E27", "btm-atc-before-dsb", 1), Options(schedules=SCHEDULES))
    first, again = tmp_path / "first", tmp_path / "again"
    first.mkdir()
    again.mkdir()
    outcome = record(found, first)
    replayed = replay(first, "simulator", again)
    assert replayed.status == "finished", replayed.detail
    assert len(replayed.violations) == len(outcome.violations) > 0


@pytest.mark.parametrize(("race", "kernel"), GOOD)
def test_a_good_kernel_is_held_and_says_how_surely(race: str, kernel: str) -> None:
    found = explore(bare(race, kernel, 1), Options(schedules=100))
    assert found.exit_code == 0, facts(found)
    assert found.entered >= 5
    verdict = found.verdict()
    assert verdict.outcome == "held"
    assert not verdict.how.exhaustive
    bounds = {bound.policy: bound for bound in found.bounds()}
    assert bounds["pos"].at_most == pytest.approx(3 / bounds["pos"].schedules)
    assert 0 < bounds["pct3"].finds < bounds["pct2"].finds < 1
    assert "not exhaustive" in result_dict(found)["headline"]


def test_the_recipe_is_only_injected_on_demand() -> None:
    race = find("E01")
    with_recipe = explore(race.run("v5.7", 1), Options("random", schedules=10, stop_on=""))
    assert with_recipe.expected == 10


def test_an_exploration_without_a_window_is_inconclusive() -> None:
    found = explore(bare("E01", "v6.6", 3), Options("random", schedules=20, deliveries_max=40))
    assert found.exit_code == 3
    assert found.verdict().reasons
    assert found.incomplete == 20


def test_a_sample_of_every_policy_is_signed() -> None:
    cycle = CYCLES["portfolio"]
    count = SIGN_EVERY * len(cycle)
    found = explore(bare("E08", "v6.2", 1), Options(schedules=count, stop_on=""))
    assert found.coverage.signed == len(cycle)
    assert {found.policies.policy(at) for at in range(0, count, SIGN_EVERY)} == set(cycle)
    assert 1 <= found.coverage.distinct <= len(cycle)


def test_seconds_bound_an_exploration() -> None:
    found = explore(bare("E01", "v6.6", 3), Options(seconds=0.2))
    assert found.schedules > 0
    assert found.seconds < 5


@pytest.mark.parametrize("strategy", CYCLES)
def test_the_same_seed_finds_the_same(strategy: str) -> None:
    def once() -> Exploration:
        return explore(bare("E08", "v6.6", 9), Options(strategy, schedules=24))

    assert result_dict(once()) == result_dict(once())


def test_the_command_prints_the_same_with_any_hash_seed(tmp_path: Path) -> None:
    results = []
    for hash_seed in ("1", "31337"):
        out = tmp_path / hash_seed
        command = [sys.executable, "launch.py", "explore", "E01", "--seed", "5", "--json"]
        done = subprocess.run(
            [*command, "--schedules", "200", "--out", str(out)],
            capture_output=True,
            text=True,
            timeout=120,
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        result = json.loads(done.stdout)
        assert result["repeat"].endswith(str(out))
        assert result["schedule"] == str(out / FILE)
        elsewhere = ("wall", "run_dir", "repeat", "schedule")
        results.append({k: v for k, v in result.items() if k not in elsewhere})
    assert results[0] == results[1]
    assert results[0]["explanation"]["necessary"]
    assert results[0]["minimized"]["after"]["deliveries"] < 200
    for file in ("schedule", FILE):
        first, second = ((tmp_path / name / file).read_bytes() for name in ("1", "31337"))
        assert first == second


def test_the_command_ends_with_the_explanation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["explore", "E08", "--seed", "2", "--out"]
    assert launch.main([*command, str(tmp_path / "told")]) == 1
    told = capsys.readouterr().out
    assert "The swap that decides" in told
    assert "BUG: mmu_notifier" not in told
    short = tmp_path / "told" / FILE
    assert str(short) in told
    case, target = read_case(short)
    assert target is not None
    assert play(case, How(target, strict=True)).found is not None
    assert launch.main([*command, str(tmp_path / "brief"), "--no-explain"]) == 1
    brief = capsys.readouterr().out
    assert "BUG: mmu_notifier" in brief
    assert "The swap that decides" not in brief
    assert not (tmp_path / "brief" / FILE).exists()


def test_an_interrupted_explanation_leaves_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmurace.explorer.explain.found.minimize_quickly", interrupt)
    assert launch.main(["explore", "E08", "--seed", "2", "--out", str(tmp_path / "a")]) == 1
    captured = capsys.readouterr()
    assert "no explanation" in captured.err
    assert "BUG: mmu_notifier" in captured.out


def test_an_exhaustive_search_ends_with_the_explanation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["explore", "E08", "--strategy", "dpor", "--schedules", "2000", "--json"]
    assert launch.main([*command, "--out", str(tmp_path / "found")]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["explanation"]["violation"]["rule"] in {"O", "S1", "S3"}


def test_everything_is_in_the_object_for_programs() -> None:
    found = explore(bare("E01", "v6.6", 2), Options(schedules=10))
    assert json.loads(json.dumps(exploration_dict(found)))["distinct_traces"] >= 1
