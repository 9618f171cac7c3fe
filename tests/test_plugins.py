"""Plug-ins from outside: a NIC of sixty lines, alone, in the mix, and again from a record."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from mmurace.protocol.limits import PAGE_SIZE
from tests.plugin_commands import (
    COMMANDS_ON_A_RUN,
    ENGINES,
    NIC,
    PROCESSES,
    RACE,
    ROOT,
    SIMULATED,
    edited,
    run,
)
from tests.runs import nothing_left_behind as nothing_left_behind

# ---- the NIC -----------------------------------------------------------------------------------


def test_a_nic_is_sixty_lines() -> None:
    assert len(NIC.read_text().splitlines()) <= 60


def test_without_the_retry_check_it_is_found_and_told_in_its_own_words(tmp_path: Path) -> None:
    told = run(tmp_path, "explore", str(RACE), "--schedules", "1000", "--seed", "3", plugin=NIC)
    assert told.status == 1
    assert re.match("VIOLATED: .*S4 by nic0", told.out)
    for word in ("mtt filled", "device store to 0x10000", "invalidate_range_start(nic0"):
        assert word in told.out
    assert "held in 200 schedules: nic_fault = retries (here installs)" in told.out
    assert re.search(r"cut down from \d+ deliveries to [34] operations", " ".join(told.out.split()))
    (schedule,) = tmp_path.glob("runs/2*/minimal.schedule.toml")
    assert run(tmp_path, "replay", str(schedule), plugin=NIC).status == 1


def test_with_the_retry_check_it_holds(tmp_path: Path) -> None:
    words = ("explore", str(RACE), "--kernel", "retries", "--schedules", "2000", "--seed", "5")
    told = run(tmp_path, *words, "--json", plugin=NIC)
    found = json.loads(told.out)
    assert (told.status, found["schedules"]) == (0, 2000)
    assert found["entered"] > 1000


def test_a_small_scope_is_searched_to_the_end(tmp_path: Path) -> None:
    words = ("explore", str(RACE), "--exhaustive", "--kernel")
    good = run(tmp_path, *words, "retries", plugin=NIC)
    assert (good.status, "HELD, exhaustive" in good.out) == (0, True)
    assert run(tmp_path, *words, "no-retry", plugin=NIC).status == 1


@ENGINES
@pytest.mark.parametrize(("kernel", "status"), [("no-retry", 1), ("retries", 0)])
def test_its_recipe_reproduces_it(
    engine: tuple[str, ...], kernel: str, status: int, tmp_path: Path
) -> None:
    told = run(tmp_path, *engine, "--kernel", kernel, plugin=NIC)
    assert told.status == status
    assert "met between" in told.out


@pytest.mark.processes
def test_a_run_on_processes_replays_in_the_simulator(tmp_path: Path) -> None:
    assert run(tmp_path, *PROCESSES, "--out", "run", plugin=NIC).status == 1
    assert run(tmp_path, "replay", "run", plugin=NIC).status == 1


# ---- the run and its plug-in -------------------------------------------------------------------


def test_without_its_plugin_a_run_is_refused_by_name(tmp_path: Path) -> None:
    assert run(tmp_path, *SIMULATED, "--out", "run", plugin=NIC).status == 1
    for command in COMMANDS_ON_A_RUN:
        told = run(tmp_path, command, "run")
        assert told.status == 2
        assert re.search(r"made with the plug-in 'nic', sha256 [0-9a-f]{12} \(expected", told.err)
        assert told.err.endswith(f"--plugin {NIC})\n")


def test_a_plugin_that_is_gone_is_named_with_what_it_was(tmp_path: Path) -> None:
    plugin = tmp_path / "nic.py"
    plugin.write_text(NIC.read_text())
    assert run(tmp_path, *SIMULATED, "--out", "run", plugin=plugin).status == 1
    moved = plugin.rename(tmp_path / "moved.py")
    for command in COMMANDS_ON_A_RUN:
        told = run(tmp_path, command, "run")
        assert (told.status, told.out) == (2, "")
        assert f"--plugin {plugin}, or where it is now: that is gone" in told.err
        told = run(tmp_path, command, "run", plugin=plugin)
        assert (told.status, told.err.count("\n")) == (2, 1)
        assert f"{plugin}: cannot be read: No such file or directory" in told.err
    assert run(tmp_path, "replay", "run", plugin=moved).status == 1  # the same text


def test_what_is_installed_in_another_version_is_said(tmp_path: Path) -> None:
    installed(tmp_path, "1", NIC.read_text())
    assert run(tmp_path, *SIMULATED, "--plugin", "a-nic", "--out", "run").status == 1
    assert "another" not in run(tmp_path, "check", "run", "--plugin", "a-nic").err
    installed(tmp_path, "2", NIC.read_text() + "# Better.\n")
    told = run(tmp_path, "check", "run", "--plugin", "a-nic")
    assert told.status == 1
    assert "run was made with another version of the plug-in 'a-nic'" in told.err


def installed(directory: Path, version: str, text: str) -> None:
    """A package of one module, as an installer leaves it in a directory of the path."""
    (directory / "a_nic.py").write_text(text)
    metadata = directory / "a_nic.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: a-nic\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text("[mmurace.plugins]\na-nic = a_nic\n")


def test_a_race_of_a_plugin_without_it_is_refused(tmp_path: Path) -> None:
    told = run(tmp_path, "explore", str(RACE))
    assert told.status == 2
    assert "unknown switch 'nic_fault'" in told.err


def test_another_text_is_said(tmp_path: Path) -> None:
    assert run(tmp_path, *SIMULATED, "--out", "run", plugin=NIC).status == 1
    same = run(tmp_path, "replay", "run", plugin=NIC)
    assert (same.status, "another" in same.err) == (1, False)
    other = edited(tmp_path, '"""The NIC: its', '"""The NIC; its')
    for command in COMMANDS_ON_A_RUN:
        told = run(tmp_path, command, "run", plugin=other)
        assert told.status == 1
        assert "run was made with another nic.py" in told.err


# ---- in the mix ----------------------------------------------------------------------------------

STRESS = ("stress", "--plugin", str(NIC), "--operations", "6000", "--seed", "3")
MIXED_WORLD = """\
schema = 1

