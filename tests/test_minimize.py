"""Cutting schedules down, and schedules as files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mmurace import launch
from mmurace.broker.chaos import load_rules
from mmurace.explorer.run.replay import replay_file
from mmurace.explorer.run.schedule_file import SUFFIX, Loaded, load, read_case, schedule_text, write
from mmurace.explorer.run.session import simulate
from mmurace.explorer.shrink.case import Case, operation_in, scripted, switches, thread_of
from mmurace.explorer.shrink.minimize import (
    Minimized,
    Minimizer,
    Update,
    ddmin,
    joined_blocks,
    minimize,
    minimize_quickly,
)
from mmurace.explorer.shrink.play import How, play
from mmurace.explorer.shrink.shortest import shortest_by_states
from mmurace.explorer.shrink.smaller import keep_operations, smaller_worlds
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.kvm.part import Vm
from mmurace.protocol.errors import ReplayDivergence, UserError
from mmurace.scenarios.catalogue import find
from mmurace.scenarios.mixed import Mix, MixedOptions
from mmurace.scenarios.runs import mixed_run
from tests.minimal import EXAMPLES, minimized
from tests.runs import change_by_hand


@pytest.fixture(params=EXAMPLES, ids="-".join)
def small(request: pytest.FixtureRequest) -> Minimized:
    """A race of the catalogue, cut down."""
    return minimized(*request.param)


def saved(found: Minimized, directory: Path) -> Path:
    """Its schedule file."""
    path = directory / f"small{SUFFIX}"
    write(path, schedule_text(found.case, found.target))
    return path


def test_what_is_left_still_violates_the_same(small: Minimized) -> None:
    again = play(small.case, How(small.target, strict=True))
    assert again.found is not None
    assert again.order == small.case.order
    assert small.after.operations < small.before.operations
    assert small.after.deliveries < small.before.deliveries // 2
    assert small.after.switches <= 6
    assert not small.interrupted


def test_no_operation_can_be_left_out(small: Minimized) -> None:
    for gone in small.case.operations():
        cut = keep_operations(small.case, set(small.case.operations()) - {gone})
        for eager in (False, True):
            assert play(cut, How(small.target, eager=eager)).found is None, gone


def test_nothing_shorter_breaks_the_rule(small: Minimized) -> None:
    deliveries = len(small.case.order)
    proof = shortest_by_states(small.case, small.target, deliveries, 60.0)
    assert proof is not None
    assert proof.shortest
    assert shortest_by_states(small.case, small.target, deliveries + 1, 60.0) is None


def test_a_schedule_file_says_all(small: Minimized, tmp_path: Path) -> None:
    path = saved(small, tmp_path)
    case, target = read_case(path)
    assert target == small.target
    assert case.order == small.case.order
    assert case.programs == small.case.programs
    assert case.spec.world == small.case.spec.world
    assert schedule_text(case, target) == path.read_text()
    assert load(path).played.order == small.case.order


@pytest.mark.processes
def test_a_schedule_file_replays_everywhere(small: Minimized, tmp_path: Path) -> None:
    path = saved(small, tmp_path)
    for on in ("simulator", "processes"):
        out = tmp_path / on
        out.mkdir()
        outcome = replay_file(path, on, out)
        assert outcome.status == "finished", outcome.detail
        assert small.target.rule in {violation.rule for violation in outcome.violations}


def test_a_schedule_that_no_longer_fits_says_where(small: Minimized, tmp_path: Path) -> None:
    at = len(small.case.order) // 2
    order = (*small.case.order[:at], "cpu0/99.PtlLock@memory:3", *small.case.order[at:])
    path = tmp_path / f"wrong{SUFFIX}"
    write(path, schedule_text(replace(small.case, order=order), small.target))
    with pytest.raises(ReplayDivergence) as divergence:
        play(read_case(path)[0], How(strict=True))
    error = divergence.value
    assert (error.node, error.delivery, error.field) == ("memory", at + 1, "id")
    assert "cpu0/99.PtlLock@memory:3" in error.detail
    out = tmp_path / "out"
    out.mkdir()
    assert replay_file(path, "simulator", out).exit_code == 4
    loaded = load(path)  # to explain and minimise it is enough that the violation is there
    assert loaded.diverged
    assert loaded.played.found is not None


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("format = 1", "format = 3", "format"),
        ("format = 1", "format = 1\nextra = 1", "unknown key 'extra'"),
        ("order = '''\n", "order = '''\ncpu0/0\ncpu0/0\n", "twice"),
        ('arch = "x86"', 'arch = "sparc"', "run"),
        ("[run]", "[run", "TOML"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, old: str, new: str, where: str) -> None:
    path = saved(minimized(*EXAMPLES[0]), tmp_path)
    change_by_hand(path, old, new)
    with pytest.raises((UserError, ReplayDivergence)) as error:
        load(path)
    assert where in str(error.value) or isinstance(error.value, ReplayDivergence)


def test_a_run_without_a_violation_is_refused(tmp_path: Path) -> None:
    simulate(find(EXAMPLES[0][0]).run("v6.6", 1).save(tmp_path), tmp_path)
    with pytest.raises(UserError, match="violates nothing"):
        load(tmp_path)


@pytest.fixture(scope="module")
def stressed(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A long, lossy run of the mixed workload on a kernel that forgets the secondaries."""
    directory = tmp_path_factory.mktemp("stress")
    kernel = preset("v6.2", "x86", {"gather_calls_ir": False, "end_calls_ir": False})
    options = MixedOptions(mix=Mix(brk=0))  # the heap stays where it is, the arena can be moved
    spec = mixed_run(kernel, 5, options, operations_max=120).save(directory)
    simulate(spec, directory)
    return load(directory)


