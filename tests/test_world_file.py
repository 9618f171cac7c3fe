"""``stress --world``: what the file says reaches the run, and what is wrong is refused by place."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmurace import launch
from mmurace.explorer.run import session
from mmurace.nodes.secondaries import BUILT_IN
from mmurace.nodes.secondaries.iommu_sva.part import Unit
from mmurace.nodes.secondaries.iommu_sva.variant import SvaSwitches
from mmurace.nodes.secondaries.ocxl.part import Link
from mmurace.nodes.secondary import by_node_order, of
from mmurace.protocol.errors import UserError
from mmurace.report.commands import values
from mmurace.scenarios.runs import workload_run
from mmurace.scenarios.spec import RunSpec
from mmurace.scenarios.world_file import WorldFile, load_world, worlds

LOG = Path(__file__).parent / "data" / "numpy.strace"
WHOLE = """
schema = 1

[kernel]
release = "v6.2"
arch = "arm64"
set = { btm = true }

[nodes]
cpus = 3
iommus = 2
devices = 3
ats = true
vms = 2
vcpus = 3

[sizes]
frames = 300
gather_batch = 4
tlb_entries = 16
evict_one_in = 20

[mixed]
slots = 4
pages = 2
mix = { touch = 40, munmap = 20, migrate = 5 }
"""


def load(path: Path, text: str) -> WorldFile:
    """The file of a text."""
    file = path / "world.toml"
    file.write_text(text)
    return load_world(file)


def test_a_whole_file_makes_that_world_and_runs(tmp_path: Path) -> None:
    file = load(tmp_path, WHOLE)
    spec = workload_run("mixed", file.kernel_of(), 3, operations_max=900, file=file)
    world = spec.world
    assert (world.kernel.release, world.kernel.machine, SvaSwitches.of(world.kernel).btm) == (
        "v6.2",
        "arm64",
        True,
    )
    assert world.nodes() == (
        "memory", "cpu0", "cpu1", "cpu2", "iommu0", "device0", "device2", "iommu1", "device1",
        "kvm0", "vcpu0", "vcpu2", "kvm1", "vcpu1",
    )  # fmt: skip
    assert [unit.ats for unit in world.parts_of(Unit)] == [True, True]
    assert (world.frames, world.gather_batch, world.tlb_entries) == (300, 4, 16)
    saved = spec.save(tmp_path)
    assert RunSpec.load(tmp_path).world == saved.world == world
    assert RunSpec.load(tmp_path).programs() == spec.programs()
    outcome = session.simulate(saved)
    assert outcome.ending.complete
    assert {o.split("/")[0] for o in outcome.operations} >= {"Dma", "GuestTouch", "Munmap"}


@pytest.mark.parametrize("name", worlds())
@pytest.mark.parametrize(("release", "arch"), [("v6.6.5", "x86"), ("v6.6.88", "arm64")])
def test_the_worlds_that_come_along_have_all_nodes_and_break_nothing(
    name: str, release: str, arch: str
) -> None:
    file = load_world(Path(name))
    spec = workload_run("mixed", file.kernel_of(release, arch), 1, operations_max=1500, file=file)
    there = {part.key for part in by_node_order() if arch in part.machines and part in BUILT_IN}
    assert {of(part).key for part in spec.world.parts} == there
    assert not session.simulate(spec).violations


def test_on_ppc_a_world_that_comes_along_has_links() -> None:
    file = load_world(Path("machine"))
    world = workload_run("mixed", file.kernel_of("v6.2", "ppc"), 0, file=file).world
    assert len(world.parts_of(Link)) == 3


def test_a_world_that_does_not_come_along_is_refused() -> None:
    with pytest.raises(UserError, match=r"no such world .expected a file, or everything or"):
        load_world(Path("nothing"))


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = load(tmp_path, WHOLE)
    kernel = values.kernel_from(file, "v5.8", "", ["btm=false"], [])
    assert (kernel.release, kernel.machine, SvaSwitches.of(kernel).btm) == ("v5.8", "arm64", False)
    plain = values.kernel_from(WorldFile(), "", "", [], [])
    assert (plain.release, plain.machine) == ("v6.6.5", "x86")


def test_a_driver_is_named_by_file_or_option(tmp_path: Path) -> None:
    file = load(tmp_path, 'schema = 1\n[kernel]\ndrivers = ["amd-iommu"]\n')
    assert file.kernel_of("v5.10").profiles == ("dmirror", "amd-iommu", "kvm-x86")
    assert file.kernel_of("v5.10", drivers=["vt-d"]).profiles == ("dmirror", "vt-d", "kvm-x86")
    with pytest.raises(UserError, match=r"kernel.drivers: no driver 'smmu' on x86"):
        load(tmp_path, 'schema = 1\n[kernel]\ndrivers = ["smmu"]\n')


def test_no_devices_and_no_vcpus_means_no_iommu_and_no_vm(tmp_path: Path) -> None:
    file = load(tmp_path, "schema = 1\n[nodes]\ncpus = 1\ndevices = 0\nvcpus = 0\n")
    world = workload_run("mixed", file.kernel_of(), 0, file=file).world
    assert world.nodes() == ("memory", "cpu0")


def test_on_ppc_there_are_links_in_place_of_iommus(tmp_path: Path) -> None:
    text = 'schema = 1\n[kernel]\nrelease = "v5.10"\narch = "ppc"\n[nodes]\ndevices = 2\n'
    for more, links in (("", ("link0", "link1")), ("links = 1\n", ("link0",))):
        file = load(tmp_path, text + more)
        world = workload_run("mixed", file.kernel_of(), 0, file=file).world
        assert world.nodes()[-len(links) :] == links
        assert not world.parts_of(Unit)
    log = workload_run(str(LOG), file.kernel_of(), 0, file=load(tmp_path, text.partition("[n")[0]))
    assert [link.name for link in log.world.parts_of(Link)] == ["device0"]
    assert not log.world.parts_of(Unit)


def test_a_log_takes_the_kernel_the_cpus_and_the_sizes(tmp_path: Path) -> None:
    text = 'schema = 1\n[kernel]\nrelease = "v5.8"\n[nodes]\ncpus = 3\n[sizes]\nframes = 5000\n'
    file = load(tmp_path, text)
    spec = workload_run(str(LOG), file.kernel_of(), 0, file=file)
    assert (spec.world.cpus, spec.world.frames) == (("cpu0", "cpu1", "cpu2"), 5000)
    assert spec.world.kernel.release == "v5.8"
    assert {program.node for program in spec.programs()} <= set(spec.world.nodes())


@pytest.mark.parametrize("text", ["[nodes]\nvcpus = 2\n", "[mixed]\nslots = 2\n"])
def test_a_log_brings_its_own_programs(tmp_path: Path, text: str) -> None:
    file = load(tmp_path, "schema = 1\n" + text)
    with pytest.raises(UserError, match=r"world\.toml: (nodes\.vcpus|mixed\.slots): a log brings"):
        workload_run(str(LOG), file.kernel_of(), 0, file=file)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "world.toml: missing key 'schema'"),
        ("schema = 2\n", "world.toml: schema: is 2"),
        ("schema = 1\ncpus = 2\n", "world.toml: unknown key 'cpus' (expected one of schema, "),
        ("schema = 1\n[nodes]\ncpu = 2\n", "world.toml: nodes: unknown key 'cpu' (expected "),
        ("schema = 1\n[nodes]\ncpus = 0\n", "world.toml: nodes.cpus: "),
        ("schema = 1\n[nodes]\ncpus = 'two'\n", "world.toml: nodes.cpus: is str (expected int"),
        ("schema = 1\n[nodes]\niommus = 2\n", "world.toml: nodes.iommus: is 2, with 1 devices"),
        ("schema = 1\n[nodes]\nvms = 3\nvcpus = 2\n", "world.toml: nodes.vms: is 3"),
        ("schema = 1\n[sizes]\nframes = 1\n", "world.toml: sizes.frames: "),
        ("schema = 1\n[mixed]\nslots = 100\n", "world.toml: mixed.slots: "),
        ("schema = 1\n[mixed]\ncpus = 2\n", "mixed.cpus: is not of the workload (expected nodes."),
        ("schema = 1\n[mixed.mix]\ntuch = 1\n", "world.toml: mixed.mix: unknown key 'tuch'"),
        ("schema = 1\n[kernel]\nrelease = 'v9'\n", "world.toml: kernel.release: unknown kernel"),
        (
            "schema = 1\n[kernel]\narch = 'vax'\n",
            "world.toml: kernel.arch: unknown architecture",
        ),
        ("schema = 1\n[kernel.set]\nbmt = true\n", "world.toml: kernel.set: unknown switch 'bmt'"),
        ("schema = 1\n[kernel.set]\nbtm = true\n", "world.toml: kernel.set: btm without broad"),
        (
            "schema = 1\n[kernel.set]\nbtm = 1\n",
            "world.toml: kernel.set.btm: is int (expected bool",
        ),
        ("schema =\n", "world.toml: is not TOML"),
    ],
)
def test_what_is_wrong_is_refused_by_its_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [("entries = 100\n", "sizes.entries: is 100"), ("levels = 2\n", "sizes: levels = 2 of ent")],
)
def test_an_address_space_that_is_too_small_is_refused(
    tmp_path: Path, text: str, says: str
) -> None:
    file = load(tmp_path, "schema = 1\n[sizes]\n" + text)
    with pytest.raises(UserError) as caught:
        workload_run("mixed", file.kernel_of(), 0, file=file)
    assert says in str(caught.value)


def test_stress_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.toml").write_text(WHOLE.replace("v6.2", "v6.6.5"))
    monkeypatch.chdir(tmp_path)
    words = "stress --on simulator --operations 20 --seed 1 --world w.toml --out here --json"
    assert launch.main(words.split()) == 3  # far too little ran
    assert RunSpec.load(tmp_path / "here").world.nodes()[-1] == "vcpu1"
    assert launch.main(["stress", "--world", "gone.toml"]) == 2