[nodes]
nics = 2
devices = 0
vcpus = 0

[mixed]
mix = { nic_dma = 3, dontneed = 20, brk = 0, mmap = 0, mprotect = 0, munmap = 0, migrate = 0 }
"""


@pytest.mark.parametrize(
    "on", ["simulator", pytest.param("processes", marks=pytest.mark.processes)]
)
def test_the_mix_drives_it_and_finds_its_mistake(on: str, tmp_path: Path) -> None:
    (tmp_path / "world.toml").write_text(MIXED_WORLD)
    words = (*STRESS, "--world", "world.toml", "--on", on, "--json")
    wrong = json.loads(run(tmp_path, *words, "--set", "nic_fault=installs").out)
    broken = {(found["rule"], found["agent"]) for found in wrong["violations"]}
    assert {("S4", "nic0"), ("S4", "nic1")} <= broken
    told = run(tmp_path, *words)
    right = json.loads(told.out)
    assert (told.status, right["violations"]) == (0, [])
    assert right["verdict"]["how"]["windows"]["MadviseDontneed"]["mtt"] > 0
    assert {"NicDma"} == {name for name in right["operations"] if name.endswith("Dma")}


def test_the_mix_of_all_has_it_once(tmp_path: Path) -> None:
    told = run(tmp_path, *STRESS, "--on", "simulator")
    assert "memory cpu0 cpu1 iommu0 device0 kvm0 vcpu0 nic0\n" in told.out
    assert "mtt" in told.out


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("[nodes]\nnics = 9", "nodes.nics: expected `int` <= 8"),
        ("[nodes]\nnisc = 1", "nodes: unknown key 'nisc'"),
        ("[mixed.mix]\nnic_dma = -1", "mixed.mix.nic_dma: expected `int` >= 0"),
        ("[mixed.mix]\nnic_dam = 1", "mixed.mix: unknown key 'nic_dam'"),
        ("[mixed]\nadded = { nics = 1 }", "mixed.added: is not of the workload"),
    ],
)
def test_a_wrong_key_of_the_mix_is_refused(table: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "world.toml").write_text(f"schema = 1\n{table}\n")
    told = run(tmp_path, *STRESS, "--world", "world.toml")
    assert (told.status, told.out) == (2, "")
    assert words in told.err


def test_nothing_is_asked_of_it_with_weight_0(tmp_path: Path) -> None:
    (tmp_path / "world.toml").write_text("schema = 1\n[mixed.mix]\nnic_dma = 0\n")
    told = run(tmp_path, *STRESS, "--world", "world.toml", "--on", "simulator", "--json")
    assert "NicDma" not in json.loads(told.out)["operations"]


# ---- beside a log --------------------------------------------------------------------------------

LOG = Path(__file__).parent / "data" / "numpy.strace"
BESIDE_A_LOG = ("stress", "--workload", str(LOG), "--operations", "4000", "--seed", "3", "--json")


@pytest.mark.parametrize(
    "on", ["simulator", pytest.param("processes", marks=pytest.mark.processes)]
)
def test_a_log_has_it_and_finds_its_mistake(on: str, tmp_path: Path) -> None:
    words = (*BESIDE_A_LOG, "--on", on)
    wrong = json.loads(run(tmp_path, *words, "--set", "nic_fault=installs", plugin=NIC).out)
    assert ("S4", "nic0") in {(found["rule"], found["agent"]) for found in wrong["violations"]}
    right = json.loads(run(tmp_path, *words, plugin=NIC).out)
    assert right["violations"] == []
    assert min(right["operations"][kind]["done"] for kind in ("NicDma", "Dma", "GuestTouch")) > 500
    assert right["verdict"]["how"]["windows"]["Munmap"]["mtt"] > 0


# ---- options of its own, and a page for itself ---------------------------------------------------

RINGS = """
class Vhosts(api.Beside, frozen=True):
    vhosts: api.NodeCount = 1
    rings: bool = True

    def problems(self, kernel):
        if self.rings and not self.vhosts:
            yield "rings", "is true, with 0 vhosts", "vhosts = 1"

    def rows(self, site):
        for n in range(self.vhosts):
            yield Vhost(f"vhost{n}", site.mm, site.cpu, site.private if self.rings else 0)