def test_a_long_run_becomes_short(stressed: Loaded) -> None:
    assert len(stressed.played.order) >= 2_000
    updates: list[Update] = []
    found = minimize(stressed, updates.append, search_runs=0)
    assert found.seconds < 60
    assert found.after.deliveries < 200
    assert found.after.operations <= 5
    assert stressed.case.spec.world.levels == 4
    assert found.case.spec.world.levels == 2, "addresses moved down to where two levels suffice"
    assert updates[0].phase == "causal cut"
    assert updates[-1].size == found.after


def test_what_is_interrupted_keeps_the_best(stressed: Loaded) -> None:
    def interrupt(update: Update) -> None:
        if update.phase == "operations":
            raise KeyboardInterrupt

    found = minimize(stressed, interrupt)
    assert found.interrupted
    assert found.after.operations < found.before.operations
    assert play(found.case, How(found.target, strict=True)).found is not None


@pytest.fixture(scope="module")
def lossy(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """The same under loss and repetition."""
    directory = tmp_path_factory.mktemp("lossy")
    kernel = preset("v6.2", "x86", {"gather_calls_ir": False, "end_calls_ir": False})
    spec = mixed_run(kernel, 5, chaos=load_rules("lossy"), operations_max=60)
    simulate(spec.save(directory), directory)
    return load(directory)


def test_faults_that_are_not_needed_go(lossy: Loaded) -> None:
    assert {"drop", "duplicate"} <= set(lossy.case.faults.values())
    found = minimize_quickly(lossy)
    assert found.before.faults > 50
    assert found.after.faults == 0
    played = play(found.case, How(found.target, strict=True))
    assert played.found is not None
    assert played.order == found.case.order


def test_the_one_fault_that_is_needed_stays(lossy: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = sorted(lossy.case.faults)[7]
    minimizer = Minimizer(lossy, None, 60.0)

    def try_it(candidate: Case, *_: object) -> bool:
        fails = needed in candidate.faults
        minimizer.case = candidate if fails else minimizer.case
        return fails

    monkeypatch.setattr(minimizer, "_try", try_it)
    minimizer._faults()
    assert set(minimizer.case.faults) == {needed}


def test_a_vm_that_an_operation_names_is_no_spare_part() -> None:
    race = find("E12m")
    case = Case(scripted(race.run("no-wait")))
    alone = keep_operations(case, {op for op, kind in case.kinds().items() if "Memslot" in kind})
    assert alone.operations()
    assert all(smaller.spec.world.parts_of(Vm) for smaller in smaller_worlds(alone))


# ---- the pieces --------------------------------------------------------------------------------


def test_ddmin_finds_what_is_needed() -> None:
    asked: list[list[int]] = []

    def fails(items: list[int]) -> bool:
        asked.append(items)
        return {3, 7} <= set(items)

    assert ddmin(range(20), fails) == [3, 7]
    assert len(asked) < 60


def test_leaving_operations_out_renames_the_rest() -> None:
    case = Case(
        scripted(find(EXAMPLES[0][0]).run("v5.7")),
        ("cpu0/0", "cpu0/2.PtlLock@memory~", "cpu0/1", "vcpu0/0.FlushTlbIpi@cpu0"),
        {"cpu0/2.Touch@x/0/evict": 0, "cpu0/2/1/evict": 1, "cpu0/1/0/evict": 1},
        {("cpu0/2.PtlLock@memory~", 0): "drop", ("cpu0/1", 0): "duplicate"},
    )
    keep = [op for op in case.operations() if op != "cpu0/1"]
    cut = keep_operations(case, keep)
    assert len(cut.operations()) == len(case.operations()) - 1
    assert cut.order == ("cpu0/0", "cpu0/1.PtlLock@memory~", "vcpu0/0.FlushTlbIpi@cpu0")
    assert cut.choices == {"cpu0/1.Touch@x/0/evict": 0, "cpu0/1/1/evict": 1}
    assert cut.faults == {("cpu0/1.PtlLock@memory~", 0): "drop"}


def test_names_say_whose_they_are() -> None:
    assert operation_in("cpu0/4.PtlLock@memory:2~#1") == "cpu0/4"
    assert thread_of("cpu0/4~") == "cpu0"
    order = ("a/0", "a/0.X@m", "b/0", "a/1")
    assert switches(order) == 2
    assert ("a/0", "a/0.X@m", "a/1", "b/0") in set(joined_blocks(order))


# ---- the commands ------------------------------------------------------------------------------


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(minimized(*EXAMPLES[1]), tmp_path)
    assert launch.main(["minimize", str(path), "--search", "3", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert Path(told["schedule"]).name == f"small-min{SUFFIX}"
    assert told["after"]["deliveries"] <= told["before"]["deliveries"]
    assert launch.main(["explain", told["schedule"], "--format", "markdown"]) == 1
    assert "```" in capsys.readouterr().out
    assert launch.main(["explain", told["schedule"], "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["cures"]
    out = str(tmp_path / "again")
    assert launch.main(["replay", told["schedule"], "--on", "simulator", "--out", out]) == 1
    capsys.readouterr()
    assert launch.main(["minimize", str(path), "--rule", "S9"]) == 2
    assert "S9" in capsys.readouterr().err
    assert launch.main(["explain", str(tmp_path)]) == 2
