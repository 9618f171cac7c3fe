"""Deaths in schedules: left out where they are not needed, kept and explained where they are."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from mmurace.broker.follow import compare_runs
from mmurace.broker.programs import Program, Step
from mmurace.explorer.explain.deaths import fates
from mmurace.explorer.explain.why import Explanation, explain
from mmurace.explorer.run import session
from mmurace.explorer.run.replay import replay_file
from mmurace.explorer.run.schedule_file import SUFFIX, Loaded, load, read_case, schedule_text, write
from mmurace.explorer.shrink.case import Case, scripted
from mmurace.explorer.shrink.deaths import Death, moved_back
from mmurace.explorer.shrink.minimize import Minimized, minimize, minimize_quickly
from mmurace.explorer.shrink.play import How, play
from mmurace.explorer.shrink.smaller import keep_operations, smaller_worlds, with_order
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.secondaries.iommu_sva.messages import Dma, InvalidateRequest
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.iommu_sva.unit import Iommu
from mmurace.nodes.world import World
from mmurace.protocol.errors import ReplayDivergence, UserError
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.base import Ack, PeerGone
from mmurace.report import interleaving
from mmurace.report.minimizing import size_text
from mmurace.report.steps import text_of
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script
from tests import worlds
from tests.runs import change_by_hand, nothing_left_behind
from tests.test_kill import MEET, NOISE, config, kill, world_of

__all__ = ["nothing_left_behind"]


def deaf(seed: int, *rules: dict[str, Any]) -> RunSpec:
    """A run that violates something, whoever dies: nobody tells the IOMMU anything."""
    world = world_of("v6.2", ats=False, gather_calls_ir=False, end_calls_ir=False)
    return RunSpec("kill", world, seed, Script(worlds.small_programs()), config(*rules))


def unregistered(seed: int = 1) -> RunSpec:
    """A run in which a callback of a VM begins before the VM is destroyed, and ends after that."""
    world = world_of(unregister_waits=False)
    return RunSpec("kill", world, seed, Script(worlds.small_programs()), config(*MEET))


def simulated(spec: RunSpec, directory: Path) -> Loaded:
    """The case of a run in the simulator."""
    session.simulate(spec.save(directory), directory)
    return load(directory)


@cache
def needed() -> Minimized:
    """A violation that needs a death, cut down."""
    with TemporaryDirectory() as name:
        return minimize(simulated(unregistered(), Path(name)), search_runs=50)


@cache
def explanation() -> Explanation:
    """Why it happens."""
    found = needed()
    return explain(Loaded(found.case, found.target, found.played))


def saved(found: Minimized, directory: Path) -> Path:
    """Its schedule file."""
    path = directory / f"small{SUFFIX}"
    write(path, schedule_text(found.case, found.target))
    return path


# ---- not needed ----------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["device0", "vcpu0", "kvm0"])
@pytest.mark.parametrize("noise", [[], NOISE], ids=["quiet", "noise"])
def test_a_death_that_is_not_needed_goes(victim: str, noise: list[Any], tmp_path: Path) -> None:
    loaded = simulated(deaf(3, kill(victim, 122), *noise), tmp_path)
    assert [death.node for death in loaded.case.deaths] == [victim]
    found = minimize_quickly(loaded)
    assert (found.before.deaths, found.after.deaths) == (1, 0)
    assert found.case.deaths == ()
    assert play(found.case, How(found.target, strict=True)).found is not None


def test_a_death_with_which_the_run_ends_is_no_part_of_it(tmp_path: Path) -> None:
    loaded = simulated(deaf(0, kill("memory", 600)), tmp_path)
    assert loaded.case.deaths == ()
    assert minimize_quickly(loaded).after.deliveries < 200


def test_explain_says_that_a_death_is_not_necessary(tmp_path: Path) -> None:
    loaded = simulated(deaf(3, kill("kvm0", 122)), tmp_path)
    found = minimize_quickly(loaded)
    (after, *_) = found.case.order
    case = replace(found.case, spec=loaded.case.spec, deaths=(Death("kvm0", after),))
    played = play(case, How(found.target, keep=True))
    (fate,) = fates(case, found.target, played.moments)
    assert (fate.node, fate.necessary) == ("kvm0", False)
    assert fate.after is not None
    assert fate.after.name == after
    told = flat(replace(explanation(), deaths=[fate]))
    assert "The death of kvm0 after the start of" in told
    assert "is not necessary: left out, it fails all the same" in told


# ---- needed --------------------------------------------------------------------------------


def test_a_death_that_is_needed_stays() -> None:
    found = needed()
    assert found.target.rule == "S13"
    assert [death.node for death in found.case.deaths] == ["kvm0"]
    assert found.after.operations < found.before.operations
    assert found.after.deliveries < found.before.deliveries // 2
    assert "1 death" in size_text(found.after)
    assert not found.proof.shortest
    assert play(replace(found.case, deaths=()), How(found.target)).found is None
    again = play(found.case, How(found.target, strict=True))
    assert (again.order, again.deaths) == (found.case.order, found.case.deaths)


@pytest.mark.processes
def test_its_file_replays_everywhere(tmp_path: Path) -> None:
    path = saved(needed(), tmp_path)
    one, other = tmp_path / "simulator", tmp_path / "processes"
    one.mkdir()
    other.mkdir()
    here, there = replay_file(path, "simulator", one), replay_file(path, "processes", other)
    assert (here.status, there.status) == ("finished", "finished")
    assert {violation.rule for violation in here.violations} == {"S13"}
    assert there.verdict == here.verdict
    assert compare_runs(one, other) is None
    assert session.check(other).verdict == here.verdict


@pytest.mark.processes
def test_a_run_on_processes_is_cut_down(tmp_path: Path) -> None:
    """There a node that is to die still handles what it was given, while others go on."""
    spec = unregistered(2).save(tmp_path)
    assert session.run_on_processes(spec, tmp_path).detail == ""
    found = minimize_quickly(load(tmp_path))
    assert (found.target.rule, [d.node for d in found.case.deaths]) == ("S13", ["kvm0"])
    assert found.after.deliveries < found.before.deliveries // 2


def test_explain_says_that_it_is_necessary() -> None:
    told = explanation()
    (fate,) = told.deaths
    assert (fate.node, fate.necessary, fate.runs) == ("kvm0", True, 8)
    assert "The death of kvm0 before anything else is necessary: without it all of 8" in flat(told)
    assert interleaving.as_dict(told)["deaths"][0]["necessary"] is True
    assert len(interleaving.terminal(told).splitlines()) <= interleaving.LINES_MAX


def test_the_death_has_its_place_in_the_column_of_the_dead() -> None:
    rows = explanation().rows
    (row,) = [row for row in rows if row.party == "kvm0" and row.kind == "Killed"]
    assert text_of(row) == "killed: mmu_notifier_unregister"
    assert rows.index(row) < next(at for at, r in enumerate(rows) if text_of(r).startswith("rel"))
    titles = interleaving.titles(explanation(), rows)
    assert titles["cpu0"] == "cpu0 (mmu_notifier_unregister)"


def flat(told: Explanation) -> str:
    """An explanation without its line breaks."""
    return " ".join(interleaving.terminal(told).split())


# ---- a planted mistake ---------------------------------------------------------------------


async def gives_up_at_the_first_that_is_gone(unit: Iommu, message: Any, _: object) -> Ack:
    """A unit that passes an invalidation on to one device after the other, until one is gone."""
    request = InvalidateRequest(message.pasid, message.start, message.end)
    for name in unit.devices:
        (reply,) = await unit.port.settle([unit.port.post(name, request, f"{name}.atc")])
        if type(reply) is PeerGone:
            break
    return Ack()


def two_devices(seed: int) -> RunSpec:
    """Both use what a processor drops again and again; one of them is pulled out."""
    mm, page = worlds.MM, worlds.page
    unit = Unit("iommu0", ("device0", "device1"), (mm,), "cpu1", ats=True)
    world = World(kernel=preset("v6.6.5"), parts=(unit,), gather_batch=2)
    cpu0: list[op.Operation] = [op.Mmap(mm, 0, page(4), True, True)]
    cpu0 += [op.Touch(mm, page(i), True, 1) for i in range(4)]
    cpu0 += [op.MadviseDontneed(mm, page(i % 4), page(1)) for i in range(16)]
    dma = [Step(Dma(mm, page(i % 4), True, i), ("cpu0/4",)) for i in range(16)]
    programs = [Program("cpu0", "cpu0", [Step(o) for o in cpu0])]
    programs += [Program(device, device, dma) for device in unit.devices]
    return RunSpec("planted", world, seed, Script(tuple(programs)), config(kill("device0", 500)))


def test_a_unit_that_gives_up_at_a_dead_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session.simulate(two_devices(1)).violations == ()
    monkeypatch.setattr(Iommu, "atc_invalidate", gives_up_at_the_first_that_is_gone)
    found = minimize_quickly(simulated(two_devices(1), tmp_path))
    assert (found.target.role, found.target.cache) == ("device", "atc")
    assert [death.node for death in found.case.deaths] == ["device0"]
    told = explain(Loaded(found.case, found.target, found.played))
    assert [(fate.node, fate.necessary) for fate in told.deaths] == [("device0", True)]
    assert [text_of(row) for row in told.rows if row.party == "device0"] == [
        "killed: iommu_release_device"
    ]
    assert not any(cure.safe for cure in told.cures), "the device dies on every kernel"
    replayed = replay_file(saved(found, tmp_path), "simulator", made(tmp_path / "again"))
    assert replayed.status == "finished"
    assert found.target.rule in {violation.rule for violation in replayed.violations}


def made(directory: Path) -> Path:
    """A new directory."""
    directory.mkdir()
    return directory


# ---- places --------------------------------------------------------------------------------


def test_a_death_moves_back_to_what_is_kept() -> None:
    deaths = (Death("a", "three"), Death("b", "one"), Death("c"), Death("d", "elsewhere"))
    order = ("one", "two", "three", "four")
    there = moved_back(deaths, order, {"one", "two", "four"})
    assert [death.after for death in there] == ["two", "one", "", "elsewhere"]
    assert [death.after for death in moved_back(deaths, order, {"four"})][:3] == ["", "", ""]


def test_cutting_what_is_unrelated_leaves_a_death_in_its_place() -> None:
    loaded_case = Case(
        scripted(unregistered()),
        ("cpu1/0", "cpu0/0", "cpu1/1.PteLoad@memory", "cpu0/1", "kill-device0/0"),
        deaths=(Death("device0", "cpu0/1"), Death("vcpu0", "cpu1/1.PteLoad@memory")),
    )
    kept = {o for o in loaded_case.operations() if o.startswith("cpu1") and o != "cpu1/0"}
    cut = keep_operations(loaded_case, kept)
    assert cut.order == ("cpu1/0.PteLoad@memory", "kill-device0/0")
    assert {death.after for death in cut.deaths} == {"cpu1/0.PteLoad@memory"}
    assert {death.after for death in with_order(cut, cut.order[1:]).deaths} == {""}


def test_who_dies_is_no_spare_part() -> None:
    case = replace(needed().case, deaths=(Death("device0"), Death("kvm0")))
    case = replace(case, spec=replace(case.spec, world=world_of()))
    for smaller in smaller_worlds(case):
        assert {"device0", "kvm0"} <= set(smaller.spec.world.nodes())


def test_a_death_that_waits_in_vain_moves_back() -> None:
    found = needed()
    order = (*found.case.order[:5], "cpu1/9.PtlLock@memory:7", *found.case.order[5:])
    deaths = (Death("kvm0", "cpu1/9.PtlLock@memory:7"),)
    played = play(replace(found.case, order=order, deaths=deaths), How(found.target))
    assert played.found is not None
    assert played.deaths == (Death("kvm0", order[4]),)


# ---- files ---------------------------------------------------------------------------------


def test_a_file_says_who_dies_and_when(tmp_path: Path) -> None:
    found = needed()
    path = saved(found, tmp_path)
    case, target = read_case(path)
    assert (case.deaths, target) == (found.case.deaths, found.target)
    assert schedule_text(case, target) == path.read_text()
    assert "\nformat = 2\n" in path.read_text()
    assert load(path).played.deaths == found.case.deaths


def test_a_file_without_deaths_is_read_by_older_programs() -> None:
    assert "\nformat = 1\n" in schedule_text(replace(needed().case, deaths=()))


@pytest.mark.parametrize(
    ("death", "told"),
    [
        ('node = "cpu0"', "death[0].node: 'cpu0' cannot die (expected kvm0, vcpu0)"),
        ('node = "gpu0"', "death[0].node: 'gpu0' is not in this run (expected kvm0, vcpu0)"),
        ('node = "kvm0", after = "x/0"', "death[0].after: 'x/0' is not in the order"),
        ('node = "kvm0" }, { node = "kvm0"', "death[1].node: 'kvm0' dies twice"),
        ('node = "kvm0", at = 3', "unknown key 'at'"),
    ],
)
def test_wrong_deaths_are_refused(death: str, told: str, tmp_path: Path) -> None:
    path = saved(needed(), tmp_path)
    change_by_hand(path, '{ node = "kvm0", after = "" }', f"{{ {death} }}")
    with pytest.raises(UserError) as error:
        load(path)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("version", "told"), [(1, "1 has no deaths (expected 2)"), (3, "is 3 (expected 1 to 2)")]
)
def test_other_versions_are_refused(version: int, told: str, tmp_path: Path) -> None:
    path = saved(needed(), tmp_path)
    change_by_hand(path, "format = 2", f"format = {version}")
    with pytest.raises(UserError) as error:
        load(path)
    assert f"format: {told}" in str(error.value)


def test_a_file_without_its_death_no_longer_fits(tmp_path: Path) -> None:
    case = replace(needed().case, deaths=())
    path = tmp_path / f"lost{SUFFIX}"
    write(path, schedule_text(case, needed().target))
    with pytest.raises(ReplayDivergence, match="kill-vcpu0/0 is not deliverable"):
        play(read_case(path)[0], How(strict=True))