api.register("""


def vhost(directory: Path) -> Path:
    """The worker of the page on secondaries, right, and with a ring in a page of its own."""
    page = (ROOT / "docs" / "writing-a-secondary.md").read_text()
    text = page.partition("```python vhost.py\n")[2].partition("```")[0]
    for old, new in (
        ("cpu.port.tell(", "await cpu.port.call("),
        ("    cpu: str\n", "    cpu: str\n    ring: int = 0\n"),
        ("\napi.register(", RINGS),
        ("made=Vhost,", "beside=Vhosts, private=api.Private('ring', 9, lambda v: v.ring or None),"),
    ):  # fmt: skip
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (directory / "vhost.py").write_text(text)
    return directory / "vhost.py"


PROGRAMS = """
import itertools, sys
from mmurace.nodes.kernel.variant import preset
from mmurace.nodes.plugins import load
from mmurace.scenarios.runs import workload_run

load(["vhost.py"])
spec = workload_run(sys.argv[1], preset("v6.6.5"), 1)
ring = spec.world.part_of("vhost0").ring
for program in spec.programs():
    for step in itertools.islice(program.steps, 4000):
        if getattr(step.operation, "address", 0) & ~4095 == ring:
            print(type(step.operation).__name__)
"""


@pytest.mark.parametrize("beside", ["mixed", str(LOG)])
def test_who_has_a_page_for_itself_uses_it_and_it_is_migrated(beside: str, tmp_path: Path) -> None:
    vhost(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAMS, beside], cwd=tmp_path, capture_output=True, text=True,
        timeout=120, check=True, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    used = Counter(done.stdout.split())
    assert used["Mmap"] == 1
    assert min(used["VhostCopy"], used["MigratePages"]) > 5


@pytest.mark.parametrize("beside", ["mixed", str(LOG)])
def test_options_and_a_page_of_its_own_are_as_those_of_the_built_in_ones(
    beside: str, tmp_path: Path
) -> None:
    words = ("stress", "--workload", beside, "--operations", "3000", "--on", "simulator", "--json")
    told = run(tmp_path, *words, "--out", "run", plugin=vhost(tmp_path))
    done = json.loads(told.out)
    assert done["violations"] == []
    assert done["operations"]["VhostCopy"]["done"] > 100
    world = tomllib.loads((tmp_path / "run" / "run.toml").read_text())["world"]
    apic = next(slot["hva"] for slot in world["vms"][0]["slots"] if slot["apic"])
    assert world["vhosts"][0]["ring"] == apic + 2 * PAGE_SIZE
    replayed = run(tmp_path, "replay", "run", plugin=tmp_path / "vhost.py")
    assert replayed.status == told.status


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ("vhosts = 2\nrings = false", "vhost0 vhost1\n"),
        ("vhosts = 0", "nodes.rings: is true, with 0 vhosts (expected vhosts = 1)"),
        ("vhosts = 9", "nodes.vhosts: expected `int` <= 8"),
        ("rings = 1", "nodes.rings: is int (expected bool)"),
    ],
)
def test_a_world_file_has_its_options(nodes: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "world.toml").write_text(f"schema = 1\n[nodes]\n{nodes}\n")
    run_it = ("stress", "--world", "world.toml", "--operations", "200", "--on", "simulator")
    told = run(tmp_path, *run_it, plugin=vhost(tmp_path))
    assert words in told.out + told.err


# ---- a rule ------------------------------------------------------------------------------------

FORBIDDEN = """

class NoDma:
    def __init__(self, world, state, found):
        self.found = found

    def record(self, record, op, event):
        if isinstance(record, api.records.OpEnd) and record.kind == "NicDma":
            self.found.append(api.Violation("N1", event.node, "it has used memory", changed=event))


api.add_rule(
    api.Rule("N1", "harm", "nic-used", "The NIC is not used.", "who uses it", judge=NoDma)
)
api.register_shadow("""


@ENGINES
def test_a_rule_of_a_plugin_is_judged_and_listed(engine: tuple[str, ...], tmp_path: Path) -> None:
    path = edited(tmp_path, "\napi.register_shadow(", FORBIDDEN)
    told = run(tmp_path, *engine, "--kernel", "retries", "--out", "run", plugin=path)
    assert told.status == 1
    assert "N1 by nic0" in told.out
    assert "BUG: mmu_notifier: N1: nic-used" in told.out
    assert run(tmp_path, "check", "run", plugin=path).status == 1


def test_a_rule_of_a_plugin_is_listed(tmp_path: Path) -> None:
    path = edited(tmp_path, "\napi.register_shadow(", FORBIDDEN)
    assert "The NIC is not used." in run(tmp_path, "show", "N1", plugin=path).out
    assert "nic-used" in run(tmp_path, "list", "--rules", plugin=path).out
