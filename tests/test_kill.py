"""Kills: devices, vCPUs and VMs die at any delivery, and everybody else goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from mmurace import launch
from mmurace.broker.chaos import ChaosRules, parse_rules
from mmurace.broker.chaos_config import ChaosConfig, check_names
from mmurace.broker.exchange import Exchange
from mmurace.broker.gates import NEVER
from mmurace.broker.kills import Kills, death_of
from mmurace.broker.programs import Feeder, Program, Step
from mmurace.broker.recorder import broker_records, read_record
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.explorer.run import schedule_file, session
from mmurace.explorer.run.outcome import HELD, INCONCLUSIVE, Outcome
from mmurace.nodes.build import build_all
from mmurace.nodes.secondaries.iommu_sva.messages import DeviceRemove
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.kvm.messages import KvmAddMemslot, KvmDestroyVm, Sigkill
from mmurace.nodes.secondaries.ocxl.part import Link
from mmurace.nodes.world import World
from mmurace.oracle.oracle import Oracle
from mmurace.protocol.envelope import BROKER, Envelope, Handled
from mmurace.protocol.errors import UserError
from mmurace.protocol.messages import program as op
from mmurace.protocol.messages.base import Ack, PeerGone
from mmurace.protocol.messages.memory import CpumaskSet
from mmurace.protocol.trace import Ending
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.workloads import Script
from tests import worlds
from tests.runs import nothing_left_behind

__all__ = ["nothing_left_behind"]

MORTAL = ("device0", "vcpu0", "kvm0")
KERNELS = (("v6.6.5", "x86"), ("v6.6.5", "arm64"), ("v6.2", "x86"))
LENGTH = 1500
"""About so many deliveries has a run of the small programs."""
NOISE: list[dict[str, Any]] = [
    {"name": "late", "fault": "delay", "match": {}, "probability": 0.1},
    {"name": "lost", "fault": "drop", "match": {}, "probability": 0.08},
    {"name": "again", "fault": "duplicate", "match": {}, "probability": 0.08},
    {"name": "overtaken", "fault": "reorder", "match": {}, "probability": 0.1},
]
for rule in NOISE:
    rule["after"] = {"min": 1, "max": 40}
PAUSE = {
    "name": "pause", "fault": "pause_node", "match": {"dst": ["device0", "kvm0"]},
    "when": {"from_delivery": 100, "until_delivery": 150, "every": 200},
}  # fmt: skip


def kill(dst: str, at: int, **changes: Any) -> dict[str, Any]:
    """A rule that kills at one delivery."""
    rule = {"name": f"kill {dst}", "fault": "kill_node", "match": {"dst": dst}}
    return rule | {"when": {"from_delivery": at}} | changes


def config(*rules: dict[str, Any]) -> ChaosConfig:
    """Rules from tables."""
    return parse_rules({"schema": 1, "rule": list(rules)}, "chaos.toml")


def world_of(
    release: str = "v6.6.5", arch: str = "x86", ats: bool = True, **switches: Any
) -> World:
    """The small world; with ``ats`` its device has a cache of its own."""
    world = worlds.small_world(release, arch, **switches)
    unit = world.parts_of(Unit)[0]
    units = (Unit(unit.name, unit.devices, unit.mms, unit.iopf_cpu, ats, True),)
    return msgspec.structs.replace(world.with_parts(Unit, units), evict_one_in=20)


class Run:
    """The small programs under rules, with all that was delivered."""

    def __init__(self, world: World, seed: int, *rules: dict[str, Any]) -> None:
        self.exchange = Exchange(
            Feeder(worlds.small_programs(world.kernel.machine)),
            ChaosRules(config(*rules), seed, world),
        )
        self.oracle = Oracle(world)
        self.deliveries: list[tuple[int, Envelope]] = []
        drivers = build_all(world, seed)
        self.simulator = Simulator(
            drivers, self.exchange, RandomWalk(seed), self.observe, mourner=self.oracle.lost
        )
        self.ending: Ending = self.simulator.run(100_000)
        self.oracle.finish(self.ending, quiescent=not self.exchange.heads)

    def observe(self, envelope: Envelope, handled: Handled) -> None:
        """Look at a step."""
        self.oracle.observe(envelope, handled)
        self.deliveries.append((handled.n, envelope))

    def died(self, node: str) -> int:
        """The delivery after which a node was gone."""
        assert self.exchange.deaths is not None
        return self.exchange.deaths.dead[node]

    def check(self) -> None:
        """Everybody else went on, and nobody was harmed."""
        assert self.ending.complete, self.ending.waiting
        assert self.ending.waiting == ()
        assert self.exchange.counts.balance(self.exchange.pending) == 0
        assert [(v.rule, v.detail) for v in self.oracle.violations] == []


# ---- anybody, at any delivery --------------------------------------------------------------


@pytest.mark.parametrize("victim", MORTAL)
@pytest.mark.parametrize(("release", "arch"), KERNELS)
def test_everybody_else_goes_on(victim: str, release: str, arch: str) -> None:
    for seed in range(5):
        at = (seed * 311 + len(victim) * 53) % LENGTH
        run = Run(world_of(release, arch, ats=seed % 2 == 0), seed, kill(victim, at))
        run.check()
        died = run.died(victim)
        assert died >= at
        assert not [e.id for n, e in run.deliveries if n > died and e.dst == victim]


@pytest.mark.parametrize("victim", MORTAL)
def test_kills_go_together_with_every_other_fault(victim: str) -> None:
    for seed in range(3):
        at = (seed * 503 + len(victim) * 101) % (2 * LENGTH)
        run = Run(world_of(ats=seed != 1), seed, kill(victim, at), *NOISE, PAUSE)
        run.check()
        assert run.died(victim)


def test_all_of_them_in_one_run() -> None:
    kills = [kill(node, 300 + 100 * at) for at, node in enumerate(MORTAL)]
    run = Run(world_of(), 7, *kills)
    run.check()
    assert [run.died(node) > 0 for node in MORTAL] == [True] * 3
    done = {e.kind for n, e in run.deliveries if e.src == BROKER and n > run.died("kvm0")}
    assert done == {"Touch", "MigratePages"} or "Munmap" in done  # the processors go on


# ---- what the kernel does ------------------------------------------------------------------


def _first(run: Run, kind: str) -> int:
    return next(n for n, e in run.deliveries if e.kind == kind)


def test_a_device_is_gone_at_once_and_then_off_the_list_of_its_unit() -> None:
    run = Run(world_of(), 3, kill("device0", 700))
    run.check()
    assert run.died("device0") == 700
    detached = _first(run, "DetachDevice")
    later = [e.dst for n, e in run.deliveries if n > detached and e.kind == "InvalidateRequest"]
    assert (detached > 700, later) == (True, [])
    assert any(n > detached and e.kind == "AtcInvalidate" for n, e in run.deliveries)


SLOW_ACCESS = {
    "name": "slow", "fault": "delay", "after": {"min": 60, "max": 120},
    "match": {"src": "device0", "kind": ["FrameRead", "FrameWrite"]},
}  # fmt: skip


def test_an_invalidation_that_a_dead_device_was_given_completes() -> None:
    """Its own accesses are lost with its link, so nobody has to wait for them either."""
    never = Run(world_of(), 3, kill("device0", NEVER), SLOW_ACCESS)
    given = {e.id: n for n, e in never.deliveries if e.kind == "InvalidateRequest"}
    waits = [(given[e.id[:-1]], e) for _, e in never.deliveries if e.id[:-1] in given]
    at, late = next((n, reply) for n, reply in waits if reply.causes[-1] > n)
    run = Run(world_of(), 3, kill("device0", at), SLOW_ACCESS)
    run.check()
    (answer,) = [(n, e) for n, e in run.deliveries if e.id == late.id]
    assert (type(late.body), type(answer[1].body)) == (Ack, PeerGone)
    assert not [e for n, e in run.deliveries if n > at and e.src == "device0" and not e.is_reply]


SLOW_WALK = {
    "name": "slow", "fault": "delay", "after": {"min": 30, "max": 60},
    "match": {"dst": "iommu0", "kind": "PteWalk~"},
}  # fmt: skip


def test_what_its_unit_still_does_for_a_dead_device_is_no_breach() -> None:
    """The unit was walking for it, and fills its IOTLB when the walk comes back."""
    never = Run(world_of(ats=False), 3, kill("device0", NEVER), SLOW_WALK)
    walks = [n for n, e in never.deliveries if e.kind == "PteWalk" and e.src == "iommu0"]
    for at in walks[:3]:
        run = Run(world_of(ats=False), 3, kill("device0", at), SLOW_WALK)
        run.check()
        walked = [n for n, e in run.deliveries if e.kind == "PteWalk~" and e.dst == "iommu0"]
        assert max(walked) > run.died("device0")


def test_a_vcpu_dies_between_operations_and_leaves_its_mm() -> None:
    run = Run(world_of(), 3, kill("vcpu0", 700))
    run.check()
    died = run.died("vcpu0")
    assert _first(run, "Sigkill") > 700
    left = next(e.body for n, e in run.deliveries if e.kind == "CpumaskSet" and n > 700)
    assert left == CpumaskSet(worlds.MM, "vcpu0", False)
    assert died >= next(n for n, e in run.deliveries if e.id == "kill-vcpu0/0")
    assert not [e for n, e in run.deliveries if n > died and e.src == "vcpu0" and not e.is_reply]


def test_a_vm_dies_after_its_vcpus_and_after_every_callback_into_it() -> None:
    run = Run(world_of(), 3, kill("kvm0", 700))
    run.check()
    gone, deleted = run.died("kvm0"), _first(run, "NotifierDelete")
    assert run.died("vcpu0") <= gone
    synchronized = [n for n, e in run.deliveries if e.kind == "SynchronizeSrcu~"]
    assert deleted < min(synchronized) < max(synchronized) <= gone
    zapped = [n for n, e in run.deliveries if e.kind == "SpteClear" and e.id.startswith("kill-")]
    assert all(_first(run, "KvmDestroyVm") < n < deleted for n in zapped)


MEET = (
    kill("kvm0", 100),
    {
        "name": "destroyed while a callback is about to run", "fault": "hold",
        "match": {"kind": "KvmDestroyVm"},
        "until": {"kind": "NotifierList~", "dst": "cpu1", "operation": "cpu1/7"},
    },
    {
        "name": "which gets nowhere before that", "fault": "hold",
        "match": {"src": "cpu1", "dst": "kvm0", "operation": "cpu1/7"},
        "until": {"kind": "NotifierDelete~"},
    },
)  # fmt: skip


@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_a_vm_is_not_gone_while_it_is_called(arch: str) -> None:
    """What ``synchronize_srcu`` is for: where nobody waits for it, rule S13 says so."""
    for seed in range(3):
        run = Run(world_of("v6.6.5", arch), seed, *MEET)
        run.check()
        assert [reply for _, reply in run.deliveries if type(reply.body) is PeerGone]
        broken = Run(world_of("v6.6.5", arch, unregister_waits=False), seed, *MEET)
        assert broken.ending.complete
        assert {(v.rule, v.agent) for v in broken.oracle.violations} == {("S13", "kvm0")}


def test_a_system_call_on_a_dead_vm_fails() -> None:
    add = KvmAddMemslot("kvm0", 64, worlds.page(64), worlds.page(1))
    late = Program("late", "cpu1", [Step(add, ("cpu1/6",))])
    world = world_of()
    chaos = ChaosRules(config(kill("kvm0", 0)), 1, world)
    exchange = Exchange(Feeder((*worlds.small_programs(), late)), chaos)
    results: list[Any] = []

    def observe(_: Envelope, handled: Handled) -> None:
        results.extend(r for r in handled.records if getattr(r, "kind", "") == "KvmAddMemslot")

    ending = Simulator(build_all(world, 1), exchange, RandomWalk(1), observe).run(100_000)
    assert (ending.complete, ending.waiting) == (True, ())
    assert results[-1].result == -5


def test_who_waits_for_a_program_that_died_goes_on() -> None:
    world = world_of()
    touch = Step(op.Touch(worlds.MM, worlds.page(40), False), ("device0/7",))
    programs = (*worlds.small_programs(), Program("after", "cpu1", [touch]))
    exchange = Exchange(Feeder(programs), ChaosRules(config(kill("device0", 600)), 1, world))
    ending = Simulator(build_all(world, 1), exchange, RandomWalk(1)).run(100_000)
    assert (ending.complete, ending.waiting) == (True, ())


# ---- again ---------------------------------------------------------------------------------


def spec_of(seed: int, *rules: dict[str, Any], ats: bool = True) -> RunSpec:
    """The small programs as a run."""
    return RunSpec("kill", world_of(ats=ats), seed, Script(worlds.small_programs()), config(*rules))


def replayed(source: Path, on: Any, out: Path) -> Outcome:
    """The run again; whatever is wrong with it is in the outcome."""
    out.mkdir()
    return session.replay(source, on, out)


@pytest.mark.parametrize("victim", MORTAL)
@pytest.mark.parametrize("noise", [[], [*NOISE, PAUSE]], ids=["quiet", "noise"])
def test_a_run_with_a_death_replays(victim: str, noise: list[Any], tmp_path: Path) -> None:
    for seed in (2, 5):
        first = tmp_path / f"{seed}"
        first.mkdir()
        spec = spec_of(seed, kill(victim, 400 * seed % LENGTH), *noise, ats=seed == 2)
        one = session.simulate(spec.save(first), first)
        two = replayed(first, "simulator", tmp_path / f"{seed}-again")
        assert (one.exit_code, one.detail) == (HELD, "")
        assert (two.exit_code, two.detail) == (HELD, "")
        assert session.check(first).verdict == one.verdict
        record = read_record(first)
        assert [node for _, node in record.begun] == [victim]
        assert victim in [node for _, node in record.killed]


@pytest.mark.processes
@pytest.mark.parametrize("victim", MORTAL)
def test_on_processes_the_process_is_killed(victim: str, tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    spec = spec_of(4, kill(victim, 500), *NOISE, ats=victim != "kvm0")
    one = session.run_on_processes(spec.save(first), first)
    assert (one.exit_code, one.status, one.detail) == (HELD, "finished", "")
    deaths = [record[2] for record in broker_records(first) if record[0] == "killed"]
    assert victim in deaths
    two = replayed(first, "simulator", tmp_path / "second")
    assert (two.exit_code, two.detail) == (HELD, "")
    assert two.verdict == one.verdict
    if victim == "kvm0":  # with its vCPU: two processes
        again = replayed(first, "processes", tmp_path / "third")
        assert (again.exit_code, again.detail) == (HELD, "")


# ---- who cannot be done without --------------------------------------------------------------


@pytest.mark.parametrize("victim", ["memory", "cpu0", "iommu0"])
def test_without_them_the_run_ends(victim: str, tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    one = session.simulate(spec_of(1, kill(victim, 500)).save(first), first)
    assert (one.exit_code, one.status) == (INCONCLUSIVE, "finished")
    assert one.detail == f"chaos killed {victim} after delivery 500"
    assert one.ending.deliveries == 500
    two = replayed(first, "simulator", tmp_path / "second")
    assert (two.exit_code, two.detail) == (INCONCLUSIVE, one.detail)


@pytest.mark.processes
def test_memory_is_killed_on_processes_too(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    one = session.run_on_processes(spec_of(1, kill("memory", 500)).save(first), first)
    assert (one.exit_code, one.status) == (INCONCLUSIVE, "finished")
    assert one.detail.startswith("chaos killed memory after delivery ")
    two = replayed(first, "simulator", tmp_path / "second")
    assert (two.exit_code, two.detail) == (INCONCLUSIVE, one.detail)


# ---- rules ---------------------------------------------------------------------------------


def deaths_of(rule: dict[str, Any], seed: int, until: int = 5000) -> list[tuple[int, str]]:
    """Whom a rule kills, and when."""
    world = world_of()
    kills = Kills(config(rule).rule, seed, world)
    begun: list[str] = []
    found = []
    for number in range(until):
        for node in kills.begin(number, begun):
            begun.append(node)
            found.append((number, node))
    return found


def test_somebody_dies_once_in_each_window_and_nobody_twice() -> None:
    when = {"from_delivery": 100, "until_delivery": 200, "every": 1000}
    rule = kill("[dkv]*0", 0, when=when)
    found = deaths_of(rule, 3)
    assert sorted(node for _, node in found) == sorted(MORTAL)
    assert all(100 <= number % 1000 < 200 for number, _ in found)
    assert [number // 1000 for number, _ in found] == [0, 1, 2]
    assert found == deaths_of(rule, 3)
    assert {tuple(deaths_of(rule, seed)) for seed in range(5)} != {tuple(found)}


def test_probability_is_of_a_window_and_hits_max_of_all() -> None:
    when = {"from_delivery": 0, "until_delivery": 10, "every": 100}
    counts = [len(deaths_of(kill("device0", 0, when=when, probability=0.02), s)) for s in range(30)]
    assert 0 < sum(counts) < 30
    assert deaths_of(kill("*", 0, when=when, probability=0.0), 1) == []
    assert len(deaths_of(kill("*0", 0, when=when | {"hits_max": 2}), 1)) == 2


def test_a_rule_that_kills_nobody_is_reported() -> None:
    rules = ChaosRules(config(kill("device0", 1 << 40), kill("gpu*", 0)), 1, world_of())
    assert rules.unmatched() == ["kill device0", "kill gpu*"]


def test_what_dies_how() -> None:
    world = world_of()
    deaths = {node: death_of(node, world) for node in world.nodes()}
    assert [node for node, death in deaths.items() if death is None] == [
        "memory", "cpu0", "cpu1", "iommu0",
    ]  # fmt: skip
    assert [node for node, death in deaths.items() if death and death.at_once] == ["device0"]
    assert {node: [type(task.operation) for task in death.tasks] for node, death in deaths.items()
            if death} == {
        "device0": [DeviceRemove], "kvm0": [Sigkill, KvmDestroyVm], "vcpu0": [Sigkill],
    }  # fmt: skip
    links = world.with_parts(Link, (Link("ocxl0", (worlds.MM,), "cpu0"),))
    assert death_of("ocxl0", links) is None


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (kill("device0", 0, match={}), "rule[0].match: a kill_node is about a node"),
        (kill("device0", 0, match={"dst": "cpu0", "kind": "Dma"}), "rule[0].match: a kill_node"),
        (kill("device0", 0, match={"src": "cpu0"}), "rule[0].match: a kill_node is about a node"),
        (kill("device0", 0, after={"min": 1, "max": 2}), "rule[0].after: a kill_node has no delay"),
        (kill("device0", 0, until={"kind": "Dma"}), "rule[0].until: a kill_node has no event"),
        (kill("device0", 0, between=["a", "b"]), "rule[0].between: a kill_node has no two parts"),
    ],
)
def test_a_kill_is_about_a_node_and_a_time(rule: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        config(rule)
    assert told in str(caught.value)


def test_a_node_that_is_not_there_cannot_be_killed() -> None:
    with pytest.raises(UserError, match="this run has no node 'device7'"):
        check_names(config(kill("device7", 0)), world_of().nodes(), (), "chaos.toml")


def test_stress_refuses_to_kill_who_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chaos.toml"
    file.write_text(
        'schema = 1\n[[rule]]\nname = "r"\nfault = "kill_node"\nmatch = { dst = "device7" }\n'
    )
    assert launch.main(["stress", "--chaos", str(file), "--out", str(tmp_path / "run")]) == 2
    told = "rule[0].match.dst: this run has no node 'device7' (expected 'device0')"
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_with_a_death_is_a_case(tmp_path: Path) -> None:
    session.simulate(spec_of(1, kill("device0", 200)).save(tmp_path), tmp_path)
    case, played = schedule_file.case_of_run(tmp_path)
    assert [(death.node, played.order.index(death.after)) for death in case.deaths] == [
        ("device0", 199)
    ]
