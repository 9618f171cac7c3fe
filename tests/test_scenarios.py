"""The catalogue's loader, run files, and what a wrong file is told."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from msgspec.structs import fields

from mmurace.broker.chaos import ChaosRules, load_rules
from mmurace.broker.exchange import Exchange
from mmurace.broker.programs import Feeder
from mmurace.broker.schedules import RandomWalk
from mmurace.broker.simulator import Simulator
from mmurace.nodes.build import build_all
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.world import World
from mmurace.oracle.oracle import Oracle
from mmurace.oracle.verdict import Verdict
from mmurace.protocol.errors import UserError
from mmurace.protocol.records import Record
from mmurace.scenarios import catalogue
from mmurace.scenarios.mixed import Mixed, MixedOptions
from mmurace.scenarios.runs import mixed_run, strace_run
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.strace import StraceLog
from mmurace.scenarios.tables import parse_toml, toml_text
from mmurace.scenarios.worlds import WorldTable

DATA = Path(__file__).parent / "data"
RACES = catalogue.load_all()


def records_of(spec: RunSpec, deliveries_max: int | None = None) -> tuple[list[Record], bool]:
    """All records of a simulated run, and whether it ran to its end."""
    found: list[Record] = []
    chaos = ChaosRules(spec.chaos, spec.seed) if spec.chaos else None
    exchange = Exchange(Feeder(spec.programs(), spec.operations_max), chaos)
    drivers = build_all(spec.world, spec.seed)
    simulator = Simulator(
        drivers, exchange, RandomWalk(spec.seed), lambda _, handled: found.extend(handled.records)
    )
    return found, simulator.run(deliveries_max).complete


def verdict_of(spec: RunSpec) -> Verdict:
    """What the oracle says of a simulated run."""
    oracle = Oracle(spec.world, spec.sometimes)
    chaos = ChaosRules(spec.chaos, spec.seed) if spec.chaos else None
    exchange = Exchange(Feeder(spec.programs(), spec.operations_max), chaos)
    drivers = build_all(spec.world, spec.seed)
    ending = Simulator(drivers, exchange, RandomWalk(spec.seed), oracle.observe).run()
    oracle.finish(ending)
    return oracle.verdict(ending)


# ---- the catalogue -----------------------------------------------------------------------------


@pytest.mark.parametrize("race", RACES.values(), ids=RACES)
def test_every_race_runs_to_its_end_on_every_kernel(race: catalogue.Race) -> None:
    for case in race.kernels:
        records, complete = records_of(race.run(case.name, seed=3))
        # Who waits for a count that a lost start has made negative waits for ever (S10), too.
        assert complete or case.expect.rule in ("L3", "S10"), case.name
        assert records


@pytest.mark.parametrize("race", RACES.values(), ids=RACES)
def test_every_race_has_both_verdicts(race: catalogue.Race) -> None:
    assert {case.expect.verdict for case in race.kernels} == {"violated", "held"}
    for case in race.kernels:
        assert (case.expect.rule != "") == (case.expect.verdict == "violated")


CASES = [(race, case.name) for race in RACES.values() for case in race.kernels]


@pytest.mark.parametrize(("race", "kernel"), CASES, ids=[f"{r.id}-{k}" for r, k in CASES])
def test_the_recipe_of_a_race_gives_its_verdict_on_every_kernel(
    race: catalogue.Race, kernel: str
) -> None:
    for seed in range(5):
        spec = race.run(kernel, seed)
        assert spec.expectation is not None
        expected = spec.expectation.expected()
        verdict = verdict_of(spec)
        assert verdict.outcome == spec.expectation.verdict, verdict.reasons
        if expected is not None:
            assert any(expected.matches(violation) for violation in verdict.violations)


def test_a_race_is_found_by_id_and_by_name() -> None:
    assert catalogue.find("e08") is not None
    assert catalogue.find("kvm-apic-reload-vs-range").id == "E01"
    assert catalogue.find(str(RACE)).id == "E08"
    with pytest.raises(UserError, match=r"^scenario: unknown scenario 'E99' \(.* perhaps E"):
        catalogue.find("E99")


RACE = Path(__file__).parent / "data" / "race.toml"
WRONG = [
    ('id = "E08"', 'id = "E08"\ncolour = 1', "race.toml: unknown key 'colour' (expected one of id, "
     "name, title, family, source, story, world, program, kernel, chaos, sometimes, scope)"),
    ('id = "E08"', "", "race.toml: missing key 'id'"),
    ('id = "E08"', "id = 8", "race.toml: id: is int (expected str)"),
    ('op = "munmap"', 'op = "munmapp"', "race.toml: program[0].steps[5].op: unknown op 'munmapp' "
     "(expected perhaps munmap, "),
    ('op = "munmap"', 'op = "dma"', "race.toml: program[0].steps[5]: unknown key 'pages' "
     "(expected one of op, mm, after, repeat, address, write, value)"),
    ('{ op = "munmap", address = 0x10000', '{ op = "munmap", address = 0x10001',
     "race.toml: program[0].steps[5].address: is not page aligned (expected a multiple of 0x1000)"),
    ('{ op = "munmap", address = 0x10000', '{ op = "munmap", address = 0x40000',
     "race.toml: program[0].steps[5].address: ends at 0x44000 (expected at most 0x40000)"),
    ('op = "munmap", address = 0x10000, pages = 4', 'op = "kswapd"',
     "race.toml: program[0].steps[5]: missing key 'pages'"),
    ('op = "munmap"', 'repeat = 0, op = "munmap"',
     "race.toml: program[0].steps[5].repeat: expected `int` >= 1"),
    ('after = ["device0/0", "cpu1/1"]', 'after = ["device0/9"]',
     "race.toml: program[0].steps[5].after: unknown operation 'device0/9' "
     "(expected program/index)"),
    ('after = ["device0/0", "cpu1/1"]', 'after = ["cpu1/3", "device0/1"]', ""),
    ('after = ["device0/0", "cpu1/1"]', 'after = ["cpu1/3", "device0/2"]',
     "race.toml: sometimes[1]: this can never be met: each Dma of device0 is over before a Munmap "
     "begins, or begins after it (expected two that nothing puts in order)"),
    ('after = ["cpu0/4"] },\n  { op = "touch", address = 0x20000', 'after = ["cpu0/5"] },\n  '
     '{ op = "touch", address = 0x20000', "race.toml: program: cpu0/5, cpu1/0 wait for each other "
     "(expected an order without cycles)"),
    ('node = "device0"', 'node = "device7"', "race.toml: program[2].node: unknown node 'device7' "
     "(expected one of memory, cpu0, cpu1, iommu0, device0)"),
    ('node = "device0"', 'node = "cpu1"\nname = "x"',
     "race.toml: program[2].steps[0].op: cpu1 cannot do 'dma' "
     "(expected an operation of that node)"),
    ('release = "v6.6.5"', 'release = "v9.9"',
     "race.toml: kernel[2]: unknown kernel 'v9.9': newer than v7."),
    ('verdict = "held"', 'verdict = "fine"',
     "race.toml: kernel[1].expect.verdict: invalid enum value 'fine' (expected one of held, "),
    ('rule = "S1"', 'rule = "S99"', "race.toml: kernel[0].expect.rule: no rule 'S99' (expected "),
    ('cache = "iotlb"\nmm', 'cache = "iotbl"\nmm',
     "race.toml: kernel[0].expect.cache: unknown name 'iotbl' (expected one of tlb, "),
    ('agent = "iommu0"\ncache', 'agent = "iommu7"\ncache',
     "race.toml: kernel[0].expect.agent: unknown name 'iommu7' (expected one of memory, "),
    ('kind = "between"\nnode = "device0"', 'kind = "between"\nnode = "device7"',
     "race.toml: sometimes[1].node: unknown name 'device7' (expected one of memory, "),
    ("[[sometimes]]", '[[sometimes]]\nkind = "frames_reused"\nat_least = 0\n[[sometimes]]',
     "race.toml: sometimes[0].at_least: is 0 (expected 1 or more)"),
    ("set = { ", 'set = { sva_decoder = "bad", ',
     "race.toml: kernel[0].set.sva_decoder: invalid enum value 'bad' (expected one of exact, "),
    ("value = 0x10 ", "value = 0x8000000000000000 ",
     "race.toml: program[0].steps[1].value: expected `int` <= 9223372036854775807"),
    ('cpus = ["cpu0"', 'cpus = ["../cpu0"',
     "race.toml: world: a node cannot be called '../cpu0' (expected [A-Za-z0-9]"),
    ("frames = 32", "frames = 1", "race.toml: world.frames: is 1, too few for the zero page and "),
    ("set = { ", "set = { apic_reload = 7, ",
     "race.toml: kernel[0].set.apic_reload: is int (expected str)"),
    ("frames = 32", "frames = 10_000_000", "race.toml: world.frames: expected `int` <= 1048576"),
    ("frames = 32", "frames = 32\nevict_one_in = -1",
     "race.toml: world.evict_one_in: expected `int` >= 0"),
    ('iopf_cpu = "cpu1"', 'iopf_cpu = "cpu9"',
     "race.toml: world.units[0].iopf_cpu: unknown name 'cpu9' (expected one of cpu0, cpu1)"),
    ("entries = 8", "entries = 7", "race.toml: world.entries: is 7 (expected a power of two)"),
    ("frames = 32", "frames = 0", "race.toml: world.frames: expected `int` >= 1"),
    ('kind = "Touch"', 'knd = "Touch"', "race.toml: chaos.rule[0].match.knd: unknown key "
     "(expected 'kind')"),
    ('operation = "cpu1/2", kind = "Touch"', 'operation = "cpu7/2", kind = "Touch"',
     "race.toml: chaos.rule[0].match.operation: this run has no program 'cpu7' "
     "(expected 'cpu1' or 'cpu0')"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), WRONG)
def test_a_wrong_file_is_told_in_one_exact_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = RACE.read_text()
    assert old in text
    path = tmp_path / "race.toml"
    path.write_text(text.replace(old, new, 1))
    if not message:
        catalogue.load_race(path, "race.toml")
        return
    with pytest.raises(UserError) as caught:
        catalogue.load_race(path, "race.toml")
    assert str(caught.value).startswith(message)  # a list of what exists may grow


def test_a_file_that_is_no_toml_or_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^gone\.toml: cannot be read: No such file"):
        catalogue.load_race(tmp_path / "gone.toml", "gone.toml")
    (tmp_path / "broken.toml").write_text("id = ")
    with pytest.raises(UserError, match=r"^broken\.toml: is not TOML: Invalid value"):
        catalogue.load_race(tmp_path / "broken.toml", "broken.toml")
    (tmp_path / "latin.toml").write_bytes(b'id = "\xff"')
    with pytest.raises(UserError, match=r"^latin\.toml: is not UTF-8 at byte 6"):
        catalogue.load_race(tmp_path / "latin.toml", "latin.toml")


def test_an_unknown_switch_is_named_with_its_kernel(tmp_path: Path) -> None:
    path = tmp_path / "race.toml"
    path.write_text(RACE.read_text().replace("gather_calls_ir =", "gather_call_ir ="))
    with pytest.raises(
        UserError, match=r"^race\.toml: kernel\[0\]\.set: unknown switch 'gather_call_"
    ):
        catalogue.load_race(path, "race.toml")


def test_an_unknown_kernel_of_a_race_is_told_which_there_are() -> None:
    with pytest.raises(UserError, match=r"^--kernel: E01 has no kernel 'v1' \(expected one of v5"):
        RACES["E01"].kernel_case("v1")


def test_a_world_file_can_say_all_that_a_world_has() -> None:
    said = {field.name: field.default for field in fields(WorldTable)}
    assert said == {f.name: f.default for f in fields(World) if f.name not in ("kernel", "parts")}


# ---- run.toml ----------------------------------------------------------------------------------


def specs() -> list[RunSpec]:
    """One spec of every kind of workload."""
    kernel = preset("v6.6.5")
    lossy = load_rules("lossy")
    return [
        RACES["E08"].run("v6.2-end-only", seed=7),
        RACES["E01"].run("v5.7", seed=1 << 40),
        mixed_run(kernel, 5, MixedOptions(cpus=3, slots=4), lossy, operations_max=100),
        strace_run(DATA / "numpy.strace", kernel, 9, chaos=lossy),
    ]


@pytest.mark.parametrize("number", range(4))
def test_a_run_directory_gives_the_same_run_again(tmp_path: Path, number: int) -> None:
    spec = specs()[number]
    saved = spec.save(tmp_path)
    again = RunSpec.load(tmp_path)
    assert again == saved
    assert again.to_toml(tmp_path) == saved.to_toml(tmp_path)
    assert (again.world, again.seed, again.chaos) == (spec.world, spec.seed, spec.chaos)
    if not isinstance(spec.workload, Mixed):
        assert again.programs() == spec.programs()
    pickle.loads(pickle.dumps(again.programs()))


def test_a_run_directory_is_self_contained_and_may_move(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    spec = strace_run(DATA / "numpy.strace", preset("v6.6.5"), 9)
    spec.save(here)
    assert str(DATA) not in (here / "run.toml").read_text()
    here.rename(there)
    moved = RunSpec.load(there)
    assert isinstance(moved.workload, StraceLog)
    assert moved.workload.path.parent == there
    assert moved.programs() == spec.programs()
    assert moved.save(there) == moved


def test_a_wrong_run_file_names_the_key(tmp_path: Path) -> None:
    spec = mixed_run(preset("v6.6.5"))
    text = spec.to_toml(tmp_path)
    for old, new, message in (
        ("schema = 1", "schema = 2", "r: schema: is 2 (expected 1)"),
        ('kind = "mixed"', 'kind = "mixt"',
         "r: workload.kind: is 'mixt' (expected one of script, mixed, strace)"),
        ("btm = false", "btm = 3", "r: world.kernel.switches.btm: is int (expected bool)"),
        ("munmap = 8", "munmap = -8", "r: workload.mix.munmap: expected `int` >= 0"),
        ("seed = 0", "", "r: missing key 'seed'"),
    ):  # fmt: skip
        assert old in text
        with pytest.raises(UserError) as caught:
            RunSpec.from_toml(text.replace(old, new), "r", tmp_path)
        assert str(caught.value) == message


def test_the_writer_escapes_whatever_a_string_holds() -> None:
    table = {
        "plain": 'a "quoted" \\ back\nslash\ttab\x00\x1f\x7f é ☃',
        "odd key": {"a.b": 1, "": "", "address": 4096, "list": [True, "x", []]},
        "rows": [{"n": 1, "deep": {"x": [1, 2]}}, {"n": 2, "deep": {}}],
        "flat": [{"a": 1}, {"a": 2}],
        "none": [],
    }
    assert parse_toml(toml_text(table), "t") == table
    assert "address = 0x1000" in toml_text(table)


def test_a_repeated_step_is_so_many_steps() -> None:
    race = catalogue.find("E27")
    device = next(p for p in race.programs if p.node == "device0")
    assert [step.after for step in device.steps] == [
        ("cpu0/2",),
        *[()] * 22,
        ("cpu1/0",),
        ("cpu1/1",),
    ]
